"""The store's race at miniature size: what is kept is compared, and both times are of one run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sampled import SeededEngine

from benchmarks.methods.generation.store_race import contests
from benchmarks.races.race import UnequalOutcomeError, run_contests
from pangu_modules.llm.generation.store import rollouts


def test_keeping_takes_longer_than_generating_alone() -> None:
    engine = SeededEngine.Config(max_new_tokens=4).build()
    (entry,) = run_contests(contests(engine), repeats=5, report=lambda line: None)
    assert entry["error"] == 0
    assert 0 < entry["ratio"] < 1
    measured = entry["measurements"]
    assert all(ours > peer for ours, peer in zip(measured["ours"], measured["peer"], strict=True))


def test_a_store_that_loses_a_token_is_no_side_of_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    read = rollouts._rollout

    def short(row: Any) -> Any:
        whole = read(row)
        return replace(whole, token_ids=whole.token_ids[:-1])

    monkeypatch.setattr(rollouts, "_rollout", short)
    with pytest.raises(UnequalOutcomeError):
        run_contests(contests(SeededEngine.Config(max_new_tokens=4).build()), repeats=5, report=lambda line: None)
