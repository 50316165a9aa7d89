"""Rows of tokens sorted by their experts and put back, by the operators for inference; `tokens` has those for training.

Legend: T tokens, K experts of a token, E experts, h width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator

MAX_PAIRS = 16_777_215  # below: the operators sort numbers that float32 holds
MAX_EXPERTS = 2048
COUNTS = 1


def init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the (token, expert) pairs by expert.

    Args:
        x: (T, h).
        row_idx: (T, K) int32, the place j T + i of choice j of token i.
        expert_idx: (T, K) int32.

    Returns:
        (T K, h) rows by expert; (T K,) int32, where each place's row is; (T K,) int32, the rows' experts.
    """
    experts, order = expert_idx.flatten().sort(stable=True)
    places = row_idx.flatten()[order].to(torch.int64)
    rows = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device=x.device))
    return x[places % x.shape[0]], rows.to(torch.int32), experts


def init_routing_v2(x: Tensor, expert_idx: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the (token, expert) pairs by expert, and by token for each expert.

    Args:
        x: (T, h).
        expert_idx: (T, K) int32.
        num_experts: E.

    Returns:
        (T K, h) rows by expert; (T K,) int32, the row of pair i K + j; (E,) int64, rows of each expert.
    """
    order = expert_idx.flatten().argsort(stable=True)
    rows = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return x[order // expert_idx.shape[1]], rows.to(torch.int32), _counts(expert_idx, num_experts)


def compute_expert_tokens(sorted_experts: Tensor, num_experts: int) -> Tensor:
    """Return where each expert's rows end, (E,) int32, from the experts of sorted rows, int32."""
    return _counts(sorted_experts, num_experts).cumsum(0, dtype=torch.int32)


def finalize_routing(
    rows: Tensor,
    scales: Tensor,
    places: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """Return ``skip[i] + sum over j of scales[i, j] (rows[places[j T + i]] + bias[experts[i, j]])``, (T, h).

    Args:
        rows: (T K, h), as `init_routing` sorted them.
        scales: (T, K) gates.
        places: (T K,) int32, the second result of `init_routing`.
        experts: (T, K) int32.
        bias: (E, h), or None for none.
        skip: (T, h), or None.
    """
    tokens, k = scales.shape
    chosen = rows[places.view(k, tokens).t().to(torch.int64)]
    if bias is not None:
        chosen = chosen + bias[experts.to(torch.int64)]
    total = (scales[..., None] * chosen).sum(1)
    return total if skip is None else total + skip


def _counts(experts: Tensor, num_experts: int) -> Tensor:
    ids = experts.flatten().to(torch.int64)
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))


def _pair_limits(tokens: Tensor, ids: Tensor, dtype: torch.dtype) -> str | None:
    if tokens.ndim != 2 or ids.ndim != 2 or len(tokens) != len(ids):
        return f"it takes (T, h) and (T, K), not {tuple(tokens.shape)} and {tuple(ids.shape)}"
    if ids.dtype != dtype:
        return f"the experts are {ids.dtype}, and it takes {dtype}"
    if not 0 < ids.numel() < MAX_PAIRS:
        return f"there are {ids.numel()} pairs, and it takes 1 to {MAX_PAIRS - 1}"
    return None


def _init_limits(x: Tensor, row_idx: Tensor, expert_idx: Tensor) -> str | None:
    if row_idx.dtype != torch.int32:
        return f"row_idx is {row_idx.dtype}, and it takes int32"
    return _pair_limits(x, expert_idx, torch.int32)


def _init_call(x: Tensor, row_idx: Tensor, expert_idx: Tensor) -> FusedCall:
    return FusedCall((x, row_idx, expert_idx, x.shape[0]), {})


def _init_examples(make: Maker) -> Iterator[Example]:
    places = make.given([[0, 4], [1, 5], [2, 6], [3, 7]], torch.int32)
    yield Example("two of five", (make.floats(4, 8), places, make.choices(4, 5, 2, torch.int32)), {})


def _init_v2_limits(x: Tensor, expert_idx: Tensor, num_experts: int) -> str | None:
    return _pair_limits(x, expert_idx, torch.int32)


def _init_v2_call(x: Tensor, expert_idx: Tensor, num_experts: int) -> FusedCall:
    # Several defaults of the schema are values that the operator does not take: all are given.
    given = {
        "active_num": expert_idx.numel(),
        "expert_capacity": -1,
        "expert_num": num_experts,
        "drop_pad_mode": 0,
        "expert_tokens_num_type": COUNTS,
        "expert_tokens_num_flag": True,
        "quant_mode": -1,
        "active_expert_range": [0, num_experts],
        "row_idx_type": 0,
    }
    return FusedCall((x, expert_idx), given)


def _three(outputs: tuple[Tensor, ...], *args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
    return outputs[0], outputs[1], outputs[2]


def _init_v2_examples(make: Maker) -> Iterator[Example]:
    yield Example("two of five", (make.floats(4, 8), make.choices(4, 5, 2, torch.int32), 5), {})


def _tokens_limits(sorted_experts: Tensor, num_experts: int) -> str | None:
    return None if num_experts <= MAX_EXPERTS else f"{num_experts} experts are more than {MAX_EXPERTS}"


def _tokens_call(sorted_experts: Tensor, num_experts: int) -> FusedCall:
    return FusedCall((sorted_experts, num_experts), {})


def _tokens_examples(make: Maker) -> Iterator[Example]:
    yield Example("an expert without rows", (make.given([0, 0, 2, 2, 2, 3], torch.int32), 5), {})


def _final_limits(
    rows: Tensor,
    scales: Tensor,
    places: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
) -> str | None:
    if places.dtype != torch.int32 or experts.dtype != torch.int32:
        return "places and experts are not int32"
    others = [tensor for tensor in (scales, bias, skip) if tensor is not None]
    return (
        None if all(tensor.dtype == rows.dtype for tensor in others) else "rows, scales, bias and skip differ in type"
    )


def _final_call(
    rows: Tensor,
    scales: Tensor,
    places: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
) -> FusedCall:
    return FusedCall((rows, skip, None, bias, scales, places, experts), {"drop_pad_mode": 0})


def _final_examples(make: Maker) -> Iterator[Example]:
    places, experts = make.given([3, 0, 5, 1, 7, 2, 4, 6], torch.int32), make.choices(4, 5, 2, torch.int32)
    yield Example("rows alone", (make.floats(8, 16), make.positive(4, 2), places, experts), {})
    given = {"bias": make.floats(5, 16), "skip": make.floats(4, 16)}
    yield Example("bias and skip", (make.floats(8, 16), make.positive(4, 2), places, experts), given)


INIT_ROUTING = Operator("npu_moe_init_routing", init_routing, _init_call, _init_examples, limits=_init_limits)
INIT_ROUTING_V2 = Operator(
    "npu_moe_init_routing_v2",
    init_routing_v2,
    _init_v2_call,
    _init_v2_examples,
    limits=_init_v2_limits,
    result=_three,
)
COMPUTE_EXPERT_TOKENS = Operator(
    "npu_moe_compute_expert_tokens",
    compute_expert_tokens,
    _tokens_call,
    _tokens_examples,
    dtypes=(torch.int32,),
    limits=_tokens_limits,
)
FINALIZE_ROUTING = Operator(
    "npu_moe_finalize_routing",
    finalize_routing,
    _final_call,
    _final_examples,
    gradients="recomputed",
    limits=_final_limits,
)
