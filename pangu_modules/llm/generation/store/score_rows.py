"""Rows of a store of scores: what a teacher says of one sample, packed, and reading them back.

A row belongs to one sample, named by `key` and `sample`, never to a step or an order of training: shuffling, curricula
and other batch sizes read the same store. Its entries belong to the tokens that the policy wrote, in their order:

- ``tokens``: how many there are, and ``sequence``, a hash of prompt, tokens and mask that they are entries of;
- ``logprobs``: of each token itself, ``top_logprobs`` of the likeliest ones there, most likely first, one after the
  other, all in nats and normalised over the whole vocabulary;
- ``top_ids``: their ids, in ``bits`` bits each, see `packed_ids`;
- ``counts``: how many likeliest tokens each entry has, where a nucleus leaves some out; otherwise all have ``top_k``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pangu_modules.llm.generation.records import SequenceScores
from pangu_modules.llm.generation.store.packed_ids import bits_for, pack_ids, unpack_ids
from pangu_modules.llm.generation.store.shard_files import read_manifest, read_tables

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "scores"
PLAIN = ("key", "sample", "sequence", "tokens", "counts", "bits", "top_ids")
FLOATS = ("logprobs", "top_logprobs")
TYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class CachedScores:
    """What a teacher says of the tokens that a policy wrote in one sample.

    Attributes:
        key: of the task.
        sample: number of the sample.
        sequence: hash of the whole sequence, see `sequence_hash`.
        logprobs: of the tokens themselves, (tokens,).
        top_ids: the likeliest tokens, most likely first, (tokens, k) int32; where there are fewer, the first one again.
        top_logprobs: theirs, (tokens, k); minus infinity where there is none.
    """

    key: str
    sample: int
    sequence: str
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    @classmethod
    def of(cls, row: Mapping[str, Any], scores: SequenceScores) -> Self:
        """Return those of a sample's scores that are of tokens which the policy wrote.

        Args:
            row: ``key``, ``sample``, ``prompt_ids``, ``token_ids`` and ``policy_mask`` of the sample.
            scores: of its prompt and tokens.
        """
        start = len(row["prompt_ids"])
        # Entry t of the scores belongs to token t + 1.
        entries = [start + number - 1 for number, by_policy in enumerate(row["policy_mask"]) if by_policy]
        sequence = sequence_hash(row["prompt_ids"], row["token_ids"], row["policy_mask"])
        chosen = scores.logprobs[entries], scores.top_ids[entries], scores.top_logprobs[entries]
        return cls(row["key"], row["sample"], sequence, *chosen)


@dataclass(frozen=True)
class Packing:
    """How scores are written.

    Attributes:
        vocabulary: number of tokens that an id may name; None where it is unknown, a server's: what a row needs then.
        precision: of the log-probabilities, float16 or float32.
        nucleus: keep the fewest likeliest tokens that hold this share of the probability; None keeps all.
    """

    vocabulary: int | None = None
    precision: str = "float16"
    nucleus: float | None = None


def sequence_hash(prompt_ids: Sequence[int], token_ids: Sequence[int], policy_mask: Sequence[bool]) -> str:
    """Return a hash of a sample's tokens, by which scores of other ones are found out."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (prompt_ids, token_ids, policy_mask):
        digest.update(len(part).to_bytes(8, "little") + np.asarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()


def packed_row(scores: CachedScores, packing: Packing) -> dict[str, Any]:
    """Return a sample's scores as a row of the store; those it gets have all k likeliest tokens.

    Raises:
        ValueError: a log-probability is not finite, or an id is beyond the vocabulary.
    """
    for values in (scores.logprobs, scores.top_logprobs):
        wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        if len(wrong):
            raise ValueError(
                f"sample {scores.sample} of {scores.key!r}: the teacher's log-probabilities of its token {wrong[0]} "
                "are not finite: the teacher is broken there, or its type too narrow; score with another, or a smaller "
                "top_k"
            )
    kept = nucleus_mask(scores.top_logprobs, packing.nucleus)
    ids = scores.top_ids[kept]
    bits = bits_for(packing.vocabulary or int(ids.max(initial=0)) + 1)
    dtype = TYPES[packing.precision]
    return {
        "key": scores.key,
        "sample": scores.sample,
        "sequence": scores.sequence,
        "tokens": len(scores.logprobs),
        "logprobs": scores.logprobs.astype(dtype),
        "bits": bits,
        "counts": None if packing.nucleus is None else kept.sum(1).astype(np.int32),
        "top_ids": pack_ids(ids, bits),
        "top_logprobs": scores.top_logprobs[kept].astype(dtype),
    }


def nucleus_mask(top_logprobs: np.ndarray, nucleus: float | None) -> np.ndarray:
    """Return which of the likeliest tokens are the fewest that hold a share of the probability, (tokens, k) bool.

    Args:
        top_logprobs: (tokens, k), most likely first.
        nucleus: the share; None keeps all.
    """
    if nucleus is None or not top_logprobs.size:
        return np.ones(top_logprobs.shape, dtype=bool)
    mass = np.exp(top_logprobs.astype(np.float64))
    kept: np.ndarray = np.cumsum(mass, axis=1) - mass < nucleus  # what comes before it holds less than the share
    return kept


def score_table(rows: Sequence[Mapping[str, Any]], precision: str) -> pa.Table:
    """Return rows of `packed_row` as a table."""
    import pyarrow as pa

    floats = pa.list_(pa.float16() if precision == "float16" else pa.float32())
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("sample", pa.int32()),
            ("sequence", pa.string()),
            ("tokens", pa.int32()),
            ("logprobs", floats),
            ("bits", pa.int8()),
            ("counts", pa.list_(pa.int32())),
            ("top_ids", pa.binary()),
            ("top_logprobs", floats),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def read_scores(folder: str | Path) -> Iterator[CachedScores]:
    """Yield the scores of a store, shard by shard, with equally many likeliest tokens in each.

    Raises:
        ValueError: it is no store of scores, a shard is damaged, or values are not finite.
    """
    for scores in _read_shards(folder):
        yield from scores


def unpacked_tables(folder: str | Path) -> Iterator[pa.Table]:
    """Yield each shard of a store as a table that needs no unpacking: a list for each token in ``top_ids`` and so on.

    Raises:
        ValueError: as `read_scores`.
    """
    import pyarrow as pa

    floats = pa.list_(pa.float32())
    lists = {"logprobs": floats, "top_ids": pa.list_(pa.list_(pa.int32())), "top_logprobs": pa.list_(floats)}
    names = {"key": pa.string(), "sample": pa.int32(), "sequence": pa.string(), **lists}
    for scores in _read_shards(folder):
        yield pa.Table.from_pylist([_plain(one) for one in scores], schema=pa.schema(list(names.items())))


def _plain(scores: CachedScores) -> dict[str, Any]:
    there = np.isfinite(scores.top_logprobs)
    lists = {
        name: [row[kept].tolist() for row, kept in zip(getattr(scores, name), there, strict=True)]
        for name in ("top_ids", "top_logprobs")
    }
    own = scores.logprobs.tolist()
    return {"key": scores.key, "sample": scores.sample, "sequence": scores.sequence, "logprobs": own, **lists}


def _read_shards(folder: str | Path) -> Iterator[list[CachedScores]]:
    top_k = int(read_manifest(folder, KIND)["identity"]["top_k"])
    for shard, table in read_tables(folder, KIND):
        columns = {name: table[name].to_pylist() for name in PLAIN}
        floats = {name: table[name].combine_chunks() for name in FLOATS}
        scores = []
        for number in range(table.num_rows):
            row = {name: values[number] for name, values in columns.items()}
            row |= {name: values[number].values.to_numpy(zero_copy_only=False) for name, values in floats.items()}
            try:
                scores.append(_unpacked(row, top_k))
            except ValueError as error:
                what = f"sample {row['sample']} of {row['key']!r}"
                raise ValueError(f"{folder}, {shard.name}, {what}: {error}") from error
        yield scores


def _unpacked(row: Mapping[str, Any], top_k: int) -> CachedScores:
    tokens, counts, own, top = (row[name] for name in ("tokens", "counts", *FLOATS))
    held = np.full(tokens, top_k) if counts is None else np.asarray(counts)
    if len(own) != tokens or len(held) != tokens or len(top) != held.sum():
        raise ValueError(f"{tokens} tokens, but {len(own)} log-probabilities, {len(top)} of likeliest tokens")
    if not (np.isfinite(own).all() and np.isfinite(top).all()):
        raise ValueError("a log-probability of the teacher is not finite: score it again")
    flat = unpack_ids(row["top_ids"], row["bits"], len(top)).astype(np.int32)
    if counts is None:
        ids, values = flat.reshape(tokens, top_k), top.reshape(tokens, top_k)
    else:
        there = np.arange(top_k) < held[:, None]
        ids, values = np.zeros((tokens, top_k), np.int32), np.full((tokens, top_k), -np.inf, top.dtype)
        ids[there], values[there] = flat, top
        ids = np.where(there, ids, ids[:, :1])
    return CachedScores(row["key"], row["sample"], row["sequence"], own, ids, values)
