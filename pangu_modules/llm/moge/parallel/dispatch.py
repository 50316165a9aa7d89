"""Expert parallelism: tokens travel to the processes that hold their experts, and gated sums travel back.

Process r of W holds experts r N/W ... (r+1) N/W - 1. Under a MoGE router with W | M every token has exactly K/W experts
on every process, so that each process sends each of its tokens once to every process, and gets one partial sum back
from each: all sizes follow from the numbers of tokens, and nothing waits for the router (`static_dispatch`). Other
routers send one row for each (token, expert) pair, and processes have to tell each other how many (`counted_dispatch`).

Legend: T tokens of this process, K experts per token, N experts, M groups, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pangu_modules.llm.moge.rows import combine_rows, sort_rows

LocalExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What computes this process's experts: `(rows (R, h), local ids (R, k), gates (R, k)) -> gated sums (R, h)`."""


class Splits(NamedTuple):
    """Rows of an all-to-all, by the other process; None where all numbers are equal.

    Args:
        send: rows for each process, in order of ranks.
        receive: rows from each process.
    """

    send: list[int] | None = None
    receive: list[int] | None = None

    def reversed(self) -> Splits:
        """Return the splits of the way back."""
        return Splits(self.receive, self.send)


def static_dispatch(
    tokens: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    local_experts: LocalExperts,
    *,
    num_local_experts: int,
    group: dist.ProcessGroup,
    equal_tokens: bool = False,
) -> Tensor:
    """Return the routed part of a MoGE layer, (T, h), like `experts_forward` of one process with all experts.

    Every process of the group must call it, one without tokens too, and so must its backward pass.

    Args:
        tokens: (T, h).
        expert_ids: (T, K) int64 over all N experts, group after group as a MoGE router returns them.
        weights: (T, K), the gates.
        local_experts: gets (R, h) tokens of all processes, each with K/W local experts.
        num_local_experts: N/W.
        group: the W processes that share the experts.
        equal_tokens: all processes have the same T, so that not even T is exchanged.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    num_tokens = tokens.shape[0]
    splits = Splits() if equal_tokens else static_splits(token_numbers(tokens, group), rank)

    def by_process(pairs: Tensor) -> Tensor:  # (T, K) to (W T, K/W): column blocks belong to processes
        return pairs.view(num_tokens, world, pairs.shape[1] // world).transpose(0, 1).flatten(0, 1)

    rows = exchange(tokens.repeat(world, 1), splits, group)
    local_ids = exchange(by_process(expert_ids), splits, group) - rank * num_local_experts
    partial_sums = local_experts(rows, local_ids, exchange(by_process(weights), splits, group))
    returned = exchange(partial_sums, splits.reversed(), group)
    return returned.view(world, num_tokens, tokens.shape[1]).sum(0)


def counted_dispatch(
    tokens: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    local_experts: LocalExperts,
    *,
    num_local_experts: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """Return the routed part for any router, (T, h); arguments as in `static_dispatch`.

    The counts of rows are exchanged first, and the host waits for them. `local_experts` gets one row for each (token,
    expert) pair, with one expert each.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    order = sort_rows(expert_ids, world * num_local_experts)
    splits = counted_splits(order.ends[num_local_experts - 1 :: num_local_experts], group)

    def sorted_pairs(pairs: Tensor) -> Tensor:
        return pairs.t().reshape(-1).index_select(0, order.pairs)[:, None]

    rows = exchange(tokens.index_select(0, order.tokens), splits, group)
    local_ids = exchange(sorted_pairs(expert_ids), splits, group) - rank * num_local_experts
    outputs = local_experts(rows, local_ids, exchange(sorted_pairs(weights), splits, group))
    return combine_rows(exchange(outputs, splits.reversed(), group), order)


def static_splits(numbers: list[int], rank: int) -> Splits:
    """Return the rows that process `rank` sends and receives where every token visits every process once.

    Args:
        numbers: tokens of each process.
        rank: this process.
    """
    return Splits([numbers[rank]] * len(numbers), numbers)


def token_numbers(tokens: Tensor, group: dist.ProcessGroup) -> list[int]:
    """Return the number of tokens of each process of the group, in order of ranks."""
    own = torch.tensor([tokens.shape[0]], device=tokens.device)
    numbers = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(numbers, own, group=group)
    found: list[int] = torch.cat(numbers).tolist()
    return found


def counted_splits(ends: Tensor, group: dist.ProcessGroup) -> Splits:
    """Exchange counts of rows.

    Args:
        ends: (W,) integers, one past the last row for each process, in rows sorted by process.
        group: the W processes.
    """
    send = ends.diff(prepend=ends.new_zeros(1))
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send, group=group)
    return Splits(send.tolist(), receive.tolist())


def exchange(rows: Tensor, splits: Splits, group: dist.ProcessGroup) -> Tensor:
    """Send rows to all processes and return theirs, both in order of ranks; gradients travel the other way.

    Args:
        rows: (S, ...), of any type.
        splits: how many rows for, and from, each process.
        group: the processes.
    """
    received: Tensor = _Exchange.apply(rows, splits, group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, splits: Splits, group: dist.ProcessGroup) -> Tensor:
        ctx.splits, ctx.group = splits, group
        return _all_to_all(rows, splits, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grad, ctx.splits.reversed(), ctx.group), None, None


def _all_to_all(rows: Tensor, splits: Splits, group: dist.ProcessGroup) -> Tensor:
    count = rows.shape[0] if splits.receive is None else sum(splits.receive)
    received = rows.new_empty(count, *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), splits.receive, splits.send, group=group)
    return received
