"""The post-training claims: fair arms, and a miniature run of all of them in this process."""

from __future__ import annotations

import pytest

from benchmarks.harness.arms import ArmInput
from benchmarks.methods.posttrain import claims as posttrain
from benchmarks.methods.posttrain.rows import BATCH, CURRICULA, DISTILLED, MIXED_SHARE, TUNED_ON
from benchmarks.methods.posttrain.task import ACC_THINKING, KeptShare

METHOD = posttrain.benchmark()


def test_gates_use_arms_that_run_on_three_seeds():
    assert METHOD.seeds == 3
    for claim in METHOD.claims:
        if claim.rule is not None:
            assert all(METHOD.arm(arm).seeds is None for arm in claim.quantity.arms), claim.id


def test_what_follows_the_student_takes_as_many_steps_of_as_many_rows():
    for row in (*TUNED_ON, *DISTILLED):
        recipe = METHOD.arm(row.name).config["recipe"]
        if row.stage in ("fast", "distill"):
            halves = row.name in ("round_1", "rounds_2")
            assert recipe["trainer"]["max_steps"] == (100 if halves else 200), row.name
            assert recipe["data"]["batch_size"] == BATCH
            assert recipe["module"]["optimizer"]["lr"] == 2e-3


def test_curricula_of_equal_length_are_compared():
    steps = {row.name: METHOD.arm(row.name).config["recipe"]["trainer"]["max_steps"] for row in CURRICULA}
    assert steps["reason"] + steps["start"] == steps["mixed"] == steps["fast_alone"] == steps["thinking_alone"] == 900
    assert steps["fast_first"] + steps["reversed"] == 900
    mixed = METHOD.arm("mixed").config["recipe"]["data"]["thinking_share"]
    assert mixed * 900 == pytest.approx(400 + 0.25 * 500)
    assert mixed == MIXED_SHARE


def test_answers_are_to_the_same_prompts_and_rows_are_seen_once():
    seeds = {
        arm.config["recipe"]["data"]["seed"] for arm in METHOD.arms if arm.name.endswith(("samples", "references"))
    }
    assert len(seeds) == 1
    for row in CURRICULA:
        recipe = METHOD.arm(row.name).config["recipe"]
        assert recipe["data"]["num_train"] == recipe["trainer"]["max_steps"] * BATCH


def test_a_kept_share_of_nothing_is_nothing():
    kept = KeptShare(ACC_THINKING, "a", "b")
    assert kept.of({"a": {ACC_THINKING.key: 0.4}, "b": {ACC_THINKING.key: 0.5}}) == pytest.approx(80)
    assert kept.of({"a": {ACC_THINKING.key: 0.4}, "b": {ACC_THINKING.key: 0.0}}) == 0


@pytest.mark.slow
def test_all_arms_run_in_miniature(tmp_path):
    method = posttrain.benchmark(miniature=True)
    results: dict[str, dict[str, float]] = {}
    for arm in method.arms:
        folder = tmp_path / arm.name
        folder.mkdir()
        inputs = {name: ArmInput(tmp_path / name, results[name]) for name in arm.needs}
        results[arm.name] = dict(arm.run(0, inputs, folder))
        assert results[arm.name]["wall_seconds"] > 0
    for claim in method.claims:
        claim.quantity.of(results)
    # a student's time counts the answers and the teacher's pass that it learns from
    made = results["samples"]["wall_seconds"] + results["scores"]["wall_seconds"]
    assert results["on_policy"]["wall_seconds"] == pytest.approx(results["on_policy"]["train_seconds"] + made)
    assert results["online"]["wall_seconds"] == results["online"]["train_seconds"]
