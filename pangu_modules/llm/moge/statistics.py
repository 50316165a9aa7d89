"""How evenly a router loads experts and devices: pure functions of its decisions, and a meter over many batches.

The imbalance score of a batch X on D devices that hold N/D consecutive experts each (arXiv:2505.21411, section 2):

    IS(X) = (max_i T_i(X) - min_i T_i(X)) / |X|

with T_i the (token, expert) pairs on device i and |X| the tokens of the batch. It is 0 for every batch of a MoGE router
whose groups fill whole devices.

Legend: L layers, T tokens, K experts per token, N experts, D devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pangu_modules.common.config import Config


class LoadConfig(Config):
    """At which sizes, and for how many devices, load is measured."""

    token_counts: tuple[PositiveInt, ...] = Field(
        (16, 128, 2048), min_length=1, description="Batch sizes at which imbalance is measured, tokens."
    )
    num_devices: PositiveInt | None = Field(
        None, description="Devices that share the experts, as consecutive ones; empty: one for each group."
    )


def device_counts(expert_ids: Tensor, num_experts: int, num_devices: int, tokens: int | None = None) -> Tensor:
    """Return the rows that each device receives from each batch of `tokens` consecutive tokens.

    Args:
        expert_ids: (..., T, K) int64; leading dimensions (layers) are kept.
        num_experts: N.
        num_devices: D, divides N.
        tokens: tokens of a batch; None for all T. What fills no batch is left out.

    Returns:
        (..., batches, D) int64.

    Raises:
        ValueError: the devices do not divide the experts.
    """
    check_devices(num_experts, num_devices)
    *leading, num_tokens, num_choices = expert_ids.shape
    size = num_tokens if tokens is None else tokens
    batches = num_tokens // size if size else 1
    devices = expert_ids[..., : batches * size, :] // (num_experts // num_devices)
    rows = devices.reshape(*leading, batches, size * num_choices)
    counts = torch.zeros(*leading, batches, num_devices, dtype=torch.int64, device=expert_ids.device)
    return counts.scatter_add_(-1, rows, torch.ones_like(rows))


def imbalance_score(expert_ids: Tensor, num_experts: int, num_devices: int, tokens: int | None = None) -> Tensor:
    """Return IS of each batch, (..., batches) float64; arguments as in `device_counts`."""
    counts = device_counts(expert_ids, num_experts, num_devices, tokens)
    size = expert_ids.shape[-2] if tokens is None else tokens
    return (counts.amax(-1) - counts.amin(-1)).double() / max(size, 1)


def max_over_mean(counts: Tensor) -> Tensor:
    """Return the largest load as a multiple of the mean load, (...) float64; counts (..., n); 1 without any load.

    On devices it is the time of the slowest as a multiple of a balanced layer's.
    """
    mean = counts.double().mean(-1)
    return torch.where(mean > 0, counts.double().amax(-1) / mean.clamp(min=torch.finfo(torch.float64).tiny), 1.0)


def coefficient_of_variation(counts: Tensor) -> Tensor:
    """Return standard deviation over mean of loads, (...) float64; counts (..., n); 0 without any load."""
    counts = counts.double()
    mean = counts.mean(-1)
    deviation = counts.std(-1, correction=0)
    return torch.where(mean > 0, deviation / mean.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def dead_experts(counts: Tensor) -> Tensor:
    """Return how many experts received no token, (...) int64; counts (..., N)."""
    return (counts == 0).sum(-1)


def balanced_token_probability(num_experts: int, num_experts_per_tok: int, num_devices: int) -> float:
    """Return the probability that K experts drawn uniformly from N put the same number on each of D devices.

    It is P(IS = 0) for one token of an untrained top-K router: C(N/D, K/D)^D / C(N, K).

    Raises:
        ValueError: the devices do not divide the experts.
    """
    check_devices(num_experts, num_devices)
    if num_experts_per_tok % num_devices:
        return 0.0
    ways = math.comb(num_experts // num_devices, num_experts_per_tok // num_devices) ** num_devices
    return ways / math.comb(num_experts, num_experts_per_tok)


def check_devices(num_experts: int, num_devices: int) -> None:
    """Refuse devices that do not divide the experts."""
    if num_devices < 1 or num_experts % num_devices:
        valid = [number for number in range(1, num_experts + 1) if num_experts % number == 0]
        raise ValueError(
            f"num_devices={num_devices} does not divide num_experts={num_experts}: each device holds the same number "
            f"of experts; possible are {', '.join(map(str, valid))}"
        )


@dataclass(frozen=True)
class LoadSummary:
    """What a `LoadMeter` has seen.

    Attributes:
        counts: (L, N) int64, tokens of each expert.
        imbalance: by tokens of a batch: (L,) float64, mean imbalance score; sizes of which no batch was seen are
            missing here and below.
        device_max_over_mean: by tokens of a batch: (L,) float64, mean of the most loaded device over the mean device.
        balanced: by tokens of a batch: (L,) float64, share of the batches with imbalance score 0.
    """

    counts: Tensor
    imbalance: Mapping[int, Tensor]
    device_max_over_mean: Mapping[int, Tensor]
    balanced: Mapping[int, Tensor]

    def scalars(self) -> dict[str, float]:
        """Return means over layers by name: cv, max_over_mean, dead_experts (sum), and two per batch size."""
        values = {
            "cv": float(coefficient_of_variation(self.counts).mean()),
            "max_over_mean": float(max_over_mean(self.counts).mean()),
            "dead_experts": float(dead_experts(self.counts).sum()),
        }
        for tokens, scores in self.imbalance.items():
            values[f"imbalance_{tokens}"] = float(scores.mean())
            values[f"device_max_over_mean_{tokens}"] = float(self.device_max_over_mean[tokens].mean())
        return values


class LoadMeter:
    """Adds up loads over batches of any length: counts per expert, imbalance at several batch sizes.

    Tokens that do not fill a batch of the largest size yet are kept for the next call, so that the sizes need not fit
    the data's batches. Nothing leaves the device until `summary`.

    Args:
        num_experts: N.
        num_devices: D, divides N.
        token_counts: batch sizes, in tokens, at which the imbalance is measured.

    Raises:
        ValueError: the devices do not divide the experts, or there is no batch size.
    """

    def __init__(self, num_experts: int, num_devices: int, token_counts: Sequence[int]) -> None:
        check_devices(num_experts, num_devices)
        if not token_counts or min(token_counts) < 1:
            raise ValueError(f"token_counts={list(token_counts)}: give batch sizes of at least one token")
        self.num_experts, self.num_devices = num_experts, num_devices
        self.token_counts = tuple(sorted(set(token_counts)))
        self.totals: Tensor | None = None  # (L, N + 4 per size): counts; batches, and sums of the three quantities
        self._waiting: Tensor | None = None  # (L, T', K)

    def update(self, expert_ids: Tensor) -> None:
        """Add the decisions of all layers on the same T tokens, (L, T, K) int64."""
        layers = len(expert_ids)
        if self.totals is None:
            width = self.num_experts + 4 * len(self.token_counts)
            self.totals = torch.zeros(layers, width, dtype=torch.float64, device=expert_ids.device)
        chosen = expert_ids.reshape(layers, -1)
        ones = torch.ones_like(chosen, dtype=torch.float64)
        self.totals[:, : self.num_experts].scatter_add_(-1, chosen, ones)
        waiting = expert_ids if self._waiting is None else torch.cat((self._waiting, expert_ids), dim=1)
        whole = waiting.shape[1] - waiting.shape[1] % self.token_counts[-1]
        if whole:
            self._measure(waiting[:, :whole], self.token_counts)
        self._waiting = waiting[:, whole:]

    def finish(self) -> Tensor | None:
        """Measure what still waits at the sizes it fills, and return the sums: what data-parallel ranks add up.

        Returns:
            (L, N + 4 sizes) float64, or None if nothing was seen.
        """
        if self._waiting is not None:
            self._measure(self._waiting, [size for size in self.token_counts if size <= self._waiting.shape[1]])
            self._waiting = None
        return self.totals

    def summary(self, totals: Tensor | None = None) -> LoadSummary:
        """Return what was seen; `totals` are the sums of all ranks, or None for this meter's own.

        Raises:
            ValueError: nothing was seen.
        """
        own = self.finish() if totals is None else totals
        if own is None:
            raise ValueError("no batch yet: there is no load to summarize")
        own = own.cpu()
        imbalance, ratios, balanced = {}, {}, {}
        for number, size in enumerate(self.token_counts):
            start = self.num_experts + 4 * number
            batches, scores, maxima, zeros = own[:, start : start + 4].unbind(-1)
            if batches[0] > 0:
                imbalance[size], ratios[size], balanced[size] = scores / batches, maxima / batches, zeros / batches
        return LoadSummary(own[:, : self.num_experts].long(), imbalance, ratios, balanced)

    def _measure(self, expert_ids: Tensor, sizes: Sequence[int]) -> None:
        assert self.totals is not None
        for size in sizes:
            rows = device_counts(expert_ids, self.num_experts, self.num_devices, size)
            scores = (rows.amax(-1) - rows.amin(-1)).double() / size
            parts = (torch.ones_like(scores), scores, max_over_mean(rows), (scores == 0).double())
            start = self.num_experts + 4 * self.token_counts.index(size)
            self.totals[:, start : start + 4] += torch.stack([part.sum(-1) for part in parts], dim=-1)
