"""The races of post-training at miniature size: sides that compute the same, and counts that are those of the sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llm import TINY_LLAMA, word_tokenizer

from benchmarks.methods.posttrain import speed_cache, speed_trl
from benchmarks.methods.posttrain.speed_cache import random_scores, reading_contest, size_contest
from benchmarks.methods.posttrain.speed_setting import Setting, cached, sampled
from benchmarks.methods.posttrain.speed_step import logits, loss_of, memory_contest, step_contest, support_of
from benchmarks.races.race import UnequalOutcomeError, run_contests
from pangu_modules.llm.models.loading import new_causal_lm

PROMPTS = ("w1 w2", "w3 w4 w5", "w6", "w7 w8")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    sizes = {"student": {**TINY_LLAMA, "num_hidden_layers": 1}, "teacher": TINY_LLAMA}
    for seed, (name, model_args) in enumerate(sizes.items()):
        torch.manual_seed(seed)
        model: Any = new_causal_lm("llama", {**model_args, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
        model.save_pretrained(tmp_path / name)
    word_tokenizer(tmp_path / "student")
    return Setting(
        str(tmp_path),
        str(tmp_path / "student"),
        str(tmp_path / "teacher"),
        PROMPTS,
        new_tokens=6,
        batch_size=2,
        top_k=8,
    )


def quiet(contests: Any) -> list[dict[str, Any]]:
    return run_contests(contests, repeats=1, report=lambda line: None)


def test_bytes_are_those_of_the_format() -> None:
    """Would fail if ids were kept in whole bytes: 12 bits and 16 make 3.5 bytes for each of 32 tokens."""
    full, limit = quiet([size_contest(vocabulary=4096, samples=64, tokens=64)])
    assert full["ours"] == limit["ours"]
    assert 80 < full["ours"] < 114  # 2 bytes are the token's own; zstd takes 10 % of the sorted log-probabilities
    assert full["peer"] == 2 * 4096


def test_a_cache_that_loses_an_id_is_no_side_of_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*sizes: int) -> Any:
        return [replace(one, top_ids=one.top_ids.clip(max=100)) for one in random_scores(*sizes)]

    contest = size_contest(vocabulary=128, samples=2, tokens=4)
    assert contest.check()[0] <= contest.check()[1]
    monkeypatch.setattr("pangu_modules.llm.generation.store.score_rows.read_scores", lambda _: shifted(128, 2, 4))
    with pytest.raises(UnequalOutcomeError):
        quiet([size_contest(vocabulary=128, samples=2, tokens=4)])


def test_a_step_with_reading_takes_longer_than_the_step(setting: Setting) -> None:
    read, size = quiet([reading_contest(setting, sampled(setting), "toy", "a toy")])
    assert 0 < read["ratio"] < 1
    assert read["target"] == speed_cache.READ_TARGET
    assert size["peer"] == 2 * TINY_LLAMA["vocab_size"]


def test_a_sure_teacher_is_cross_entropy_and_both_steps_train(setting: Setting) -> None:
    contest = step_contest(setting, sampled(setting), "toy", "a toy")
    error, bound = contest.check()
    assert error <= bound
    (entry,) = quiet([contest])
    assert "24" not in entry["title"]  # a batch of two samples of six tokens, not the whole cache
    assert "12 target tokens" in entry["title"]


def test_losses_are_equal_at_the_whole_vocabulary_alone() -> None:
    error, bound = memory_contest().check()
    assert error <= bound
    student, teacher = logits(8, 64, seed=0), logits(8, 64, seed=1)
    seen = loss_of("cached", student, support_of(teacher, 8))
    assert float(loss_of("full", student, teacher) - seen) > 1e-3  # a bucket hides what differs in it


def test_given_samples_are_found_by_their_prompts(setting: Setting) -> None:
    rollouts = sampled(setting)
    cached(setting, "raced", rollouts, 8)
    order = speed_trl.order_of(setting, rollouts)
    assert sorted(order) == sorted(PROMPTS)
    given = speed_trl.GivenSamples(rollouts)
    ids = [list(rollouts[1].prompt_ids), [9, *rollouts[0].prompt_ids]]  # the second is padded on the left
    mask = [[1, 1, 1], [0, 1, 1]]
    found = given(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    assert found[:, 3:].tolist() == [list(rollouts[1].token_ids), list(rollouts[0].token_ids)]


@pytest.mark.slow  # needs a library that is no dependency
def test_trl_trains_by_the_same_losses(setting: Setting) -> None:
    """Would fail if TRL saw other samples, another order, another divergence or another optimizer."""
    if not speed_trl.has_trl():
        pytest.skip(f"needs TRL: {speed_trl.VARIABLE} names no folder with it")
    contest = speed_trl.trl_contest(setting, sampled(setting), "toy", "a toy")
    error, bound = contest.check()
    assert error <= bound
    rollouts, order = sampled(setting), list(PROMPTS)
    ours, peer = speed_trl.fit_ours(setting, "raced")[1], speed_trl.fit_trl(setting, rollouts, order)[1]
    assert len(ours) == len(peer) == 2
