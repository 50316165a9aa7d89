"""Attention, for training and for inference, with heads before positions (BNSD).

Masks are as in torch's `scaled_dot_product_attention`: True where a query sees a key. torch_npu's are the opposite.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import HALVES, FusedCall, Operator, first

Causal = Literal["top_left", "bottom_right"]
SPARSE_MODE = {"top_left": 2, "bottom_right": 3}
BLIND_QUERIES = 2  # inner_precise: queries that see no key, such as those of padding, get 0
COMPRESSED_MASK = 2048  # the size of the triangle that stands for a causal mask of any size
MAX_HEADS = 256
MAX_HEAD_DIM = 768
MAX_INFERENCE_HEAD_DIM = 512
MAX_GROUP = 64  # query heads of a key head, in inference
MAX_LENGTH = 2**20


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | Causal | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return ``softmax(scale * query key^T) value``, (B, N, S, D), for training.

    Args:
        query: (B, N, S, D).
        key: (B, its heads, keys, D); its heads divide N.
        value: as key.
        scale: factor of the products.
        mask: bool, (B or 1, N or 1, S, keys), True where a query sees a key; or a causal mask, by the corner of
            (S, keys) that its diagonal starts in or ends in; None: every query sees every key.
        dropout: share of the probabilities that are set to 0.
    """
    if isinstance(mask, str) and query.shape[2] == key.shape[2]:
        mask = "top_left"  # the same, and the one that torch has kernels for
    if isinstance(mask, str) and mask == "bottom_right":
        mask = visible(query.shape[2], key.shape[2], query.device)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask if isinstance(mask, Tensor) else None,
        dropout_p=dropout,
        is_causal=isinstance(mask, str),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def infer_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | Causal | None = None
) -> Tensor:
    """Return what `fusion_attention` returns, for prefill and decoding without gradients; arguments as there."""
    return fusion_attention(query, key, value, scale, mask)


def visible(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys a query sees if the last query sees all: (queries, keys) bool."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@lru_cache(maxsize=8)
def compressed_mask(device: torch.device) -> Tensor:
    """Return the triangle that torch_npu wants for causal masks of every size: True above the diagonal."""
    with torch.inference_mode(False):  # a tensor of inference mode could not be kept for a later backward pass
        return torch.ones(COMPRESSED_MASK, COMPRESSED_MASK, dtype=torch.bool, device=device).triu(1)


def _mask_arguments(query: Tensor, mask: Tensor | Causal | None) -> dict[str, Any]:
    if isinstance(mask, Tensor):
        given: dict[str, Any] = {"atten_mask": mask.logical_not(), "sparse_mode": 0}
        return given | ({"inner_precise": BLIND_QUERIES} if query.shape[2] > 1 else {})
    if mask is not None:
        return {"atten_mask": compressed_mask(query.device), "sparse_mode": SPARSE_MODE[mask]}
    return {}


def _limits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | Causal | None = None,
    dropout: float = 0.0,
) -> str | None:
    shape, keys, values = query.shape, key.shape, value.shape
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in type"
    if len(shape) != 4 or 0 in shape or 0 in keys:
        return f"it takes (B, N, S, D) with tokens, not {tuple(shape)} and {tuple(keys)}"
    heads, dim = shape[1], shape[3]
    if dim > MAX_HEAD_DIM or keys[3] != dim or values[3] > dim:
        return f"heads are {dim}, {keys[3]} and {values[3]} wide: it takes one width, at most {MAX_HEAD_DIM}"
    if heads > MAX_HEADS or heads % keys[1]:
        return f"{heads} heads on {keys[1]}: it takes at most {MAX_HEADS}, a multiple of the keys'"
    if shape[2] > MAX_LENGTH or keys[2] > MAX_LENGTH:
        return f"sequences are longer than {MAX_LENGTH}"
    return _mask_limits(query, key, mask) if isinstance(mask, Tensor) else None


