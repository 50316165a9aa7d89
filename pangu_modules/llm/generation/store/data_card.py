"""Exports of what a data stage made: a Parquet folder with a data card, for `datasets`, TRL, pandas and the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_modules.common.files import atomic_file, write_atomically
from pangu_modules.llm.generation.store import rollouts, scores
from pangu_modules.llm.generation.store.score_rows import unpacked_tables
from pangu_modules.llm.generation.store.shard_files import read_manifest, read_tables

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("prompt_completion", "messages", "rollouts")
CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
license: unknown
---

# {title}

{what}

| | |
| --- | --- |
{facts}

## Columns

{columns}

## Made with

```json
{identity}
```

Licence: unknown. It follows from the licences of the prompts and of the model, which this card does not know.
"""
COLUMNS = {
    "prompt": "the conversation that was answered, messages of role and content",
    "completion": "the answer, one message of the assistant",
    "messages": "the conversation with the answer",
    "key": "of the task",
    "sample": "number of the sample among those of its task, from 0",
    "text": "the answer's text",
    "reward": "sum of the rewards, 1 for a right answer; null where nothing judged it",
    "rewards": "parts of the reward, each with its reason",
    "labels": "what the task is, e.g. its name and level",
    "finish_reason": "stop, stop_string, or length where the limit of new tokens cut the answer",
    "prompt_ids": "tokens that the model read",
    "token_ids": "tokens that were sampled",
    "policy_mask": "which of these the policy wrote",
    "logprobs": "their log-probabilities (nats) under the model; of scores, under the teacher",
    "sampled_logprobs": "the same under the distribution sampled from",
    "seed": "of the sampling",
    "model": "hash of the model, or a server's name for it",
    "sequence": "hash of the sample's tokens",
    "top_ids": "the teacher's likeliest tokens in place of each token that the policy wrote, most likely first",
    "top_logprobs": "their log-probabilities (nats)",
}


def export_rollouts(
    store: Path, output: Path, *, format: str = "prompt_completion", min_reward: float | None = None
) -> int:
    """Write rollouts as a data set; return its rows.

    Args:
        store: folder of the rollouts.
        output: folder to write; it holds nothing yet.
        format: ``prompt_completion`` or ``messages``, as TRL's SFTTrainer reads them, or ``rollouts``: all columns.
        min_reward: leave out what has less, and what nothing judged; None keeps all.

    Raises:
        ValueError: an unknown format, or no row is left.
    """
    if format not in FORMATS:
        raise ValueError(f"--format: unknown format {format!r}; generated answers have: {', '.join(FORMATS)}")
    manifest = read_manifest(store, rollouts.KIND)
    identity = manifest["identity"]
    rows = dropped = 0
    columns: list[str] = []
    with atomic_file(output) as folder:
        for number, table in enumerate(_tables(store, rollouts.KIND)):
            kept = table if min_reward is None else _rewarded(table, min_reward)
            dropped += table.num_rows - kept.num_rows
            shaped = kept if format == "rollouts" else _shaped(kept, format)
            columns = shaped.column_names
            rows += _write(shaped, folder, number)
        if not rows:
            raise ValueError(
                f"--min_reward {min_reward}: no answer has that much; {dropped} have less, or no judgement"
            )
        limit = "all" if min_reward is None else f"at least {min_reward:g}; {dropped} rows left out"
        facts = {"rows": rows, "reward": limit, "model": identity["model"], "seed": identity["seed"]}
        what = "Answers that a language model sampled to prompts, and what a verifier says of them."
        _write_card(folder, "Generated answers", what, {**facts, **_versions(manifest)}, columns, identity)
    return rows


def export_scores(store: Path, output: Path, *, format: str = scores.KIND, min_reward: float | None = None) -> int:
    """Write scores as a data set; return its rows. Arguments as of `export_rollouts`; there is one format.

    Raises:
        ValueError: another format, or a reward, which scores do not have.
    """
    if format != scores.KIND:
        raise ValueError(f"--format: unknown format {format!r}; scores have: {scores.KIND}")
    if min_reward is not None:
        raise ValueError("--min_reward: scores have no reward; leave it out")
    manifest = read_manifest(store, scores.KIND)
    identity = manifest["identity"]
    rows, columns = 0, []
    with atomic_file(output) as folder:
        for number, table in enumerate(unpacked_tables(store)):
            columns = table.column_names
            rows += _write(table, folder, number)
        facts = {"rows": rows, "teacher": identity["model"], "top k": identity["top_k"], **_versions(manifest)}
        what = "Log-probabilities of sampled tokens under a teacher, and its likeliest tokens at their positions."
        _write_card(folder, "Scores of generated answers", what, facts, columns, identity)
    return rows


def _tables(store: Path, kind: str) -> Iterator[pa.Table]:
    return (table.replace_schema_metadata(None) for _, table in read_tables(store, kind))


def _rewarded(table: pa.Table, least: float) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.fill_null(pc.greater_equal(table["reward"], least), False))


def _shaped(table: pa.Table, format: str) -> pa.Table:
    """Return the columns that supervised fine-tuning reads, and those by which a row is found again."""
    import pyarrow as pa

    rows = table.select(["prompt", "text", "key", "sample", "reward"]).to_pylist()
    message = table.schema.field("prompt").type
    shaped = []
    for row in rows:
        answer = [{"role": "assistant", "content": row["text"]}]
        own = {"key": row["key"], "sample": row["sample"], "reward": row["reward"]}
        if format == "messages":
            shaped.append({"messages": [*row["prompt"], *answer], **own})
        else:
            shaped.append({"prompt": row["prompt"], "completion": answer, **own})
    names = ["messages"] if format == "messages" else ["prompt", "completion"]
    own_fields = [table.schema.field(name) for name in ("key", "sample", "reward")]
    return pa.Table.from_pylist(shaped, schema=pa.schema([*(pa.field(name, message) for name in names), *own_fields]))


def _write(table: pa.Table, output: Path, number: int) -> int:
    """Write a shard unless it is empty; return its rows."""
    import pyarrow.parquet as pq

    if table.num_rows:
        with atomic_file(output / "data" / f"train-{number:05d}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return int(table.num_rows)


def _versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    versions = [fact.get("versions", {}) for fact in manifest["facts"]]
    return {"versions": "; ".join(", ".join(f"{name} {number}" for name, number in each.items()) for each in versions)}


def _write_card(
    output: Path, title: str, what: str, facts: Mapping[str, Any], columns: list[str], identity: Mapping[str, Any]
) -> None:
    card = CARD.format(
        title=title,
        what=what,
        facts="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        columns="\n".join(f"- `{name}`: {COLUMNS[name]}" for name in columns),
        identity=json.dumps(identity, indent=1).replace("```", "` ` `"),
    )
    write_atomically(output / "README.md", card)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
