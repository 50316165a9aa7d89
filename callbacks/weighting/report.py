"""What DWM logs, and adds to the run's report: the mean weight of each domain by round, and what the rounds did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.weighting.preferences import (
    CAPTION,
    DomainWeights,
    Preferences,
    RoundSummary,
    draw_preferences,
    write_preferences,
)
from callbacks.weighting.schedule import with_present_keys
from pangu_modules.llm.losses import count_targets, labels_of
from pangu_modules.llm.weighting.model import effective_batch_size
from pangu_modules.llm.weighting.update import UpdateResult, Weighed
from pangu_modules.report.parts import add_figure, add_table
from pangu_modules.training.callback import run_folder
from pangu_modules.training.module import batch_size

Sums = dict[str, list[float]]
"""By ``round/domain``: sequences, target tokens, their weights (1 is uniform) and the squares of these, added up."""


class Record:
    """Weights by round and domain, and by round updates, effective batch sizes and validation losses.

    Args:
        name: of the callback; metrics and tables have names that start with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds: dict[str, dict[str, float]] = {}
        self._sums: Sums = {}  # this process's, since the checkpoint
        self._sums_before: Sums = {}  # of all processes, before it

    def begin(self, number: int) -> None:
        """Begin a round: its first validation loss is the last one of the round before."""
        known = [record["last_loss"] for record in self.rounds.values() if "last_loss" in record]
        self.rounds[str(number)] = {"batches": 0, "updates": 0, "ess": 0.0}
        if known:
            self.rounds[str(number)] |= {"first_loss": known[-1], "last_loss": known[-1]}

    def validated(self, number: int, loss: float) -> None:
        """Keep a validation loss."""
        self.rounds[str(number)].setdefault("first_loss", loss)
        self.rounds[str(number)]["last_loss"] = loss

    def batch(
        self,
        number: int,
        batch: Mapping[str, Any],
        weighed: Weighed | None,
        updates: Sequence[UpdateResult],
        trainer: Trainer,
    ) -> dict[str, float]:
        """Count a batch and the updates before it; returns what to log.

        Args:
            number: of the round, from 0.
            batch: the batch; ``domain`` (batch,) tells its sequences' domains.
            weighed: its weights, or None for uniform ones.
            updates: the updates.
            trainer: its datamodule knows the domains' names.
        """
        size = batch_size(batch)
        weights = torch.ones(size) if weighed is None else weighed.sample_weight
        tokens = count_targets(labels_of(batch)) if "input_ids" in batch else torch.zeros(size)
        means = self._add(number, batch.get("domain"), weights, tokens)
        record = self.rounds[str(number)]
        record["batches"] += 1
        record["updates"] += len(updates)
        values: dict[str, float] = {}
        if updates:
            values["h_std"] = _mean([float(result.h.float().std()) for result in updates])
            values["target_loss"] = _mean([result.target_loss for result in updates])
            values["skipped"] = float(sum(result.skipped for result in updates))
        ess = float(size)
        if weighed is not None:
            ess = values["ess"] = float(effective_batch_size(weighed.whole))
            values["w_max"] = float(weighed.whole.max())
        record["ess"] += ess / (size if weighed is None else len(weighed.whole))
        if weighed is not None and "domain" in batch:
            names = domain_names(trainer)
            values |= {f"weight/{domain_name(domain, names)}": mean for domain, mean in means.items()}
        return {f"{self.name}/{key}": value for key, value in values.items()}

    def _add(self, number: int, domain: Tensor | None, weights: Tensor, tokens: Tensor) -> dict[int, float]:
        """Add a batch to the sums; returns the mean weight of each domain in it."""
        numbers = torch.zeros(len(weights), dtype=torch.long) if domain is None else domain.cpu()
        columns = torch.stack([tokens.cpu().double(), weights.cpu().double()])
        means = {}
        for one in numbers.unique().tolist():
            counts, chosen = columns[:, numbers == one]
            sums = [float(len(chosen)), float(counts.sum()), float(chosen.sum()), float(chosen @ chosen)]
            _add_to(self._sums, f"{number}/{one}", sums)
            means[one] = sums[2] / sums[0]
        return means

    def total(self) -> Sums:
        """Return the sums of all processes; every process must call it."""
        parts: list[Any] = [self._sums]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self._sums)
        total = {key: list(values) for key, values in self._sums_before.items()}
        for part in parts:
            for key, values in part.items():
                _add_to(total, key, values)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return all sums, as plain numbers."""
        return {"sums": self.total(), "rounds": {number: dict(record) for number, record in self.rounds.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._sums_before, self._sums = state["sums"], {}
        self.rounds = with_present_keys(state)["rounds"]

    def write(self, trainer: Trainer) -> None:
        """Write the record, and add tables and figure to the report of the run; every process must call it."""
        total, folder = self.total(), run_folder(trainer)
        if trainer.is_global_zero and total and folder is not None:
            title = f"{self.name}: mean weight by domain and round (1 is uniform)"
            record = Preferences(
                domains=domain_weights(total, domain_names(trainer)), rounds=round_summaries(self.rounds)
            )
            write_preferences(folder, self.name, record)
            add_table(folder, f"{self.name}-1-domains", title, [each.row() for each in record.domains])
            add_table(folder, f"{self.name}-2-rounds", f"{self.name}: rounds", [each.row() for each in record.rounds])
            add_figure(folder, f"{self.name}-3-weights", CAPTION, draw_preferences(record))


def domain_weights(total: Sums, names: Sequence[str] = ()) -> tuple[DomainWeights, ...]:
    """Return by domain the target tokens, and by round the mean weight and its standard error."""
    keys = [tuple(map(int, key.split("/"))) for key in total]
    rounds, domains = (sorted(set(numbers)) for numbers in zip(*keys, strict=True))
    records = []
    for domain in domains:
        sums = {number: total.get(f"{number}/{domain}") for number in rounds}
        records.append(
            DomainWeights(
                domain="all" if domains == [0] and not names else domain_name(domain, names),
                tokens=round(sum(values[1] for values in sums.values() if values)),
                means={number: round(values[2] / values[0], 4) if values else None for number, values in sums.items()},
                errors={number: _standard_error(values) if values else None for number, values in sums.items()},
            )
        )
    return tuple(records)


def round_summaries(rounds: Mapping[str, Mapping[str, float]]) -> tuple[RoundSummary, ...]:
    """Return by round the updates, the mean effective batch size, and the validation loss at start and end."""
    return tuple(
        RoundSummary(
            round=int(number),
            updates=int(record["updates"]),
            effective_batch=round(record["ess"] / max(1, record["batches"]), 4),
            first_loss=record.get("first_loss"),
            last_loss=record.get("last_loss"),
        )
        for number, record in sorted(rounds.items(), key=lambda item: int(item[0]))
    )


def domain_names(trainer: Trainer) -> list[str]:
    """Return the names that the datamodule has for the numbers in ``domain``, or none."""
    data: Any = getattr(trainer, "datamodule", None)
    return list(getattr(data, "domain_names", None) or getattr(data, "domains", None) or [])


def domain_name(number: int, names: Sequence[str]) -> str:
    """Return the name of a domain, or its number."""
    return names[number] if 0 <= number < len(names) else str(number)


def _standard_error(sums: Sequence[float]) -> float | None:
    count, _, weight, squares = sums
    if count < 2:
        return None
    return round(math.sqrt(max(0.0, squares - weight**2 / count) / (count - 1) / count), 4)


def _add_to(sums: Sums, key: str, values: Sequence[float]) -> None:
    sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * 4), values, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