def _mask_limits(query: Tensor, key: Tensor, mask: Tensor) -> str | None:
    if mask.dtype != torch.bool:
        return f"the mask is {mask.dtype}: it takes bool"
    sizes = (query.shape[2], key.shape[2])
    if mask.ndim != 4 or tuple(mask.shape[2:]) != sizes or mask.shape[0] not in (1, query.shape[0]):
        return f"the mask has the shape {tuple(mask.shape)}, not (B or 1, N or 1, {sizes[0]}, {sizes[1]})"
    if mask.shape[1] not in (1, query.shape[1]) or (mask.shape[1] > 1 and mask.shape[0] != query.shape[0]):
        return f"the mask has the shape {tuple(mask.shape)}: one for each head needs one for each sequence too"
    return None


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | Causal | None = None,
    dropout: float = 0.0,
) -> FusedCall:
    given = _mask_arguments(query, mask)
    return FusedCall((query, key, value, query.shape[1], "BNSD"), {"scale": scale, "keep_prob": 1.0 - dropout, **given})


def _examples(make: Maker) -> Iterator[Example]:
    query, key, value = make.floats(2, 4, 5, 16), make.floats(2, 2, 7, 16), make.floats(2, 2, 7, 16)
    yield Example("all keys", (query, key, value, 0.25), {})
    yield Example("causal from the top left", (query, key, value, 0.25), {"mask": "top_left"})
    yield Example("causal from the bottom right", (query, key, value, 0.25), {"mask": "bottom_right"})
    mask = make.given([[[[key_place <= place + 2 for key_place in range(7)] for place in range(5)]]], torch.bool)
    yield Example("a mask", (query, key, value, 0.25), {"mask": mask})
    blind = make.given([[[[place > 0 for _ in range(7)] for place in range(5)]]], torch.bool)
    yield Example("a query that sees nothing", (query, key, value, 0.25), {"mask": blind})


def _infer_limits(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | Causal | None = None
) -> str | None:
    reason = _limits(query, key, value, scale, mask)
    if reason is not None:
        return reason
    shape = query.shape
    if shape[3] > MAX_INFERENCE_HEAD_DIM or shape[3] % 16 or value.shape[3] != shape[3]:
        return f"heads are {shape[3]} wide: it takes multiples of 16 up to {MAX_INFERENCE_HEAD_DIM}"
    if shape[1] > MAX_GROUP * key.shape[1]:
        return f"{shape[1]} heads share {key.shape[1]}: it takes at most {MAX_GROUP} for one"
    if isinstance(mask, Tensor):
        return None if mask.shape[1] == 1 else "it takes one mask for all heads"
    if shape[2] == 1 and mask == "top_left":
        return "a single query that sees the first key alone is no decoding step"
    return None


def _infer_call(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | Causal | None = None
) -> FusedCall:
    if query.shape[2] == 1 and isinstance(mask, str):
        mask = None  # the last query sees all keys, and the operator ignores the mode here
    given = {
        "num_heads": query.shape[1],
        "num_key_value_heads": key.shape[1],
        "input_layout": "BNSD",
        "scale": scale,
        **_mask_arguments(query, mask),
    }
    return FusedCall((query.contiguous(), key.contiguous(), value.contiguous()), given)


def _infer_examples(make: Maker) -> Iterator[Example]:
    yield from _examples(make)
    query, key, value = make.floats(2, 4, 1, 16), make.floats(2, 2, 7, 16), make.floats(2, 2, 7, 16)
    yield Example("decoding", (query, key, value, 0.25), {"mask": "bottom_right"})
    mask = make.given([[[[True] * 7]], [[[False] * 3 + [True] * 4]]], torch.bool)
    yield Example("decoding behind padding", (query, key, value, 0.25), {"mask": mask})


ATTENTION = Operator(
    "npu_fusion_attention", fusion_attention, _call, _examples, gradients="own", limits=_limits, result=first
)
INFER_ATTENTION = Operator(
    "npu_fused_infer_attention_score",
    infer_attention,
    _infer_call,
    _infer_examples,
    dtypes=HALVES,
    limits=_infer_limits,
    result=first,
)
