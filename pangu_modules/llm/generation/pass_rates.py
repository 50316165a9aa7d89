"""What a store of rollouts says of the model: pass rates by label, speed, and samples of right and wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_modules.llm.generation.rollouts import KIND
from pangu_modules.llm.generation.shards import read_manifest, read_tables, shards_of
from pangu_modules.report.parts import add_table
from pangu_modules.report.tables import Column

TABLE, SAMPLES = "rollouts_1_pass_rates", "rollouts_2_{}_answers"
SHOWN = 6  # answers of each kind in the report
LONGEST = 600  # characters of an answer in the report
FIGURES = {
    "rollouts": Column("samples"),
    "right": Column("right", "%", 1),
    "solved": Column("solved", "%", 1),
    "not_judged": Column("unjudged"),
    "tokens": Column("tokens", "", 1),
    "cut": Column("cut", "%", 1),
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
        self.judged += row["reward"] is not None
        self.tokens += len(row["token_ids"])
        self.finish[row["finish_reason"]] += 1
        if is_right(row["reward"]):
            self.right += 1
            self.solved.add(row["key"])

    def row(self) -> dict[str, Any]:
        """Return the figures of `FIGURES`: shares in percent, tokens as the mean of a sample."""
        return {
            "rollouts": self.rollouts,
            "right": 100 * self.right / self.judged if self.judged else None,
            "solved": 100 * len(self.solved) / len(self.keys) if self.judged else None,
            "not_judged": self.rollouts - self.judged,
            "tokens": self.tokens / max(1, self.rollouts) if self.tokens else None,  # a server may tell none
            "cut": 100 * self.finish["length"] / max(1, self.rollouts),
        }


@dataclass(frozen=True)
class Measured:
    """Figures of a store: for the result table, the number of rows, and the seconds of generating."""

    metrics: dict[str, float]
    rows: int
    seconds: float


def is_right(reward: float | None) -> bool:
    """Whether an answer counts as right: it was judged, and got the whole reward."""
    return reward is not None and reward >= 1


def measured(store: Path, keys: Collection[str]) -> Measured:
    """Return the figures of the rollouts of these keys; time and speed are those of generating, not of judging."""
    counts = Counts()
    for row in _rows(store, keys, ["key", "reward", "token_ids", "finish_reason"]):
        counts.add(row)
    seconds, speed = _speed(store)
    metrics = {
        "generate/right": counts.right / counts.judged if counts.judged else None,
        "generate/solved": len(counts.solved) / len(counts.keys) if counts.judged else None,
        "generate/rollouts": counts.rollouts,
        "generate/tokens": counts.tokens,
        "generate/tokens_per_second": speed,
    }
    known = {name: float(value) for name, value in metrics.items() if value is not None}
    return Measured(known, counts.rollouts, seconds)


def add_rollout_tables(folder: Path, store: Path, keys: Collection[str]) -> tuple[str, ...]:
    """Add to the report of the run in `folder` the pass rates and some answers; return the names of the first.

    Pass rates are by every label that the tasks have, e.g. task and level, and for all together.
    """
    groups: dict[tuple[str, ...], Counts] = {}
    whole, names = Counts(), dict[str, None]()
    examples: dict[str, list[dict[str, Any]]] = {"right": [], "wrong": []}
    for row in _rows(
        store, keys, ["key", "sample", "prompt", "text", "reward", "rewards", "labels", "token_ids", "finish_reason"]
    ):
        labels = {label["name"]: label["value"] for label in row["labels"]}
        names |= dict.fromkeys(labels)
        groups.setdefault(tuple(f"{name}={value}" for name, value in labels.items()), Counts()).add(row)
        whole.add(row)
        if row["reward"] is not None:
            shown = examples["right" if is_right(row["reward"]) else "wrong"]
            if len(shown) < SHOWN and all(example["task"] != row["key"] for example in shown):
                shown.append(_example(row))
    rows = [{**dict(pair.split("=", 1) for pair in group), **counts.row()} for group, counts in sorted(groups.items())]
    total = {**dict.fromkeys(names, "all"), **whole.row()}
    speed = _speed(store)[1]
    title = "Pass rates" if speed is None else f"Pass rates, sampled at {speed:,.1f} tokens/s"
    heads: dict[str, Column | str] = {name: name for name in names}
    add_table(folder, TABLE, title, [*rows, total], heads | FIGURES)
    reasons = [{"reason": reason, "samples": count} for reason, count in sorted(whole.finish.items())]
    add_table(folder, f"{TABLE}_finish", "Why answers ended", reasons)
    columns = {"task": "task", "question": "question", "answer": "answer", "verdict": "verdict"}
    for kind, chosen in examples.items():
        if chosen:
            add_table(folder, SAMPLES.format(kind), f"Some {kind} answers", chosen, columns)
    return (TABLE, f"{TABLE}_finish")


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    verdict = "; ".join(f"{part['component']}: {part['reason']}" for part in row["rewards"])
    return {
        "task": row["key"],
        "question": _cut(row["prompt"][-1]["content"]),
        "answer": _cut(row["text"]),
        "verdict": _cut(verdict),
    }


def _rows(store: Path, keys: Collection[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    for _, table in read_tables(store, KIND, columns):
        yield from (row for row in table.to_pylist() if row["key"] in keys)


def _speed(store: Path) -> tuple[float, float | None]:
    """Return the seconds of generating, and tokens per second of the shards whose seconds and tokens are known."""
    known = [shard.statistics for shard in shards_of(store, read_manifest(store, KIND)) if shard.statistics]
    seconds, tokens = sum(one["seconds"] for one in known), sum(one["tokens"] for one in known)
    return seconds, tokens / seconds if seconds and tokens else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"
