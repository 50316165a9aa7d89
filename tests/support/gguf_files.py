"""Tiny decoders of every family with numbers that show in the logits, and GGUF files with something changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_llm import TINY_LLAMA, byte_tokenizer, token_batch

from pangu_modules import PanguLightConfig, ShapePlan, SlimLLMConfig, TargetShape
from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.pruning.pangu_light.pipeline import prune_pangu_light
from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

VOCABULARY = 270
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "num_hidden_layers": 7}


def decoder(folder: Path, architecture: str = "llama", **fields: Any) -> CausalLM:
    """Return a tiny model with a byte-level tokenizer; biases and gains are drawn too, for what is lost must show."""
    torch.manual_seed(0)
    sizes = {**TINY_LLAMA, "vocab_size": VOCABULARY, "initializer_range": 0.3, "tie_word_embeddings": False}
    if architecture.startswith("gemma"):
        sizes["tie_word_embeddings"] = True
    kernel = {"attn_implementation": "eager"} if architecture == "gemma2" else {}
    config = CausalLM.Config(architecture=architecture, model_args={**sizes, **fields}, **kernel)
    module = config.build(tokenizer=str(byte_tokenizer(folder / "tokenizer"))).eval()
    with torch.no_grad():
        for parameter in module.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def slimllm(model: Any, batch: dict[str, torch.Tensor], **fields: Any) -> tuple[int, ...]:
    """Prune heads and channels; by default the sizes of the layers differ then. Return the kept layers."""
    config = SlimLLMConfig(**{"base_share": 0.5, "pruned_layers": 2, **fields})
    return prune_slimllm(model, config, [batch]).kept_layers


def pangu_light(model: Any, batch: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """Prune width and depth; the layers stay equal, the width is no multiple of the heads. Return the kept layers."""
    target = TargetShape(hidden_size=30, intermediate_size=48, num_hidden_layers=3, num_key_value_heads=1)
    return prune_pangu_light(model, PanguLightConfig(target=target, protect_layers=()), [batch]).kept_layers


METHODS: dict[str, Callable[..., tuple[int, ...]]] = {"slimllm": slimllm, "pangu_light": pangu_light}


def pruned(folder: Path, method: str, architecture: str = "llama", **fields: Any) -> CausalLM:
    """Return a tiny model pruned by one of `METHODS`."""
    module = decoder(folder, architecture, **{"num_hidden_layers": 4, **fields})
    kept = METHODS[method](module.model, token_batch(seq=24))
    module.restructure(ShapePlan.of(module.model, kept, source="x"))
    return module.eval()


@torch.no_grad()
def logits(module: Any, length: int = 40) -> torch.Tensor:
    """Return the logits (2, length, vocabulary) of a module or model for random tokens."""
    tokens = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = getattr(module, "model", module).eval()(input_ids=tokens).logits
    return found


def read(file: Path, **fields: Any) -> CausalLM:
    """Return the module of a GGUF file."""
    return CausalLM.Config(model=str(file), **fields).build().eval()


def rewritten(
    file: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
    architecture: str | None = None,
) -> Path:
    """Return a copy of a GGUF file with other keys and tensors, or without some."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(file)
    old = reader.get_field("general.architecture").contents()
    name = architecture or old
    copy = file.with_name("changed.gguf")
    writer = GGUFWriter(copy, name)
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "general.architecture")) or key in without:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key.replace(f"{old}.", f"{name}.", 1), field.contents(), kind, inner)
    for key, value in (keys or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    found = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name not in without}
    for key, value in {**found, **(tensors or {})}.items():
        writer.add_tensor(key, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy
