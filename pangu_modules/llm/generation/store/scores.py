"""The work of a stage of kind "score": earlier samples read by a teacher, shard by shard.

A row of ``scores/`` belongs to one sample (`key`, `sample`). Entry i of its lists belongs to the i-th token that the
policy wrote: ``positions`` in the whole sequence, prompt included; ``token_ids``; its own ``logprobs``; and the
likeliest tokens there, ``top_ids`` and ``top_logprobs``, most likely first. Log-probabilities are in nats, over the
whole vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pangu_modules.common.production import Produced, Production
from pangu_modules.llm.generation.records import SequenceScores
from pangu_modules.llm.generation.store import rollouts
from pangu_modules.llm.generation.store.producing import PACKAGES, engine_of, model_identity
from pangu_modules.llm.generation.store.shard_files import Shard, read_manifest, read_tables, shards_of
from pangu_modules.llm.generation.store.shards import ShardStore
from pangu_modules.report.run_report import collect_versions

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "scores"
READ = ("key", "sample", "prompt_ids", "token_ids", "policy_mask")


class ScoreStore(ShardStore):
    """A store of scores that this process writes; see `ShardStore`."""

    kind: ClassVar[str] = KIND


def score(production: Production) -> Produced:
    """Score the samples in ``production.stage.rollouts`` into the store ``scores/``; what is there is not made again.

    Each shard of samples becomes one of scores.

    Raises:
        ValueError: no samples are named, they lack tokens or are made of other ones than the teacher's, or the store is
            another teacher's.
        ConnectionError: the server cannot be asked.
    """
    stage = production.stage
    if stage.rollouts is None:
        raise ValueError("rollouts: no samples to score; name an earlier stage with data_from, or a folder of rollouts")
    source = Path(stage.rollouts)
    made_by = read_manifest(source, rollouts.KIND)
    engine = engine_of(production)
    teacher = model_identity(engine, stage)
    _check_same_tokens(made_by["identity"], teacher, stage.allow_other)
    identity = {**teacher, "top_k": stage.top_k, "rollouts": made_by["identity"]}
    total = len(shards_of(source, made_by))
    facts = {"versions": collect_versions(PACKAGES)}
    with ScoreStore(production.folder / KIND, identity, allow_other=stage.allow_other, facts=facts) as store:
        for number, (shard, table) in enumerate(read_tables(source, rollouts.KIND, READ)):
            _score_shard(store, engine, shard, table.to_pylist(), stage.top_k)
            production.progress(number + 1, total)
        sums = {name: sum(one.statistics.get(name, 0) for one in store.shards) for name in ("seconds", "tokens", "sum")}
        rows = sum(shard.rows for shard in store.shards)
    metrics = {"score/sequences": float(rows), "score/tokens": float(sums["tokens"])}
    if sums["tokens"]:
        metrics["score/mean_logprob"] = sums["sum"] / sums["tokens"]
    if sums["seconds"]:
        metrics["score/tokens_per_second"] = sums["tokens"] / sums["seconds"]
    return Produced(metrics, rows, sums["seconds"])


def score_rows(rows: Sequence[Mapping[str, Any]], scores: Sequence[SequenceScores]) -> list[dict[str, Any]]:
    """Return a row of the store for each sample.

    Args:
        rows: samples with `READ`.
        scores: of each sample's prompt and tokens.
    """
    made = []
    for row, own in zip(rows, scores, strict=True):
        start = len(row["prompt_ids"])
        written = [number for number, by_policy in enumerate(row["policy_mask"]) if by_policy]
        entries = [start + number - 1 for number in written]  # entry t of the scores belongs to token t + 1
        made.append(
            {
                "key": row["key"],
                "sample": row["sample"],
                "positions": [start + number for number in written],
                "token_ids": [row["token_ids"][number] for number in written],
                "logprobs": own.logprobs[entries].tolist(),
                "top_ids": own.top_ids[entries].tolist(),
                "top_logprobs": own.top_logprobs[entries].tolist(),
            }
        )
    return made


def _score_shard(store: ScoreStore, engine: Any, shard: Shard, rows: list[dict[str, Any]], top_k: int) -> None:
    import pyarrow as pa

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
    scores = engine.score([[*row["prompt_ids"], *row["token_ids"]] for row in missing], top_k=top_k)
    seconds = time.perf_counter() - begun
    made = score_rows(missing, scores)
    tokens = sum(len(row["token_ids"]) for row in made)
    statistics = {"seconds": seconds, "tokens": tokens, "sum": sum(sum(row["logprobs"]) for row in made)}
    number = int(shard.name.removeprefix("shard-").partition(".")[0].partition("-")[0])
    store.append(pa.Table.from_pylist(made, schema=_schema()), number, statistics)


def _check_same_tokens(student: Mapping[str, Any], teacher: Mapping[str, Any], allow_other: bool) -> None:
    names = student.get("tokenizer"), teacher["tokenizer"]
    if all(names) and names[0] != names[1] and not allow_other:
        raise ValueError(
            "rollouts: they are made of another tokenizer's tokens than the module's, whose scores would be of other "
            "text: score with a model of the same tokenizer, or go on with allow_other=True"
        )


def _schema() -> pa.Schema:
    import pyarrow as pa

    integers, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    return pa.schema(
        [
            ("key", pa.string()),
            ("sample", pa.int32()),
            ("positions", integers),
            ("token_ids", integers),
            ("logprobs", floats),
            ("top_ids", pa.list_(integers)),
            ("top_logprobs", pa.list_(floats)),
        ]
    )
