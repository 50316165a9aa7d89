"""RolloutStore: generated samples on disk, a row each, with the prompts that they answer.

A prompt is stored as messages with ``role`` and ``content``; ``reward`` is the sum of the ``rewards``, null where
nothing judged the answer. `read_rollouts` gives the records back; any Parquet reader takes the folder ``data/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.shard_files import Shard, read_tables
from pangu_modules.llm.generation.store.shards import ShardStore

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "rollouts"
Messages = Sequence[Mapping[str, Any]]


class RolloutStore(ShardStore):
    """A store of rollouts that this process writes; see `ShardStore`."""

    kind: ClassVar[str] = KIND

    def add(
        self, rollouts: Sequence[Rollout], prompts: Mapping[str, Messages], *, number: int, seconds: float
    ) -> Shard:
        """Write rollouts as one shard, in their order.

        Args:
            rollouts: each with the key of its task.
            prompts: key -> the conversation that was answered.
            number: of the part of the work that they are of.
            seconds: that they took; in the manifest alone.

        Raises:
            ValueError: a message has other fields than role and content, which a row would lose.
        """
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        table = rollout_table(rollouts, prompts)
        return self.append(table, number, {"seconds": seconds, "tokens": tokens, "rollouts": len(rollouts)})


def rollout_table(rollouts: Sequence[Rollout], prompts: Mapping[str, Messages]) -> pa.Table:
    """Return rollouts as rows; arguments and error as of `RolloutStore.add`."""
    import pyarrow as pa

    return pa.Table.from_pylist([_row(rollout, prompts[rollout.key]) for rollout in rollouts], schema=_schema())


def read_rollouts(folder: str | Path) -> Iterator[Rollout]:
    """Yield the rollouts of a store, shard by shard.

    Raises:
        ValueError: it is no store of rollouts, or a shard is damaged.
    """
    for _, table in read_tables(folder, KIND):
        for row in table.to_pylist():
            yield _rollout(row)


def _schema() -> pa.Schema:
    import pyarrow as pa

    def pairs(name: str, value: pa.DataType, *more: tuple[str, pa.DataType]) -> pa.DataType:
        return pa.list_(pa.struct([(name, pa.string()), ("value", value), *more]))

    return pa.schema(
        [
            ("key", pa.string()),
            ("sample", pa.int32()),
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("text", pa.string()),
            ("reward", pa.float64()),
            ("rewards", pairs("component", pa.float64(), ("reason", pa.string()))),
            ("labels", pairs("name", pa.string())),
            ("finish_reason", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("token_ids", pa.list_(pa.int32())),
            ("policy_mask", pa.list_(pa.bool_())),
            ("logprobs", pa.list_(pa.float32())),
            ("sampled_logprobs", pa.list_(pa.float32())),
            ("seed", pa.uint64()),
            ("model", pa.string()),
        ]
    )


def _row(rollout: Rollout, prompt: Messages) -> dict[str, Any]:
    for message in prompt:
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise ValueError(
                f"task {rollout.key!r}: a message holds {', '.join(sorted(message))}; a store keeps messages of role "
                "and content, both text"
            )
    rewards = [
        {"component": name, "value": value, "reason": rollout.reasons.get(name, "")}
        for name, value in rollout.rewards.items()
    ]
    return {
        **{name: getattr(rollout, name) for name in ("key", "sample", "finish_reason", "seed", "model")},
        "text": rollout.text.encode(errors="replace").decode(),  # a server's JSON may hold halves of surrogate pairs
        **{name: getattr(rollout, name) for name in ("prompt_ids", "token_ids", "policy_mask")},
        **{name: getattr(rollout, name) for name in ("logprobs", "sampled_logprobs")},
        "prompt": [dict(message) for message in prompt],
        "reward": sum(rollout.rewards.values()) if rollout.rewards else None,
        "rewards": rewards,
        "labels": [{"name": name, "value": value} for name, value in rollout.labels.items()],
    }


def _rollout(row: Mapping[str, Any]) -> Rollout:
    plain: dict[str, Any] = {name: row[name] for name in ("key", "sample", "text", "finish_reason", "seed", "model")}
    lists: dict[str, Any] = {
        name: tuple(row[name] or ())
        for name in ("prompt_ids", "token_ids", "policy_mask", "logprobs", "sampled_logprobs")
        if row[name] is not None or "logprobs" not in name
    }
    return Rollout(
        **plain,
        **lists,
        labels={pair["name"]: pair["value"] for pair in row["labels"]},
        rewards={part["component"]: part["value"] for part in row["rewards"]},
        reasons={part["component"]: part["reason"] for part in row["rewards"]},
    )
