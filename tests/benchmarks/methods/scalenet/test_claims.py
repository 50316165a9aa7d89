import json

import pytest

from benchmarks import claims as command
from benchmarks.harness.running import fingerprint
from benchmarks.methods.scalenet.claims import GATES, arms, benchmark
from benchmarks.methods.scalenet.task import added_parameters

GATED = {"base", "scalenet", "continued", "no_adapters", "scratch", "scratch_3e"}


def test_arms_train_as_the_method_describes():
    declared = {arm.name: arm for arm in arms(miniature=False)}
    stages = {name: arm.config["recipe"] for name, arm in declared.items()}
    assert {name: stage["trainer"]["max_epochs"] for name, stage in stages.items() if name in GATED} == {
        "base": 45,
        "scalenet": 15,
        "continued": 15,
        "no_adapters": 15,
        "scratch": 15,
        "scratch_3e": 45,
    }
    for stage in stages.values():
        epochs, optimizer = stage["trainer"]["max_epochs"], stage["module"]["optimizer"]
        assert stage["trainer"]["gradient_clip_val"] == 1
        assert optimizer["warmup_share"] == pytest.approx(1 / epochs)
        assert (optimizer["lr"], optimizer["weight_decay"], optimizer["schedule"]) == (2e-3, 0.05, "cosine")
        assert (stage["data"]["train_size"], stage["data"]["test_size"], stage["data"]["batch_size"]) == (
            2000,
            1000,
            64,
        )
        assert stage["module"]["model_args"]["embed_dim"] == 64
    needs = {name for name, arm in declared.items() if arm.needs == ("base",)}
    assert needs == set(declared) - {"base", "scratch", "scratch_3e"}
    assert stages["scalenet"]["module"]["adapter_rank"] == 8
    assert stages["no_adapters"]["module"]["adapter_on"] == []
    assert stages["scratch"]["module"]["model_args"]["depth"] == 24


def test_gates_need_only_the_arms_that_run_on_all_seeds():
    method = benchmark()
    assert {arm.name for arm in method.arms if arm.seeds is None} == GATED
    assert {name for claim in GATES for name in claim.quantity.arms} <= GATED
    assert method.seeds >= 3


def test_added_parameters_equal_the_counts_derived_from_the_paper():
    assert added_parameters(64, 12, 8) == 55_680
    assert added_parameters(192, 12, 16) == 314_112
    assert added_parameters(384, 12, 16) == 627_456
    assert added_parameters(768, 12, 32) == 2_434_560


def test_miniature_results_are_never_taken_for_real_ones():
    real, small = benchmark(), benchmark(miniature=True)
    prints = [{arm.name: fingerprint(method, arm) for arm in method.arms} for method in (real, small)]
    assert all(prints[0][name] != prints[1][name] for name in prints[0])


@pytest.mark.slow
def test_all_arms_run_in_miniature(tmp_path):
    arguments = ["scalenet", "--miniature", "--seeds", "1", "--jobs", "2", "--work", str(tmp_path)]
    assert command.main(arguments) == 0
    result = json.loads((tmp_path / "miniature" / "results" / "scalenet.json").read_text())
    assert {entry["verdict"] for entry in result["claims"]} == {"undecided"}
    added = next(entry for entry in result["claims"] if entry["id"] == "added_parameters")
    assert added["values"] == [55_680]
    assert len(result["arms"]) == 11
