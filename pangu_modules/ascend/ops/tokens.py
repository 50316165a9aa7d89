"""Rows of tokens sorted by their experts and put back, by the operators that have gradients.

Legend: T tokens, K experts of a token, E experts, h width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator

MAX_PAIRS = 16_777_215  # below: the operators sort numbers that float32 holds
MAX_CHOICES = 512


def token_permute(tokens: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the (token, expert) pairs by expert; the second result is for `token_unpermute` alone.

    torch_npu's documents disagree whether that is the order or its inverse, so that nothing else may read it.

    Args:
        tokens: (T, h).
        indices: (T, K) int64 experts.

    Returns:
        (T K, h) rows by expert, and (T K,) int32.
    """
    order = indices.flatten().argsort(stable=True)
    return tokens[order // indices.shape[1]], order.to(torch.int32)


def token_unpermute(rows: Tensor, sorted_indices: Tensor, probs: Tensor) -> Tensor:
    """Return each token's sum of its rows times `probs` (T, K): what undoes `token_permute`, (T, h)."""
    tokens, k = probs.shape
    pairs = torch.zeros_like(rows).index_copy(0, sorted_indices.to(torch.int64), rows)
    return (pairs.view(tokens, k, -1) * probs[..., None]).sum(1)


def token_permute_with_map(tokens: Tensor, routing_map: Tensor, num_choices: int) -> tuple[Tensor, Tensor]:
    """Sort the (token, expert) pairs of a map by expert; the second result is for `token_unpermute_with_map` alone.

    Args:
        tokens: (T, h).
        routing_map: (T, E) bool, K of them true for every token.
        num_choices: K.
    """
    chosen = _pairs(routing_map, len(tokens) * num_choices) % len(tokens)
    return tokens[chosen], chosen.to(torch.int32)


def token_unpermute_with_map(rows: Tensor, sorted_indices: Tensor, probs: Tensor, routing_map: Tensor) -> Tensor:
    """Return each token's sum of its rows times `probs` (T, E): what undoes `token_permute_with_map`, (T, h)."""
    scales = probs.t().flatten()[_pairs(routing_map, len(rows))]
    empty = rows.new_zeros(len(probs), rows.shape[1])
    return empty.index_add(0, sorted_indices.to(torch.int64), rows * scales[:, None])


def _pairs(routing_map: Tensor, count: int) -> Tensor:
    """Return the places of the chosen pairs in the map's transpose, expert after expert, (count,)."""
    return routing_map.logical_not().t().flatten().argsort(stable=True)[:count]


def _permute_limits(tokens: Tensor, indices: Tensor) -> str | None:
    if tokens.ndim != 2 or indices.ndim != 2 or len(tokens) != len(indices):
        return f"it takes (T, h) and (T, K), not {tuple(tokens.shape)} and {tuple(indices.shape)}"
    if indices.dtype != torch.int64 or indices.shape[1] > MAX_CHOICES:
        return f"it takes int64 experts, at most {MAX_CHOICES} of a token, not {indices.dtype}, {indices.shape[1]}"
    if not 0 < indices.numel() < MAX_PAIRS:
        return f"there are {indices.numel()} pairs, and it takes 1 to {MAX_PAIRS - 1}"
    return None


def _permute_call(tokens: Tensor, indices: Tensor) -> FusedCall:
    return FusedCall((tokens, indices), {"num_out_tokens": indices.numel(), "padded_mode": False})


def _permute_examples(make: Maker) -> Iterator[Example]:
    yield Example("two of five", (make.floats(4, 8), make.given([[0, 4], [4, 3], [4, 2], [1, 0]], torch.int64)), {})


def _unpermute_limits(rows: Tensor, sorted_indices: Tensor, probs: Tensor) -> str | None:
    return None if probs.dtype == rows.dtype else f"probs are {probs.dtype} and rows {rows.dtype}"


def _unpermute_call(rows: Tensor, sorted_indices: Tensor, probs: Tensor) -> FusedCall:
    return FusedCall((rows, sorted_indices), {"probs": probs, "padded_mode": False})


def _unpermute_examples(make: Maker) -> Iterator[Example]:
    order = make.given([0, 7, 6, 5, 3, 1, 2, 4], torch.int32)
    yield Example("two of five", (make.floats(8, 16), order, make.positive(4, 2)), {})


def _map_limits(tokens: Tensor, routing_map: Tensor, num_choices: int) -> str | None:
    if routing_map.dtype != torch.bool or len(routing_map) != len(tokens):
        return f"it takes a (T, E) bool map, not {tuple(routing_map.shape)} in {routing_map.dtype}"
    return None if 0 < num_choices <= MAX_CHOICES else f"it takes 1 to {MAX_CHOICES} experts of a token"


def _map_call(tokens: Tensor, routing_map: Tensor, num_choices: int) -> FusedCall:
    return FusedCall((tokens, routing_map), {"num_out_tokens": len(tokens) * num_choices, "drop_and_pad": False})


def _rows_and_indices(outputs: tuple[Tensor, Tensor, Tensor], *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    rows, _, indices = outputs  # between them: the rows' probabilities, where some are given
    return rows, indices


MAP = [[1, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1], [1, 1, 0, 0, 0]]


def _map_examples(make: Maker) -> Iterator[Example]:
    yield Example("two of five", (make.floats(4, 8), make.given(MAP, torch.bool), 2), {})


def _unmap_call(rows: Tensor, sorted_indices: Tensor, probs: Tensor, routing_map: Tensor) -> FusedCall:
    given = {"probs": probs, "routing_map": routing_map, "drop_and_pad": False}
    return FusedCall((rows, sorted_indices, [len(probs), rows.shape[1]]), given)


def _unmap_limits(rows: Tensor, sorted_indices: Tensor, probs: Tensor, routing_map: Tensor) -> str | None:
    return _unpermute_limits(rows, sorted_indices, probs)


def _unmap_examples(make: Maker) -> Iterator[Example]:
    order = make.given([0, 3, 3, 2, 1, 0, 1, 2], torch.int32)
    yield Example("two of five", (make.floats(8, 16), order, make.positive(4, 5), make.given(MAP, torch.bool)), {})


TOKEN_PERMUTE = Operator(
    "npu_moe_token_permute",
    token_permute,
    _permute_call,
    _permute_examples,
    dtypes=(torch.bfloat16,),
    gradients="own",
    limits=_permute_limits,
)
TOKEN_UNPERMUTE = Operator(
    "npu_moe_token_unpermute",
    token_unpermute,
    _unpermute_call,
    _unpermute_examples,
    dtypes=(torch.bfloat16,),
    gradients="own",
    limits=_unpermute_limits,
)
TOKEN_PERMUTE_WITH_MAP = Operator(
    "npu_moe_token_permute_with_routing_map",
    token_permute_with_map,
    _map_call,
    _map_examples,
    gradients="own",
    limits=_map_limits,
    result=_rows_and_indices,
)
TOKEN_UNPERMUTE_WITH_MAP = Operator(
    "npu_moe_token_unpermute_with_routing_map",
    token_unpermute_with_map,
    _unmap_call,
    _unmap_examples,
    gradients="own",
    limits=_unmap_limits,
)
