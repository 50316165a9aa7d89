"""Head importance by Pearson similarity and the greedy exchange (SlimLLM, arXiv:2505.22689).

A unit (a head, or a KV group with its query heads) i contributes ``o_i = z_i W_i^T`` to the attention output
``o = sum_i o_i``. The similarity of what a set S of units computes to the whole is

    sim(S) = sum_d | corr_t( o_S[t, d], o[t, d] ) |

over output dimensions d. Everything is derived from ``G_d[i, j] = cov_t(o_i[:, d], o_j[:, d])``, so that no token
dimension is left; G itself follows from the covariance of the inputs z of the output matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pangu_modules.llm.calibration.statistics import StreamingCovariance
from pangu_modules.llm.pruning.slimllm.regression import FitMoments


@dataclass(frozen=True)
class UnitGram:
    """Covariances between the contributions of all units, per output dimension.

    Shapes: `gram` (size, units, units), `means` (size, units): the mean contribution of each unit.
    """

    gram: Tensor
    means: Tensor

    @classmethod
    def of(cls, inputs: StreamingCovariance, weight: Tensor, num_units: int) -> UnitGram:
        """Derive the Gram matrices from the inputs' statistics.

        Args:
            inputs: statistics of z, (units * width,), the input of the output matrix.
            weight: (size, units * width), the output matrix.
            num_units: number of equal column blocks.
        """
        covariance = inputs.covariance
        weight = weight.detach().to(covariance)
        blocks = weight.unflatten(1, (num_units, -1))
        rows = covariance.unflatten(0, (num_units, -1))
        gram = torch.stack(
            [(blocks[:, i] @ rows[i]).mul_(weight).unflatten(1, (num_units, -1)).sum(-1) for i in range(num_units)],
            dim=1,
        )
        mean_inputs = inputs.means[0].unflatten(0, (num_units, -1))
        return cls(gram=gram, means=torch.einsum("dih,ih->di", blocks, mean_inputs))

    @property
    def num_units(self) -> int:
        """Number of units."""
        return self.gram.shape[1]

    def moments(self, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return cov(o_S, o) and var(o_S) per dimension, (size,) each, for the set S of kept units."""
        chosen = self.gram[:, list(kept)]
        return chosen.sum((1, 2)), chosen[:, :, list(kept)].sum((1, 2))

    def fit_moments(self, kept: Sequence[int]) -> FitMoments:
        """Return the moments of ``u = o_S`` and ``y = o`` for the repair of the output matrix."""
        covariance, variance = self.moments(kept)
        return FitMoments(self.means[:, list(kept)].sum(1), self.means.sum(1), variance, covariance)

    def similarity(self, kept: Sequence[int]) -> float:
        """Return sim(S) for the set of kept units."""
        return float(self._similarity(*self.moments(kept)))

    def similarities_without_each(self) -> Tensor:
        """Return sim(all units but i) for every i, (units,): high means unimportant."""
        rows = self.gram.sum(2)
        total = rows.sum(1, keepdim=True)
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        return self._similarity(total - rows, total - 2 * rows + diagonal)

    def similarities_of_swaps(self, kept: Sequence[int], newcomer: int) -> Tensor:
        """Return sim of the kept set with each member in turn replaced by `newcomer`, (len(kept),)."""
        members = list(kept)
        covariance, variance = self.moments(members)
        rows = self.gram.sum(2)
        within = self.gram[:, :, members].sum(2)
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        new_covariance = covariance[:, None] - rows[:, members] + rows[:, newcomer, None]
        new_variance = (
            variance[:, None]
            - 2 * within[:, members]
            + diagonal[:, members]
            + 2 * (within[:, newcomer, None] - self.gram[:, members, newcomer])
            + diagonal[:, newcomer, None]
        )
        return self._similarity(new_covariance, new_variance)

    def _similarity(self, covariance: Tensor, variance: Tensor) -> Tensor:
        """Sum |cov / (std_S std)| over dimensions (axis 0); a dimension of zero standard deviation adds 0."""
        total = self.gram.sum((1, 2)).clamp_min(0)
        whole = total if covariance.ndim == 1 else total[:, None]
        product = (variance.clamp_min(0) * whole).sqrt()
        return torch.where(product > 0, covariance.abs() / product.masked_fill(product <= 0, 1), 0).sum(0)


def remove_units(gram: UnitGram, num_remove: int, *, greedy: bool = True, num_groups: int = 1) -> list[int]:
    """Choose the units to keep: remove those whose absence changes least, then exchange greedily.

    Args:
        gram: covariances of the contributions.
        num_remove: units to remove from every group, less than a group's size.
        greedy: give each removed unit, least important first, one chance to replace a kept unit.
        num_groups: number of equal groups of neighbouring units; removal and exchange stay inside a group.

    Returns:
        The kept units, ascending.
    """
    without = gram.similarities_without_each()
    size = gram.num_units // num_groups
    order = torch.sort(without, descending=True, stable=True).indices.tolist()
    removed: list[int] = []
    for group in range(num_groups):
        removed += [unit for unit in order if unit // size == group][:num_remove]
    removed.sort(key=order.index)
    kept = [unit for unit in range(gram.num_units) if unit not in removed]
    return greedy_exchange(gram, kept, removed, size) if greedy else kept


def remove_lowest(scores: Tensor, num_remove: int, num_groups: int = 1) -> list[int]:
    """Return the units that stay when `num_remove` of lowest score go from each group; ties go to the higher index.

    Args:
        scores: (units,), larger is more important.
        num_remove: units to remove from every group.
        num_groups: number of equal groups of neighbouring units.
    """
    size = len(scores) // num_groups
    kept: list[int] = []
    for group in range(num_groups):
        order = torch.sort(scores[group * size : (group + 1) * size], descending=True, stable=True).indices
        kept += [group * size + int(unit) for unit in order[: size - num_remove]]
    return sorted(kept)


def greedy_exchange(gram: UnitGram, kept: Sequence[int], removed: Sequence[int], group_size: int) -> list[int]:
    """Let each removed unit in turn replace the kept unit of its group whose exchange raises sim(S) most, if any does.

    A unit that was swapped out is not reconsidered. Cost: ``len(removed) * len(kept)`` similarities without tokens.

    Returns:
        The kept units, ascending.
    """
    members = list(kept)
    best = gram.similarity(members)
    for newcomer in removed:
        swaps = gram.similarities_of_swaps(members, newcomer)
        allowed = torch.tensor([unit // group_size == newcomer // group_size for unit in members], device=swaps.device)
        swaps = swaps.masked_fill(~allowed, -1.0)
        place = int(swaps.argmax())
        if float(swaps[place]) > best:
            best = float(swaps[place])
            members[place] = newcomer
    return sorted(members)
