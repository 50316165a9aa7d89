"""The work of a stage of kind "score": earlier samples read by a teacher, shard by shard; see `score_rows`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pangu_modules.common.production import Produced, Production
from pangu_modules.llm.generation.decoding.checks import vocabulary_of
from pangu_modules.llm.generation.store import rollouts
from pangu_modules.llm.generation.store.identity import model_identity
from pangu_modules.llm.generation.store.kept_tokenizer import kept_tokenizer
from pangu_modules.llm.generation.store.producing import PACKAGES, engine_of
from pangu_modules.llm.generation.store.score_rows import (
    KIND,
    CachedScores,
    Packing,
    packed_row,
    score_table,
)
from pangu_modules.llm.generation.store.shard_files import Shard, read_manifest, read_tables, shards_of
from pangu_modules.llm.generation.store.shards import ShardStore
from pangu_modules.llm.tokenizers import difference
from pangu_modules.report.parts import add_table
from pangu_modules.report.run_report import collect_versions
from pangu_modules.report.tables import Column

READ = ("key", "sample", "prompt_ids", "token_ids", "policy_mask", "labels")
TABLE = "scores_1_cache"
FIGURES = {
    "sequences": Column("samples"),
    "tokens": Column("tokens"),
    "top_per_token": Column("likeliest each", "", 1),
    "outside": Column("mass outside", "%", 2),
    "bytes_per_token": Column("bytes/token", "", 1),
    "mean_logprob": Column("mean log p", "nats", 3),
    "tokens_per_second": Column("tokens/s", "", 0),
}
IN_RESULT = ("sequences", "tokens", "mean_logprob", "bytes_per_token", "tokens_per_second")


class ScoreStore(ShardStore):
    """A store of scores that this process writes; see `ShardStore`."""

    kind: ClassVar[str] = KIND


def score(production: Production) -> Produced:
    """Score the samples in ``production.stage.rollouts`` into the store ``scores/``; what is there is not made again.

    Each shard of samples becomes one of scores.

    Raises:
        ValueError: no samples are named, none has the labels asked for, they lack tokens or are made of other ones than
            the teacher's, a value is not finite, or the store is another teacher's.
        ConnectionError: the server cannot be asked.
    """
    stage = production.stage
    if stage.rollouts is None:
        raise ValueError("rollouts: no samples to score; name an earlier stage with data_from, or a folder of rollouts")
    source = Path(stage.rollouts)
    made_by = read_manifest(source, rollouts.KIND)
    engine = engine_of(production)
    teacher = model_identity(engine, stage)
    if not stage.allow_other:
        _check_same_tokens(source, made_by["identity"], engine, teacher)
    packing = Packing(common_tokens(engine, made_by), stage.precision, stage.nucleus)
    own = {name: getattr(stage, name) for name in ("top_k", "precision", "nucleus", "teacher", "only")}
    identity = {**teacher, "vocabulary": packing.vocabulary, **own, "rollouts": made_by["identity"]}
    total = len(shards_of(source, made_by))
    facts = {"versions": collect_versions(PACKAGES)}
    with ScoreStore(production.folder / KIND, identity, allow_other=stage.allow_other, facts=facts) as store:
        for number, (shard, table) in enumerate(read_tables(source, rollouts.KIND, READ)):
            wanted = [row for row in table.to_pylist() if has_labels(row, stage.only)]
            _score_shard(store, engine, shard, wanted, stage.top_k, packing)
            production.progress(number + 1, total)
        if not store.shards:
            raise ValueError(f"only={dict(stage.only)}: no sample in {source} has these labels, so none is scored")
        figures, seconds = _figures(store)
    add_table(production.folder, TABLE, "Scores of the teacher", [figures], FIGURES)
    metrics = {f"score/{name}": value for name, value in figures.items() if name in IN_RESULT}
    return Produced(metrics, int(figures["sequences"]), seconds, (TABLE,))


def has_labels(row: Mapping[str, Any], only: Mapping[str, str]) -> bool:
    """Whether a sample has all of these labels."""
    labels = {label["name"]: label["value"] for label in row["labels"]}
    return all(labels.get(name) == value for name, value in only.items())


def common_tokens(engine: Any, made_by: Mapping[str, Any]) -> int | None:
    """Return how many tokens teacher and student have in common; what one has beyond them is padding of its head.

    Of a server's model it is the student's number; None where that is not known either.
    """
    rows = [fact["vocabulary"] for fact in made_by["facts"] if "vocabulary" in fact]
    if engine.model is not None:
        rows.append(vocabulary_of(engine.model))
    return min(rows, default=None)


def _score_shard(
    store: ScoreStore, engine: Any, shard: Shard, rows: list[dict[str, Any]], top_k: int, packing: Packing
) -> None:
    missing = [row for row in rows if row["sample"] not in store.samples_of(row["key"])]
    if not missing:
        return
    for row in missing:
        if not row["token_ids"] or not row["prompt_ids"]:
            raise ValueError(
                f"rollouts: sample {row['sample']} of {row['key']!r} has no token ids, so that nothing can be scored: "
                "sample from a model in this process, or from a server that tells them"
            )
    begun = time.perf_counter()
    sequences = [[*row["prompt_ids"], *row["token_ids"]] for row in missing]
    scores = engine.score(sequences, top_k=top_k, num_tokens=packing.vocabulary)
    seconds = time.perf_counter() - begun
    made = [packed_row(CachedScores.of(row, own), packing) for row, own in zip(missing, scores, strict=True)]
    statistics = {"seconds": seconds, **_sums(made)}
    number = int(shard.name.removeprefix("shard-").partition(".")[0].partition("-")[0])
    store.append(score_table(made, packing.precision), number, statistics)


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return sums over the entries of rows: of log-probabilities, likeliest tokens and their mass."""
    return {
        "tokens": sum(row["tokens"] for row in rows),
        "sum": float(sum(row["logprobs"].sum(dtype=np.float64) for row in rows)),
        "kept": sum(len(row["top_logprobs"]) for row in rows),
        "mass": float(sum(np.exp(row["top_logprobs"].astype(np.float64)).sum() for row in rows)),
    }


