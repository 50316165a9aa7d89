"""The pruning claims: which arms their gates need, the texts' splits, and a miniature run of all."""

import json

import pytest

from benchmarks import claims as command
from benchmarks.harness.quantities import RelativeGain
from benchmarks.harness.running import fingerprint
from benchmarks.methods.pangu_light import claims as pangu_light
from benchmarks.methods.pruning.task import START, Pick, load_texts
from benchmarks.methods.slimllm import claims as slimllm

METHODS = {"slimllm": slimllm.benchmark, "pangu_light": pangu_light.benchmark}


@pytest.mark.parametrize("name", METHODS)
def test_gates_use_arms_that_run_on_three_calibration_sets(name):
    method = METHODS[name]()
    assert method.seeds == 3
    for claim in method.claims:
        if claim.rule is not None:
            assert all(method.arm(arm).seeds is None for arm in claim.quantity.arms), claim.id


@pytest.mark.parametrize("name", METHODS)
def test_a_group_is_stale_when_any_of_its_variants_changes(name):
    method = METHODS[name]()
    real = {arm.name: fingerprint(method, arm) for arm in method.arms}
    small = METHODS[name](miniature=True)
    assert all(real[arm.name] != fingerprint(small, arm) for arm in small.arms)
    leaders = {arm.run.leader for arm in method.arms if isinstance(arm.run, Pick)}
    for leader in leaders:
        stored = [variant["name"] for variant in method.arm(leader).config["variants"]]
        picked = [arm.name for arm in method.arms if isinstance(arm.run, Pick) and arm.run.leader == leader]
        assert stored == [leader, *picked]


def test_every_baseline_is_compared_at_both_shares():
    method = slimllm.benchmark()
    names = {arm.name for arm in method.arms}
    for baseline in ("random", "magnitude", "minitron", "wanda_sp", "flap", "llm_pruner", "shortgpt"):
        for percent in (20, 50):
            assert f"{baseline}_{percent}" in names
            assert any(claim.quantity.over == f"{baseline}_{percent}" for claim in method.claims)


def test_the_gain_is_relative():
    results = {"ours": {"perplexity": 8.0}, "theirs": {"perplexity": 10.0}}
    assert RelativeGain(START, "ours", "theirs").of(results) == pytest.approx(20)
    assert RelativeGain(START, "theirs", "ours").of(results) == pytest.approx(-25)


def test_the_texts_share_nothing_and_the_sets_differ():
    from datamodules.text.ngrams import shared_ngrams

    pytest.importorskip("transformers")
    sets = [load_texts(seed, miniature=True) for seed in range(3)]
    texts = sets[0]
    assert (
        shared_ngrams(texts.held_out, texts.recovery, 16) == shared_ngrams(texts.calibration, texts.recovery, 16) == 0
    )
    assert all((texts.held_out == other.held_out).all() for other in sets)
    for index, other in enumerate(sets):
        assert shared_ngrams(other.calibration, sets[index - 1].calibration, 128) == 0
    assert texts.removed > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_all_arms_run_in_miniature(name, tmp_path):
    assert command.main([name, "--miniature", "--seeds", "1", "--jobs", "2", "--work", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "miniature" / "results" / f"{name}.json").read_text())
    assert {entry["verdict"] for entry in result["claims"]} == {"undecided"}
