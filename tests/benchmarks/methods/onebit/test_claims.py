"""The one-bit claims: fair arms, arms that take numbers from others, and a miniature run of all."""

import csv
import json
import math
from pathlib import Path

import pytest

from benchmarks import claims as command
from benchmarks.harness.arms import ArmInput
from benchmarks.harness.verdicts import MostSeedsAbove
from benchmarks.methods.onebit import claims as onebit
from benchmarks.methods.onebit import figures as onebit_figures
from benchmarks.methods.onebit.task import MEASURED, BestOf, Taken, read_losses
from pangu_modules import OneBitConfig

METHOD = onebit.benchmark()


def converted():
    return [arm for arm in METHOD.arms if arm.run.__class__.__name__ == "OneBitRun" and arm.run.stage == "binarize"]


def test_gates_use_arms_that_run_on_three_seeds():
    assert METHOD.seeds == 3
    for claim in METHOD.claims:
        if claim.rule is not None:
            assert all(METHOD.arm(arm).seeds is None for arm in claim.quantity.arms), claim.id


def test_all_arms_see_the_same_steps_and_data():
    """Stage 1 counts as steps."""
    for arm in converted():
        changes = arm.run.changes
        onebit_settings = next(iter(arm.config["recipe"]["callbacks"].values())) or {}
        init = onebit_settings.get("method", {})
        spent = init["init_steps"] if init.get("init") == "learned" else 0
        assert changes["trainer"]["max_steps"] + spent == 250, arm.name
        assert arm.config["recipe"]["data"] == converted()[0].config["recipe"]["data"], arm.name


def test_the_base_has_3000_steps_of_1024_tokens_on_the_same_text():
    base = METHOD.arm("base").config["recipe"]
    assert base["trainer"]["max_steps"] == 3000
    assert base["data"]["batch_size"] * base["data"]["sequence_length"] == 1024
    other = converted()[0].config["recipe"]["data"]
    assert {**base["data"], "batch_size": 8} == other


def test_competitors_are_tuned_over_as_many_rates():
    for name in ("progressive", "ste", "svid", "constant", "scratch"):
        tried = METHOD.arm(name).needs
        assert len(tried) == 2
        rates = {METHOD.arm(arm).config["recipe"]["module"]["optimizer"]["lr"] for arm in tried}
        assert rates == ({2e-3, 4e-3} if name == "scratch" else {1e-3, 2e-3})


def test_the_control_ends_at_ten():
    assert OneBitConfig(t_b=onebit.T_END_10).t_end == pytest.approx(10)


def test_the_better_rate_is_chosen_by_validation(tmp_path):
    inputs = {
        "a": ArmInput(tmp_path, {"val/loss": 3.0, "test/loss": 3.5, "seconds": 1.0, "cpu_seconds": 1.0}),
        "b": ArmInput(tmp_path, {"val/loss": 3.1, "test/loss": 3.4, "seconds": 1.0, "cpu_seconds": 1.0}),
    }
    assert BestOf(("a", "b"))(0, inputs, tmp_path) == {"val/loss": 3.0, "test/loss": 3.5}
    assert Taken("b", "val/loss")(0, inputs, tmp_path) == {"test/loss": 3.1}


def test_taken_losses_are_measured():
    for arm in METHOD.arms:
        if isinstance(arm.run, Taken):
            assert arm.run.arm in MEASURED
    assert all(METHOD.arm(name).config["recipe"]["callbacks"]["binarize"]["measure"] for name in MEASURED)


def test_two_thirds_of_the_seeds():
    assert MostSeedsAbove().judge([0.1, 0.1, -0.1]) == "holds"
    assert MostSeedsAbove().judge([0.1, -0.1, -0.1]) == "does not hold"
    assert MostSeedsAbove().judge([0.1, 0.1]) == "undecided"


def test_losses_are_read_step_by_step(tmp_path: Path):
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/loss"])
        writer.writeheader()
        writer.writerows({"step": step, "train/loss": 5 - step} for step in range(3))
        writer.writerow({"step": 2, "val/loss": 2.5})
    assert read_losses(tmp_path / "metrics.csv") == ([5.0, 4.0, 3.0], 2.5)


@pytest.mark.slow
def test_all_arms_run_in_miniature(tmp_path):
    assert command.main(["onebit", "--miniature", "--seeds", "1", "--jobs", "2", "--work", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "miniature" / "results" / "onebit.json").read_text())
    assert {entry["verdict"] for entry in result["claims"]} == {"undecided"}
    start = next(entry for entry in result["claims"] if entry["id"] == "starts_dense")
    assert start["values"] == [0.0]
    assert all(math.isfinite(value) for entry in result["reported"] for value in entry["values"])


def test_the_curves_are_drawn_from_the_result_file(tmp_path: Path):
    numbers = [{"curve_0000": 4.0, "curve_0010": 3.0, "test/loss": 3.0}, {"curve_0000": 5.0, "curve_0010": 4.0}]
    results = {str(seed): values for seed, values in enumerate(numbers)}
    assert onebit_figures.mean_curve(results) == [4.5, 3.5]
    arms = {"ste_lr2": {"description": "straight-through", "results": results}}
    (tmp_path / "onebit.json").write_text(json.dumps({"arms": arms}))
    assert onebit_figures.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "onebit_curves.png").stat().st_size > 1000
