"""Which heads, groups and channels to keep, from their scores (Pangu Light sections on width and head pruning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pangu_modules.common.config import Config
from pangu_modules.llm.pruning.pangu_light.importance import Importance


class PanguLightSelection(Config):
    """What stays of one model: indices per axis and the norms' factors; bound to the weights it was made for."""

    measured: ClassVar[bool] = True

    fingerprint: str = Field(description="Hash of the weights the selection was made for.")
    layers: tuple[int, ...] = Field(description="Kept layers.")
    query_heads: tuple[tuple[int, ...], ...] = Field(description="Kept query heads of every layer, dropped ones too.")
    groups: tuple[tuple[tuple[int, int], ...], ...] = Field(
        description="KV groups of every kept layer, as (layer they come from, index there)."
    )
    channels: tuple[tuple[int, ...], ...] = Field(description="Kept FFN channels of every kept layer.")
    hidden: tuple[int, ...] = Field(description="Kept hidden channels.")
    norm_factors: dict[str, float] = Field(
        description="Factor on every norm's gain, by its name in the unpruned model."
    )
    block_influence: tuple[float, ...] = Field(description="1 - mean cos(input, output) of every layer.")
    layer_scores: tuple[float, ...] = Field(description="Score of every layer under the depth criterion.")
    fold_gain: bool = Field(description="Fold norm gains into adopted groups.")
    laco: bool = Field(description="Merge dropped layers by parameter differences.")


def top_k(scores: Tensor, k: int) -> list[int]:
    """Return the indices of the k largest scores (size,) in ascending order; a tie goes to the lower index.

    Raises:
        ValueError: k is not between 1 and the number of scores.
    """
    if not 1 <= k <= len(scores):
        raise ValueError(f"cannot keep {k} of {len(scores)}: keep at least 1 and at most all")
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:k].tolist())


def select_query_heads(scores: Tensor, num_groups: int, per_group: int) -> list[int]:
    """Return the best `per_group` query heads of every KV group, so that the groups stay equal and contiguous.

    Args:
        scores: (num_heads,), one layer's head scores.
        num_groups: KV groups K; query heads g*q to g*q+q-1 share the key/value head g.
        per_group: query heads to keep in each group, q'.
    """
    size = len(scores) // num_groups
    best = [top_k(group, per_group) for group in scores.view(num_groups, size)]
    return [group * size + head for group in range(num_groups) for head in best[group]]


def group_scores(scores: Tensor, kept_heads: Sequence[int], num_groups: int) -> Tensor:
    """Return S_KV (num_groups,): the mean score of the query heads each KV group retains.

    Args:
        scores: (num_heads,), one layer's head scores.
        kept_heads: the query heads kept, equally many per group, in order.
        num_groups: KV groups K.
    """
    return scores[torch.tensor(kept_heads)].view(num_groups, -1).mean(1)


def random_scores(importance: Importance, seed: int) -> Importance:
    """Return uniform random scores for width, FFN and heads (the control); layer scores stay as they are."""
    generator = torch.Generator().manual_seed(seed)

    def like(scores: Tensor) -> Tensor:
        return torch.rand(scores.shape, dtype=scores.dtype, generator=generator)

    return Importance(
        hidden=like(importance.hidden),
        heads=like(importance.heads),
        channels=like(importance.channels),
        layers=importance.layers,
    )
