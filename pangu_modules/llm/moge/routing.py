"""How tokens choose experts from logits: MoGE, plain top-k, and DeepSeek's group-limited router.

MoGE (Pangu Pro MoE, arXiv:2505.21411, section 2): with scores ``s = softmax(x W^T)`` over all N experts, every token
takes the best K' = K / M experts of each of M groups of consecutive experts. Devices that hold whole groups then
receive the same number of token-rows for every batch. Gates are the selected global softmax values as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPED_ROUTING: dict[str, Callable[[Tensor, int, int], tuple[Tensor, Tensor]]] = {}
"""Fused operators by device type (``"npu"``): the weights and ids of `route_moge`, from its first three arguments."""


class Routing(NamedTuple):
    """What a router decides for T tokens.

    Args:
        weights: (T, K), gates of the selected experts, in the router's type.
        expert_ids: (T, K) int64. From a MoGE router, column block g of K' columns belongs to group g.
        scores: (T, N), each token's distribution over all experts, before any selection; rows sum to 1.
        logits: (T, N), what the scores come from.
    """

    weights: Tensor
    expert_ids: Tensor
    scores: Tensor
    logits: Tensor


def route_moge(
    logits: Tensor, num_groups: int, num_experts_per_tok: int, num_voted_experts: int | None = None
) -> Routing:
    """Select the best K' = K / M experts of each group by a softmax over all experts (arXiv:2505.21411, section 2).

    A device's fused operator (`GROUPED_ROUTING`) chooses and weighs where there is one.

    Args:
        logits: (T, N); group g owns experts g N/M ... (g+1) N/M - 1.
        num_groups: M, divides N and K.
        num_experts_per_tok: K.
        num_voted_experts: keep only this many experts of each group, those that are the first choice of most tokens.
    """
    num_tokens, num_experts = logits.shape
    scores = logits.softmax(-1)
    fused = GROUPED_ROUTING.get(logits.device.type)
    if fused is not None and num_voted_experts is None:
        return Routing(*fused(logits, num_groups, num_experts_per_tok), scores, logits)
    grouped = scores.view(num_tokens, num_groups, num_experts // num_groups)
    if num_voted_experts is not None:
        grouped = grouped * voted(grouped, num_voted_experts)
    if num_experts_per_tok == num_groups:  # K' = 1: a maximum, much cheaper than topk
        weights, local_ids = grouped.max(-1)
    else:
        weights, local_ids = grouped.topk(num_experts_per_tok // num_groups, dim=-1)
        weights, local_ids = weights.flatten(1), local_ids.flatten(1)
    first = torch.arange(0, num_experts, num_experts // num_groups, device=logits.device)
    expert_ids = local_ids + first.repeat_interleave(num_experts_per_tok // num_groups)
    return Routing(weights, expert_ids, scores, logits)


def voted(grouped: Tensor, num_voted_experts: int) -> Tensor:
    """Return a mask (1, M, N/M): 1 for the experts of each group that are the first choice of most tokens.

    Args:
        grouped: (T, M, N/M) scores.
        num_voted_experts: experts to keep in each group; of equally many votes the lower numbers are kept.
    """
    votes = F.one_hot(grouped.argmax(-1), grouped.shape[-1]).sum(0)
    order = votes.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(votes, dtype=grouped.dtype)
    return mask.scatter(-1, order[:, :num_voted_experts], 1.0)[None]


def route_topk(logits: Tensor, num_experts_per_tok: int) -> Routing:
    """Select the best K experts by a softmax over all of them, without groups; `logits` is (T, N)."""
    scores = logits.softmax(-1)
    weights, expert_ids = scores.topk(num_experts_per_tok, dim=-1)
    return Routing(weights, expert_ids, scores, logits)


def route_deepseek(
    logits: Tensor,
    num_groups: int,
    num_experts_per_tok: int,
    *,
    kept_groups: int | None = None,
    bias: Tensor | None = None,
) -> Routing:
    """Select the best K experts of each token's best groups, by sigmoid scores (DeepSeek-V3, arXiv:2412.19437).

    A group counts by the sum of its two best biased scores; gates are the unbiased scores. `Routing.scores` are the
    sigmoids divided by their sum.

    Args:
        logits: (T, N).
        num_groups: groups of consecutive experts.
        num_experts_per_tok: K.
        kept_groups: groups that stay; None for all, which is plain top-k over the biased scores.
        bias: (N,), added to the scores for the selection only.
    """
    sigmoids = logits.sigmoid()
    choice = sigmoids.detach() if bias is None else sigmoids.detach() + bias.to(sigmoids.dtype)
    if kept_groups is not None and kept_groups < num_groups:
        grouped = choice.unflatten(-1, (num_groups, -1))
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = group_scores.topk(kept_groups, dim=-1).indices
        mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, kept, True)
        choice = grouped.masked_fill(~mask[..., None], -torch.inf).flatten(1)
    expert_ids = choice.topk(num_experts_per_tok, dim=-1).indices
    scores = sigmoids / (sigmoids.sum(-1, keepdim=True) + 1e-20)
    return Routing(sigmoids.gather(-1, expert_ids), expert_ids, scores, logits)
