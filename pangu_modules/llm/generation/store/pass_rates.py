"""What a store of rollouts says of the model: pass rates by label, speed, and samples of right and wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_modules.llm.generation.store.rollouts import KIND
from pangu_modules.llm.generation.store.shard_files import read_manifest, read_tables, shards_of
from pangu_modules.report.parts import add_table
from pangu_modules.report.tables import Column

TABLE, SAMPLES = "rollouts_1_pass_rates", "rollouts_2_{}_answers"
SHOWN = 6  # answers of each kind in the report
READ = ("key", "prompt", "text", "rewards", "labels", "token_ids", "finish_reason")
LONGEST = 600  # characters of an answer in the report
FIGURES = {
    "rollouts": Column("samples"),
    "right": Column("right", "%", 1),
    "solved": Column("solved", "%", 1),
    "not_judged": Column("unjudged"),
    "tokens": Column("tokens", "", 1),
}


@dataclass
class Counts:
    """Sums over the rollouts of a group."""

    rollouts: int = 0
    right: int = 0
    judged: int = 0
    tokens: int = 0
    finish: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    solved: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self.rollouts += 1
        self.keys.add(row["key"])
        self.judged += bool(row["rewards"])
        self.tokens += len(row["token_ids"])
        self.finish[row["finish_reason"]] += 1
        if is_right(row):
            self.right += 1
            self.solved.add(row["key"])

    def row(self) -> dict[str, Any]:
        """Return the figures of `FIGURES`: shares in percent, tokens as the mean of a sample."""
        return {
            "rollouts": self.rollouts,
            "right": 100 * self.right / self.judged if self.judged else None,
            "solved": 100 * len(self.solved) / len(self.keys) if self.judged else None,
            **({"not_judged": self.rollouts - self.judged} if self.rollouts > self.judged else {}),
            "tokens": self.tokens / max(1, self.rollouts) if self.tokens else None,  # a server may tell none
        }


@dataclass
class Summary:
    """What the rollouts of a store amount to.

    Attributes:
        whole: sums over all.
        groups: sums by the values of `labels`.
        labels: names of the labels that the tasks have, e.g. task and level.
        examples: some right and some wrong answers, each of another task.
        seconds: of generating, judging not included; of shards whose writer was killed before it listed them unknown.
        speed: tokens per second of generating, where both are known.
    """

    whole: Counts = field(default_factory=Counts)
    groups: dict[tuple[tuple[str, str], ...], Counts] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"right": [], "wrong": []})
    seconds: float = 0.0
    speed: float | None = None

    @classmethod
    def of_store(cls, store: Path, keys: Collection[str]) -> Summary:
        """Return the summary of the rollouts of these keys."""
        summary = cls()
        for shard, table in read_tables(store, KIND, READ):
            summary.seconds += shard.statistics.get("seconds", 0.0)
            for row in table.to_pylist():
                if row["key"] in keys:
                    summary._add(row)
        summary.speed = _speed(store)
        return summary

    def metrics(self) -> dict[str, float]:
        """Return the figures for the result table, shares from 0 to 1."""
        whole, known = self.whole, dict[str, float]()
        if whole.judged:
            known = {"right": whole.right / whole.judged, "solved": len(whole.solved) / len(whole.keys)}
        known |= {"rollouts": whole.rollouts, "tokens": whole.tokens}
        speed = {} if self.speed is None else {"tokens_per_second": self.speed}
        return {f"generate/{name}": float(value) for name, value in {**known, **speed}.items()}

    def add_tables(self, folder: Path) -> tuple[str, ...]:
        """Add pass rates and some answers to the report of the run in `folder`; return the names of the first."""
        total = {**{_label(name): "all" for name in self.labels}, **self.whole.row()}
        rows = [
            {**{_label(name): value for name, value in group}, **counts.row()}
            for group, counts in sorted(self.groups.items())
        ]
        heads: dict[str, Column | str] = {_label(name): name for name in self.labels}
        heads |= {name: column for name, column in FIGURES.items() if name in total}
        title = "Pass rates" if self.speed is None else f"Pass rates, sampled at {self.speed:,.1f} tokens/s"
        add_table(folder, TABLE, title, [*rows, total], heads)
        reasons = [{"reason": reason, "samples": count} for reason, count in sorted(self.whole.finish.items())]
        add_table(folder, f"{TABLE}_finish", "Why answers ended", reasons)
        for kind, chosen in self.examples.items():
            if chosen:
                add_table(folder, SAMPLES.format(kind), f"Some {kind} answers", chosen)
        return (TABLE, f"{TABLE}_finish")

    def _add(self, row: Mapping[str, Any]) -> None:
        group = tuple((label["name"], label["value"]) for label in row["labels"])
        self.labels += [name for name, _ in group if name not in self.labels]
        self.groups.setdefault(group, Counts()).add(row)
        self.whole.add(row)
        if row["rewards"]:
            shown = self.examples["right" if is_right(row) else "wrong"]
            if len(shown) < SHOWN and all(example["task"] != row["key"] for example in shown):
                shown.append(_example(row))


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether an answer counts as right: it was judged, and each part of its reward is whole."""
    return bool(row["rewards"]) and all(part["value"] >= 1 for part in row["rewards"])


def _label(name: str) -> str:
    """Return the key of a label's column, which may have the name of a figure."""
    return f"label {name}"


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    verdict = "; ".join(f"{part['component']}: {part['reason']}" for part in row["rewards"])
    return {
        "task": row["key"],
        "question": _cut(row["prompt"][-1]["content"]),
        "answer": _cut(row["text"]),
        "verdict": _cut(verdict),
    }


def _speed(store: Path) -> float | None:
    known = [shard.statistics for shard in shards_of(store, read_manifest(store, KIND)) if shard.statistics]
    seconds, tokens = sum(one["seconds"] for one in known), sum(one["tokens"] for one in known)
    return tokens / seconds if seconds and tokens else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"
