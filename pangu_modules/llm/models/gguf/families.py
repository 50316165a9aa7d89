"""The decoders that GGUF and transformers both know: which is which, names of tensors, and how their numbers differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pangu_modules.llm.models.decoder import LINEAR_LAYERS

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    Args:
        architecture: GGUF's name.
        model_type: transformers' name of what it is read as.
        pairs: the rotary embedding turns neighbours, so that the rows of q and k lie in another order than in
            transformers, which turns component i with i + head_dim / 2.
        offset_norms: gains of norms are stored as they act, which is one more than what transformers' Gemma stores.
        activation: of the feed-forward block, by transformers' name.
        frequency_factors: takes ``rope_freqs.weight``.
        per_layer: sizes are given for each layer.
        biases: projections that may have a bias, or (Qwen2's q, k and v) must have one.
    """

    architecture: str
    model_type: str
    pairs: bool = False
    offset_norms: bool = False
    activation: str = "silu"
    frequency_factors: bool = False
    per_layer: bool = False
    biases: tuple[str, ...] = ()


GELU = "gelu_pytorch_tanh"
FAMILIES = {
    family.architecture: family
    for family in (
        Family("llama", "llama", pairs=True, frequency_factors=True, biases=LINEAR_LAYERS),
        Family("deci", "llama", pairs=True, frequency_factors=True, per_layer=True, biases=LINEAR_LAYERS),
        Family("qwen2", "qwen2", biases=("q_proj", "k_proj", "v_proj")),
        Family("qwen3", "qwen3"),
        Family("gemma", "gemma", offset_norms=True, activation=GELU),
        Family("gemma2", "gemma2", offset_norms=True, activation=GELU),
        Family("gemma3", "gemma3_text", offset_norms=True, activation=GELU),
    )
}
"""By GGUF's name. `deci` computes what `llama` does, in layers of different sizes."""

LLAMA_LIKE = ("llama", "mistral", "qwen2", "seed_oss")
"""Model types of transformers that compute what GGUF's `llama` does, given full attention: they differ in biases."""


def tensor_names(family: Family, names: Iterable[str], num_layers: int) -> dict[str, str]:
    """Return GGUF's name of every tensor of a transformers model.

    Raises:
        ValueError: one has no name in this architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    known = get_tensor_name_map(number, num_layers)
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    for name, other in found.items():
        if other is None:
            raise ValueError(f"GGUF's architecture {family.architecture!r} has no tensor for {name}")
    return {name: str(other) for name, other in found.items()}


def to_gguf(family: Family, name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Return a tensor of a transformers model as GGUF stores it."""
    if family.pairs and _is_rotated(name):
        return interleave_halves(tensor, tensor.shape[0] // head_dim)
    if family.offset_norms and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def from_gguf(family: Family, name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Return what `to_gguf` was given."""
    if family.pairs and _is_rotated(name):
        pairs = tensor.unflatten(0, (tensor.shape[0] // head_dim, -1, 2))
        return pairs.transpose(1, 2).flatten(0, 2).contiguous()
    if family.offset_norms and name.endswith("norm.weight"):
        return tensor - 1
    return tensor


def interleave_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from (first half, second half) to pairs, for the rotary embedding of GGUF's Llama.

    transformers rotates component i with i + head_dim / 2, GGUF's Llama 2i with 2i + 1.

    Args:
        rows: (num_heads * head_dim, in_features), or (num_heads * head_dim,) for a bias.
        num_heads: number of heads.
    """
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def head_dim_of(config: Any) -> int:
    """Return the width of a head, which not every configuration states."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def decode(data: Any, kind: Any) -> Tensor:
    """Return stored rows as float32.

    Raises:
        ValueError: nobody here knows the type.
    """
    from gguf.quants import dequantize

    if kind.name == "Q1_0":
        return decode_q1_0(torch.from_numpy(data.copy()))
    try:
        return torch.from_numpy(dequantize(data, kind).copy())
    except NotImplementedError as error:
        raise ValueError(f"it has tensors of type {kind.name}, which cannot be decoded here") from error


def decode_q1_0(stored: Tensor) -> Tensor:
    """Return the rows of uint8 blocks (rows, 18 * blocks): 128 weights each, a float16 scale and bits, 1 = plus."""
    blocks = stored.unflatten(-1, (-1, 18))
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    bits = blocks[..., 2:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return ((bits.flatten(-2).float() * 2 - 1) * scale).flatten(-2)


def _is_rotated(name: str) -> bool:
    return ".q_proj." in name or ".k_proj." in name
