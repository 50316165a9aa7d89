"""Rows of tokens sorted by expert, and added up again.

Legend: T tokens, K experts per token, S = T K rows, E experts, M groups, h hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowOrder(NamedTuple):
    """How S = T K rows are sorted by expert.

    Args:
        pairs: (S,) int64, place of each sorted row in the k-major list of pairs (k T + t).
        tokens: (S,) int64, token of each sorted row.
        ends: (E,) int32, one past the last row of each expert: cumulative counts.
        num_tokens: T.
    """

    pairs: Tensor
    tokens: Tensor
    ends: Tensor
    num_tokens: int


def sort_rows(expert_ids: Tensor, num_experts: int, num_groups: int = 1) -> RowOrder:
    """Sort the (token, expert) pairs by expert, and by token for each expert.

    Args:
        expert_ids: (T, K).
        num_experts: E.
        num_groups: M: pairs are only sorted inside groups, because the list starts group after group.
    """
    num_tokens = expert_ids.shape[0]
    flat = expert_ids.t().reshape(-1)
    keys = flat.view(num_groups, -1)
    local = keys.argsort(dim=-1, stable=True)
    first = torch.arange(0, flat.numel() or 1, keys.shape[1] or 1, device=flat.device)[:num_groups]
    pairs = (local + first[:, None]).reshape(-1) if num_tokens else flat
    counts = count_rows(flat, num_experts)
    return RowOrder(pairs, pairs % max(num_tokens, 1), counts.cumsum(0, dtype=torch.int32), num_tokens)


def count_rows(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Return the rows of each expert, (E,) int64, without waiting for the device."""
    ids = expert_ids.reshape(-1)
    if ids.device.type == "cpu":
        return torch.bincount(ids, minlength=num_experts)
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))


def combine_rows(rows: Tensor, order: RowOrder) -> Tensor:
    """Add up the rows of each token, (S, h) to (T, h)."""
    if rows.is_cpu and rows.dtype in (torch.float32, torch.float64):
        return rows.new_zeros(order.num_tokens, rows.shape[1]).index_add_(0, order.tokens, rows)
    # On an accelerator index_add has no fixed order of additions; in low precision it rounds at each of them.
    inverse = torch.empty_like(order.pairs)
    inverse[order.pairs] = torch.arange(order.pairs.numel(), device=rows.device)
    num_choices = order.pairs.numel() // max(order.num_tokens, 1)
    return rows.index_select(0, inverse).view(num_choices, order.num_tokens, rows.shape[1]).sum(0)
