"""Loading causal language models and configurations: hub id, folder, GGUF file, the embedded one, or from scratch."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.common import registry
from pangu_modules.common.files import safe_name
from pangu_modules.common.names import nearest
from pangu_modules.llm.models import pangu_embedded
from pangu_modules.llm.models.conversion import MODEL_FILE
from pangu_modules.llm.models.fields import fields_read
from pangu_modules.llm.models.messages import explained, in_one_line, quiet_transformers
from pangu_modules.llm.models.names import is_gguf, resolve
from pangu_modules.llm.models.weights import load_fitting

NOT_FIELDS = {"model_type", "transformers_version", "architectures", "dtype", "auto_map", "quantization_config"}
"""What a configuration says of the files it was read from, not of the model."""


def load_causal_lm(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    from_config_only: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Return a transformers causal LM in training mode.

    Args:
        name_or_path: ``"smollm2"``, a folder, a ``.gguf`` file (dequantised), or a hub id. A released openPangu
            Embedded is read as the Llama that it computes; its own code is never run.
        dtype: of the weights.
        attn_implementation: transformers' name of the attention kernel, e.g. ``"sdpa"`` or ``"eager"``.
        from_config_only: read the configuration only and initialise at random, on the default device.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ValueError: there is no such model, or its weights are not in safetensors or GGUF form.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}

    def anew(config: Any) -> nn.Module:
        return with_kernel(partial(AutoModelForCausalLM.from_config, config, **options), attn_implementation)

    source = resolve(name_or_path, weights=not from_config_only)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.reading import read_model

        with explained(name_or_path), quiet_transformers():
            return read_model(
                source, dtype=dtype, attn_implementation=attn_implementation, weights=not from_config_only
            ).train()
    with explained(name_or_path):
        declared = _declared_fields(source)
    _check_shards(Path(source))
    if from_config_only:
        return anew(load_config(name_or_path, trust_remote_code=trust_remote_code))
    if pangu_embedded.is_declared(declared):
        options |= {"config": load_config(name_or_path), "trust_remote_code": False}

    def load(**more: Any) -> Any:
        read = partial(AutoModelForCausalLM.from_pretrained, source, use_safetensors=True, **options)
        with explained(name_or_path), quiet_transformers():
            return with_kernel(partial(read, output_loading_info=True, **more), attn_implementation)

    model = load_fitting(load, anew, name_or_path, source)
    return model.train()  # transformers returns models in evaluation mode, and the Trainer keeps the mode it finds


def new_causal_lm(
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> nn.Module:
    """Return a randomly initialised transformers causal LM, on the default device.

    Args:
        architecture: transformers' model type, e.g. ``"llama"``, ``"qwen3"``, or ``"PanguEmbedded"``.
        model_args: fields of that model's configuration; what is not given has transformers' default.
        dtype: of the weights.
        attn_implementation: transformers' name of the attention kernel.

    Raises:
        ValueError: the architecture or a field is unknown, or it is no causal LM.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = new_config(architecture, model_args)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"architecture={architecture!r} is no causal language model of transformers")
    try:
        return with_kernel(partial(AutoModelForCausalLM.from_config, config, dtype=dtype), attn_implementation)
    except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"model_args: {architecture!r} cannot be built with {dict(model_args)}: {error!r}") from error


def with_kernel(build: Callable[..., Any], attn_implementation: str) -> Any:
    """Return ``build(attn_implementation=...)``; a model that has no SDPA kernel (Gemma 2) gets eager, and it is said.

    Raises:
        ValueError: the model has no such kernel.
    """
    try:
        return build(attn_implementation=attn_implementation)
    except ValueError as error:
        if attn_implementation != "sdpa" or "does not support an attention implementation" not in str(error):
            raise
    warnings.warn("the model has no SDPA attention: attn_implementation='eager' is used", stacklevel=3)
    return build(attn_implementation="eager")


def new_config(architecture: str, model_args: Mapping[str, Any]) -> Any:
    """Return transformers' configuration; unlike transformers, refuse fields that it does not know.

    Known are the fields that its class declares, and those that the model's code reads besides (``head_dim`` of a
    Qwen2): `plain_config` gives both.

    Raises:
        ValueError: the architecture or a field is unknown, or the sizes do not fit each other.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if architecture == pangu_embedded.MODEL_TYPE:
        return new_config(pangu_embedded.LLAMA, pangu_embedded.llama_fields(model_args))
    register_architecture(architecture)
    if architecture not in CONFIG_MAPPING:
        hint = nearest(architecture, list(CONFIG_MAPPING))
        raise ValueError(f"architecture={architecture!r} is unknown to transformers.{hint}")
    known = {*AutoConfig.for_model(architecture).to_dict(), "rope_theta", "rope_scaling"}
    unknown = [name for name in model_args if name not in known]
    read = fields_read(architecture) if unknown else set()
    for name in unknown:
        if name not in read:
            raise ValueError(f"model_args: {architecture!r} has no field {name!r}.{nearest(name, known)}")
    try:
        return AutoConfig.for_model(architecture, **copy.deepcopy(dict(model_args)))
    except Exception as error:  # transformers' checks of a configuration raise errors of many kinds
        raise ValueError(f"model_args do not fit architecture={architecture!r}: {in_one_line(error)}") from error


def plain_config(config: Any) -> tuple[str, dict[str, Any]]:
    """Return architecture and fields of a transformers configuration as plain data, as `new_config` takes them."""
    from transformers import AutoConfig

    differing = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_FIELDS}
    known = set(AutoConfig.for_model(config.model_type).to_dict())
    if not known >= set(differing):
        known |= fields_read(config.model_type)
    architecture = pangu_embedded.MODEL_TYPE if pangu_embedded.is_named(config) else config.model_type
    return architecture, {name: value for name, value in differing.items() if name in known}


def load_config(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers configuration of a model, without its weights; arguments as in `load_causal_lm`."""
    from transformers import AutoConfig

    source = resolve(name_or_path, weights=False)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.reading import read_config

        with explained(name_or_path):
            return read_config(source)
    with explained(name_or_path):
        declared = _declared_fields(source)
        if pangu_embedded.is_declared(declared):
            return pangu_embedded.config_of_folder(declared)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def stored_dtype(name_or_path: str, *, trust_remote_code: bool = False) -> str:
    """Return the type that a model's weights are stored in: float32, float16 or bfloat16.

    Arguments as in `load_config`. What is stored in another way (quantised), or does not say it, counts as float32.
    """
    source = resolve(name_or_path)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.file import gguf_file

        with gguf_file(source) as file:
            found: Any = file.dtype()
    else:
        found = getattr(load_config(name_or_path, trust_remote_code=trust_remote_code), "dtype", None)
    name = str(found).removeprefix("torch.")
    return name if name in ("float16", "bfloat16") else "float32"


def register_architecture(architecture: str) -> None:
    """Make transformers know an architecture of this library; others are left to transformers."""
    if architecture in registry.names("architecture"):
        registry.load("architecture", architecture)  # importing its module registers it with transformers


def _declared_fields(source: str) -> dict[str, Any]:
    """Return what a model's ``config.json`` says, and make transformers know its architecture if it is one of ours."""
    from transformers import PreTrainedConfig

    folder = Path(source)
    if folder.exists() and not (folder / MODEL_FILE).is_file():
        return {}  # transformers says what is missing
    fields, _ = PreTrainedConfig.get_config_dict(source)
    register_architecture(str(fields.get("model_type")))
    return dict(fields)


def _check_shards(folder: Path) -> None:
    """Refuse an index whose parts lie outside the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()):
            safe_name(str(name), str(index))
