"""The auxiliary loss that balances experts inside their groups, as an objective of training.

    f_i = N / (K T) * sum_t 1[token t selects expert i],   p_i = 1 / T * sum_t s_{t,i},   L = sum_i f_i p_i

per layer, averaged over layers; 1 where all experts receive the same number of tokens (arXiv:2505.21411, section 2:
batch-level, on the softmax over all experts). f has no gradient. Padding counts neither in f nor in p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from pangu_modules.common.config import Config
from pangu_modules.llm.moge.block import recorded_routings
from pangu_modules.llm.moge.routing import Routing
from pangu_modules.llm.moge.rows import count_rows
from pangu_modules.llm.packing import num_sequences
from pangu_modules.training.objectives import Batch, Objective, Outputs

AuxiliaryScope = Literal["micro", "global"]


class BalancingConfig(Config):
    """Weights of the objectives that balance experts."""

    coefficient: NonNegativeFloat | None = Field(
        None,
        description="Weight of the auxiliary loss (alpha); 0: none; empty: the model's router_aux_loss_coef, 0.001 "
        "in the released model.",
    )
    scope: AuxiliaryScope = Field(
        "global", description="Tokens whose load is balanced: those of all data-parallel ranks, or of each (micro)."
    )
    z_coefficient: NonNegativeFloat = Field(0.0, description="Weight of the z-loss, which keeps logits small.")


def auxiliary_objective(coefficient: float = 0.001, scope: AuxiliaryScope = "global") -> Objective:
    """Return the auxiliary loss as an objective for ``module.objectives``; its weight is `coefficient` (alpha).

    It reads what the mixtures of ``module.model`` recorded in the forward pass, and returns the batch's loss for each
    of its sequences, (batch,), so that the objective's mean is the loss. `sample_weight` weights it like any loss.

    Args:
        coefficient: alpha; the released configuration has 0.001, the paper's own value is unpublished.
        scope: ``global`` counts the tokens of all data-parallel ranks, ``micro`` this rank's micro-batch alone. Under
            gradient accumulation both look at one micro-batch at a time.

    Raises:
        ValueError: the coefficient is negative.
    """
    if coefficient < 0:
        raise ValueError(f"the coefficient of the auxiliary loss must not be negative, got {coefficient}")

    def loss(module: Any, batch: Batch, outputs: Outputs) -> Tensor:
        routings = recorded_routings(module.model)
        value = auxiliary_loss(routings, padding_mask(batch), scope=scope)
        return value.expand(num_sequences(batch))

    return Objective(loss, weight=coefficient, packed=True)  # one value for all tokens of the batch


def z_objective(coefficient: float = 0.001) -> Objective:
    """Return the router's z-loss as an objective (ST-MoE, arXiv:2202.08906, equation 5): it keeps logits small."""

    def loss(module: Any, batch: Batch, outputs: Outputs) -> Tensor:
        value = z_loss(recorded_routings(module.model), padding_mask(batch))
        return value.expand(num_sequences(batch))

    return Objective(loss, weight=coefficient, packed=True)


def auxiliary_loss(
    routings: Sequence[Routing],
    mask: Tensor | None = None,
    *,
    scope: AuxiliaryScope = "global",
    group: Any = None,
) -> Tensor:
    """Return the auxiliary loss of a batch, a scalar: the mean over layers of ``sum_i f_i p_i``.

    In global scope, f counts the tokens of all ranks, and p is this rank's sum over the mean number of tokens of a
    rank: averaging gradients over ranks then gives those of the whole batch, of unequal or empty ranks too.

    Args:
        routings: what each layer decided on the same T tokens.
        mask: (T,), 0 at padding; None where there is none.
        scope: see `auxiliary_objective`.
        group: process group of the ranks; None for all of them.
    """
    counts = torch.stack([selected_counts(routing, mask) for routing in routings])
    num_tokens = counts.new_full((), len(routings[0].scores)) if mask is None else (mask.reshape(-1) != 0).sum()
    num_choices, num_experts = routings[0].expert_ids.shape[1], routings[0].scores.shape[1]
    totals = torch.cat([counts.flatten(), num_tokens.reshape(1)]).to(routings[0].scores.dtype)
    share = 1
    if scope == "global" and dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals, group=group)
        share = dist.get_world_size(group)
    tokens = totals[-1].clamp(min=1)
    fractions = totals[:-1].view(len(routings), num_experts) * num_experts / (num_choices * tokens)
    sums = torch.stack([_masked(routing.scores, mask).sum(0) for routing in routings])
    return (fractions * sums * (share / tokens)).sum(-1).mean()


def z_loss(routings: Sequence[Routing], mask: Tensor | None = None) -> Tensor:
    """Return the mean over layers and tokens of ``logsumexp(logits)^2``, a scalar; arguments as in `auxiliary_loss`."""
    squares = [_masked(routing.logits.logsumexp(-1).square()[:, None], mask).sum() for routing in routings]
    num_tokens = len(routings[0].logits) if mask is None else (mask.reshape(-1) != 0).sum().clamp(min=1)
    return torch.stack(squares).mean() / max(num_tokens, 1)


@torch.no_grad()
def selected_counts(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Return the tokens that selected each expert, (N,) int64; mask (T,) leaves out those where it is 0."""
    expert_ids, num_experts = routing.expert_ids, routing.scores.shape[1]
    if mask is None:
        return count_rows(expert_ids, num_experts)
    # Padding goes to an expert of its own, which is dropped: nothing depends on the data's shape.
    kept = (mask.reshape(-1, 1) != 0).to(expert_ids.device)
    return count_rows(torch.where(kept, expert_ids, num_experts), num_experts + 1)[:num_experts]


def padding_mask(batch: Batch) -> Tensor | None:
    """Return the batch's attention mask as (T,), or None where nothing is padding."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.reshape(-1)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * (mask.reshape(-1, 1) != 0).to(values)
