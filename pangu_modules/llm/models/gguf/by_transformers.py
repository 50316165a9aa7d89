"""GGUF files of architectures that are left to transformers' own reader, which drops what it does not know."""

from __future__ import annotations

import copy
from typing import Any

import torch

from pangu_modules.llm.models.gguf import rope
from pangu_modules.llm.models.gguf.file import GgufFile


def read_by_transformers(file: GgufFile, dtype: torch.dtype, attn_implementation: str, weights: bool) -> Any:
    """Return the model that transformers makes of a file, as a plain one; arguments as in `read_model`.

    Raises:
        ValueError: transformers does not read the architecture, or drops some of the file.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, name = str(file.path.parent), file.path.name
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        _check_rope(file, config)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, **options) if weights else None
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"architecture {file.architecture!r} cannot be read ({reason})") from error
    drop_traces(config)
    if model is None:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **options)
    _check_size(file, model)
    # The original still calls itself quantised and refuses to be saved.
    config = copy.deepcopy(model.config)
    drop_traces(config)
    with torch.random.fork_rng(devices=[]):
        plain = AutoModelForCausalLM.from_config(config, **options)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def drop_traces(config: Any) -> None:
    """Remove what transformers notes in a configuration about the file it came from."""
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)


def _check_rope(file: GgufFile, config: Any) -> None:
    kind = file.keys.get(f"{file.architecture}.rope.scaling.type", "none")
    found = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ("none", found):
        raise ValueError(f"it sets rope.scaling.type={kind!r}, which the model would ignore")
    factors = [name for name in file.tensors if name.startswith(("rope_freqs", "rope_factors"))]
    if factors and found == "default":
        raise ValueError(f"it holds {rope.FACTORS}, which the model would ignore")


def _check_size(file: GgufFile, model: Any) -> None:
    """Compare numbers of elements: what the file holds, the model must have taken."""
    held = sum(int(tensor.n_elements) for tensor in file.tensors.values())
    taken = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    if held != taken:
        raise ValueError(f"it holds {held} numbers, the model has {taken}")
