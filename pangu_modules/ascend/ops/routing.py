"""How tokens choose experts, by the operators for inference; and the grouped choice of MoGE by one of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator

MAX_CHOICES = 1024
MAX_EXPERTS = 2048

Choice = tuple[Tensor, Tensor, Tensor]


def gating_top_k_softmax(x: Tensor, k: int, finished: Tensor | None = None) -> Choice:
    """Return the k largest of each row's softmax, their experts, and the places of the choices.

    Args:
        x: (R, E) logits.
        k: experts of a row.
        finished: (R,) bool: such rows get the expert E, which is none.

    Returns:
        (R, k) as x, not divided by their sum; (R, k) int32; (R, k) int32: choice j of row i has the place j R + i.
    """
    values, experts = _wide(x).softmax(-1).topk(k, dim=-1)
    if finished is not None:
        experts = experts.masked_fill(finished[:, None], x.shape[-1])
    return values.to(x.dtype), experts.to(torch.int32), _places(x.shape[0], k, x.device)


def gating_top_k_renormalized(x: Tensor, k: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the softmax over each row's k largest logits, and their experts; arguments as `gating_top_k_softmax`."""
    values, experts = _wide(x).topk(k, dim=-1)
    if finished is not None:
        experts = experts.masked_fill(finished[:, None], x.shape[-1])
    return values.softmax(-1).to(x.dtype), experts.to(torch.int32)


def gating_top_k(
    x: Tensor, k: int, bias: Tensor | None = None, groups: int = 1, kept_groups: int = 1, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the gates and experts of DeepSeek-V3's router: the k best of each row's best groups, by biased sigmoids.

    A group counts by its two best biased scores. The gates are the unbiased scores over their sum, times `scaling`.

    Args:
        x: (R, E) logits.
        k: experts of a row.
        bias: (E,), added to the scores for the choice alone.
        groups: groups of consecutive experts.
        kept_groups: groups that a row's experts come from.
        scaling: factor of the gates.
    """
    scores = _wide(x).sigmoid()
    biased = scores if bias is None else scores + _wide(bias)
    if kept_groups < groups:
        grouped = biased.unflatten(-1, (groups, -1))
        kept = grouped.topk(2, dim=-1).values.sum(-1).topk(kept_groups, dim=-1).indices
        hidden = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, kept, False)
        biased = grouped.masked_fill(hidden[..., None], -torch.inf).flatten(-2)
    experts = biased.topk(k, dim=-1).indices
    gates = scores.gather(-1, experts)
    gates = gates / (gates.sum(-1, keepdim=True) + 1e-20) * scaling
    return gates.to(x.dtype), experts.to(torch.int32)


def route_in_groups(logits: Tensor, num_groups: int, num_experts_per_tok: int) -> tuple[Tensor, Tensor]:
    """Return MoGE's gates and experts (arXiv:2505.21411, section 2): the best K/M of each of M groups.

    A softmax within a group, times the group's share of the whole, ``softmax(logsumexp of each group)``, is the softmax
    over all experts; so `gating_top_k_softmax` on the groups as rows chooses and weighs them.

    Args:
        logits: (T, N).
        num_groups: M, divides N and K.
        num_experts_per_tok: K.

    Returns:
        (T, K) gates and (T, K) int64 experts, group after group.
    """
    tokens, experts = logits.shape
    size, k = experts // num_groups, num_experts_per_tok // num_groups
    grouped = logits.view(tokens, num_groups, size)
    values, local, _ = GATING_TOP_K_SOFTMAX(grouped.reshape(tokens * num_groups, size), k)
    shares = grouped.logsumexp(-1).softmax(-1)
    gates = values.view(tokens, num_groups, k) * shares[..., None]
    first = torch.arange(0, experts, size, device=logits.device)
    ids = local.view(tokens, num_groups, k).to(torch.int64) + first[:, None]
    return gates.flatten(1), ids.flatten(1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _places(rows: int, k: int, device: torch.device) -> Tensor:
    return torch.arange(k * rows, dtype=torch.int32, device=device).view(k, rows).t().contiguous()


def _limits(x: Tensor, k: int, finished: Tensor | None = None) -> str | None:
    if x.ndim != 2 or not x.shape[0]:
        return f"it takes rows of logits, not {tuple(x.shape)}"
    if not 0 < k <= min(MAX_CHOICES, x.shape[1]):
        return f"{k} choices among {x.shape[1]}: it takes 1 to {min(MAX_CHOICES, x.shape[1])}"
    return None


def _call(x: Tensor, k: int, finished: Tensor | None = None) -> FusedCall:
    return FusedCall((x,), {"finished": finished, "k": k})


def _examples(make: Maker) -> Iterator[Example]:
    x = make.floats(6, 8)
    yield Example("two of eight", (x, 2), {})
    finished = make.given([False, True, False, False, True, False], torch.bool)
    yield Example("finished rows", (x, 2), {"finished": finished})


def _renormalized_call(x: Tensor, k: int, finished: Tensor | None = None) -> FusedCall:
    return FusedCall((x,), {"k": k, "finished": finished, "renorm": 1, "output_softmax": False})


def _two(outputs: Choice, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    return outputs[0], outputs[1]


def _group_limits(
    x: Tensor, k: int, bias: Tensor | None = None, groups: int = 1, kept_groups: int = 1, scaling: float = 1.0
) -> str | None:
    if x.ndim != 2 or not x.shape[0] or x.shape[1] > MAX_EXPERTS:
        return f"it takes rows of at most {MAX_EXPERTS} logits, not {tuple(x.shape)}"
    if bias is not None and bias.dtype != x.dtype:
        return f"bias is {bias.dtype} and x is {x.dtype}, and it takes one type"
    return None if x.shape[1] // groups > 2 else f"groups of {x.shape[1] // groups} are too small"


def _group_call(
    x: Tensor, k: int, bias: Tensor | None = None, groups: int = 1, kept_groups: int = 1, scaling: float = 1.0
) -> FusedCall:
    by_two_best, sigmoid = 1, 1
    return FusedCall(
        (x, k),
        {
            "bias": bias,
            "k_group": kept_groups,
            "group_count": groups,
            "group_select_mode": by_two_best,
            "renorm": 0,  # the only value; sigmoid scores are divided by their sum all the same
            "norm_type": sigmoid,
            "routed_scaling_factor": scaling,
        },
    )


def _group_examples(make: Maker) -> Iterator[Example]:
    grouping = {"groups": 4, "kept_groups": 2, "scaling": 2.5}
    yield Example("two of four groups", (make.floats(6, 16), 3), {"bias": make.floats(16), **grouping})
    yield Example("without a bias", (make.floats(6, 16), 3), grouping)


GATING_TOP_K_SOFTMAX = Operator(
    "npu_moe_gating_top_k_softmax", gating_top_k_softmax, _call, _examples, gradients="recomputed", limits=_limits
)
GATING_TOP_K_RENORMALIZED = Operator(
    "npu_moe_gating_top_k_softmax_v2",
    gating_top_k_renormalized,
    _renormalized_call,
    _examples,
    gradients="recomputed",
    limits=_limits,
    result=_two,
)
GATING_TOP_K = Operator(
    "npu_moe_gating_top_k",
    gating_top_k,
    _group_call,
    _group_examples,
    gradients="recomputed",
    limits=_group_limits,
    result=_two,
)
