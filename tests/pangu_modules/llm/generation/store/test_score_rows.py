"""Rows of scores: what comes back, how much room they take, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from stores import VOCABULARY, sample, scores_of, write_scores

from pangu_modules.llm.generation.store.score_rows import (
    CachedScores,
    Packing,
    nucleus_mask,
    packed_row,
    read_scores,
    score_table,
    sequence_hash,
    unpacked_tables,
)
from pangu_modules.llm.generation.store.scores import ScoreStore

FAMILY = 153_376


def cached(number: int, top_k: int = 5) -> CachedScores:
    rollout = sample(number)
    return CachedScores.of(vars(rollout), scores_of(rollout, top_k))


def same(one: CachedScores, other: CachedScores) -> None:
    assert (one.key, one.sample, one.sequence) == (other.key, other.sample, other.sequence)
    for name in ("logprobs", "top_ids", "top_logprobs"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None])
def test_scores_come_back(tmp_path: Path, vocabulary: int | None) -> None:
    samples = [sample(number, length=1 + number) for number in range(5)]
    folder = write_scores(tmp_path / "s", samples, packing=Packing(vocabulary, "float32"))
    for own, found in zip(samples, read_scores(folder), strict=True):
        same(found, CachedScores.of(vars(own), scores_of(own, 5)))


def test_half_precision_rounds_and_no_more(tmp_path: Path) -> None:
    (found,) = read_scores(write_scores(tmp_path / "s", [sample(0)], packing=Packing(VOCABULARY, "float16")))
    wanted = cached(0)
    assert found.top_logprobs.dtype == np.float16
    np.testing.assert_array_equal(found.top_logprobs, wanted.top_logprobs.astype(np.float16))
    np.testing.assert_array_equal(found.top_ids, wanted.top_ids)


def test_a_nucleus_keeps_the_fewest_that_reach_the_share() -> None:
    logs = np.log(np.array([[0.5, 0.3, 0.1, 0.05], [0.95, 0.02, 0.01, 0.01]]))
    assert nucleus_mask(logs, 0.6).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert nucleus_mask(logs, 1.0).all()
    assert nucleus_mask(logs, None).all()


def test_a_token_of_the_family_takes_140_bytes(tmp_path: Path) -> None:
    """At k = 32 and 153,376 tokens; with ids in 32 bits it would be 194. Ids at random: nothing there to compress."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(20):
        tokens = 100
        ids = np.stack([generator.choice(FAMILY, 32, replace=False) for _ in range(tokens)]).astype(np.int32)
        tops = -np.sort(generator.gamma(2.0, 3.0, (tokens, 32))).astype(np.float32)
        own = -generator.gamma(2.0, 1.0, tokens).astype(np.float32)
        sequence = sequence_hash([1], range(tokens), [True] * tokens)
        rows.append(packed_row(CachedScores(f"task {number}", 0, sequence, own, ids, tops), Packing(FAMILY)))
    pq.write_table(score_table(rows, "float16"), tmp_path / "s.parquet", compression="zstd")
    assert (tmp_path / "s.parquet").stat().st_size / 2000 <= 140


def test_an_export_needs_no_unpacking(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "s", [sample(0)], packing=Packing(VOCABULARY, "float32", 0.5))
    (table,) = unpacked_tables(folder)
    (row,) = table.to_pylist()
    kept = nucleus_mask(cached(0).top_logprobs, 0.5)
    assert [len(ids) for ids in row["top_ids"]] == kept.sum(1).tolist()
    assert row["top_ids"][0] == cached(0).top_ids[0][kept[0]].tolist()


def test_what_is_not_finite_is_refused_before_it_is_written() -> None:
    scores = cached(0)
    broken = scores.top_logprobs.copy()
    broken[3, 1] = -np.inf
    with pytest.raises(ValueError, match="of 'task 0': the teacher's log-probabilities of its token 3 are not"):
        packed_row(replace(scores, top_logprobs=broken), Packing(VOCABULARY))
    with pytest.raises(ValueError, match=r"token id .* does not fit 2 bits"):
        packed_row(scores, Packing(4))


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    """Would fail if a row with too few values were read as far as it goes."""
    row = packed_row(cached(0), Packing(VOCABULARY, "float32"))
    for change in ({"tokens": 7}, {"top_ids": row["top_ids"][:-1]}, {"logprobs": row["logprobs"] * np.nan}):
        folder = tmp_path / next(iter(change))
        with ScoreStore(folder, {"top_k": 5}) as store:
            store.append(score_table([{**row, **change}], "float32"), 0, {})
        with pytest.raises(ValueError, match=r"shard-00000.parquet, sample 0 of 'task 0'"):
            list(read_scores(folder))