def _figures(store: ScoreStore) -> tuple[dict[str, float], float]:
    """Return what there is to say of a store, in the order and with the names of `FIGURES`, and the seconds it took."""
    known = [shard.statistics for shard in store.shards if "bytes" in shard.statistics]
    sums = {name: sum(one[name] for one in known) for name in ("seconds", "tokens", "sum", "kept", "mass", "bytes")}
    figures = {"sequences": float(sum(shard.rows for shard in store.shards)), "tokens": float(sums["tokens"])}
    if sums["tokens"]:
        figures["top_per_token"] = sums["kept"] / sums["tokens"]
        figures["outside"] = 100 * max(0.0, 1 - sums["mass"] / sums["tokens"])
        figures["bytes_per_token"] = sums["bytes"] / sums["tokens"]
        figures["mean_logprob"] = sums["sum"] / sums["tokens"]
    if sums["seconds"]:
        figures["tokens_per_second"] = sums["tokens"] / sums["seconds"]
    return figures, sums["seconds"]


def _check_same_tokens(source: Path, student: Mapping[str, Any], engine: Any, teacher: Mapping[str, Any]) -> None:
    """Refuse samples of other tokens than the teacher's; the first that differs is named."""
    own = kept_tokenizer(source) if engine.tokenizer is not None else None
    if own is not None:
        found = difference(own, engine.tokenizer, with_special_tokens=True)
    else:
        names = student.get("tokenizer"), teacher["tokenizer"]
        found = "they have different hashes" if all(names) and names[0] != names[1] else None
    if found is not None:
        raise ValueError(
            "rollouts: they are made of another tokenizer's tokens than the module's, whose scores would be of other "
            f"text: {found}; score with a model of the same tokenizer, or go on with allow_other=True"
        )
