"""MoGE's claims: arms that differ in the router alone, margins, the tasks beside training, and a miniature run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import claims as command
from benchmarks.harness.running import fingerprint
from benchmarks.methods.moge.claims import GATES, STEPS, benchmark
from benchmarks.methods.moge.task import (
    UNIFORM,
    ExpertTime,
    RoundTrip,
    UniformRouters,
    distance,
    proportion_distance,
)
from pangu_modules.llm.moge.routing import route_moge, route_topk


def test_gates_need_only_arms_that_run_on_all_seeds() -> None:
    method = benchmark()
    assert method.seeds >= 3
    for claim in GATES:
        arms = claim.quantity.arms
        assert all(method.arm(arm).seeds is None for arm in arms), claim.id


def test_text_arms_differ_in_router_and_auxiliary_loss_alone() -> None:
    method = benchmark()
    recipes = {
        name: method.arm(name).config["recipe"] for name in ("moge", "topk", "moge_free", "topk_free", "deepseek")
    }
    moge = recipes["moge"]
    assert moge["trainer"]["max_steps"] == STEPS >= 1500
    for name, recipe in recipes.items():
        assert recipe["data"] == moge["data"]
        assert recipe["trainer"] == moge["trainer"]
        ours, own = (
            {
                key: value
                for key, value in each["module"]["model_args"].items()
                if not key.startswith(("router", "kept"))
            }
            for each in (moge, recipe)
        )
        assert ours == {key: value for key, value in own.items() if key != "norm_topk_prob"}
        free = name.endswith("free") or name == "deepseek"
        assert recipe["callbacks"]["balance"]["method"]["coefficient"] == (0.0 if free else 0.01)
    assert recipes["topk"]["module"]["model_args"]["router"] == "topk"


def test_the_seed_reaches_weights_and_order() -> None:
    recipe = benchmark().arm("topk").run.derived(seed=7).plain()  # type: ignore[attr-defined]
    assert recipe["seed"] == recipe["data"]["seed"] == 7


def test_upcycled_arms_differ_in_the_router() -> None:
    method = benchmark()
    plans = [method.arm(f"smollm2_{name}").config["recipe"]["module"]["structure"][0] for name in ("moge", "topk")]
    assert [plan["upcycle"].pop("router") for plan in plans] == ["moge", "topk"]
    assert plans[0] == plans[1]


def test_untrained_routers_meet_the_known_values(tmp_path: Path) -> None:
    values = UniformRouters({1: 1000, 16: 200})(0, {}, tmp_path)
    assert values["moge_imbalance"] == 0
    assert values["deviation"] < 4  # 14 distances; their own verdict is the claim's, at more trials
    assert values["imbalance_m8_16"] == pytest.approx(UNIFORM[8, 16][0], rel=0.05)  # standard error 2 %
    assert values["unbalanced_m8_1"] > 0.98


def test_distances() -> None:
    sample = torch.tensor([1.0, 2.0, 3.0, 4.0])
    error = float(sample.std()) * (1 / 4 + 1 / 300) ** 0.5
    assert distance(sample, 2.5) == 0
    assert distance(sample, 1.234) == pytest.approx((2.5 - 1.234 - 0.0005) / error)
    assert proportion_distance(0.6, 0.5, 100) == pytest.approx(2)


def test_rows_of_devices_are_those_of_the_router() -> None:
    logits = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 2, 32)
    timed = ExpertTime(devices=4)
    moge, topk = (timed._local(routing.expert_ids) for routing in (route_moge(logits, 8, 8), route_topk(logits, 8)))
    assert [len(rows) for rows in moge] == [128] * 4
    ids = route_topk(logits, 8).expert_ids
    assert [len(rows) for rows in topk] == [int(((ids >= 8 * d) & (ids < 8 * d + 8)).sum()) for d in range(4)]
    assert all(int(rows.min()) >= 0 and int(rows.max()) < 8 for rows in (*moge, *topk))


def test_a_released_checkpoint_survives(tmp_path: Path) -> None:
    values = RoundTrip()(0, {}, tmp_path)
    assert values["changed_tensors"] == 0
    assert 0 < values["logit_error"] < 1e-5


def test_miniature_results_are_never_taken_for_real_ones() -> None:
    real, small = benchmark(), benchmark(miniature=True)
    kept = {"checkpoint"}  # it has one size
    assert all(
        fingerprint(small, arm) != fingerprint(real, real.arm(arm.name)) for arm in small.arms if arm.name not in kept
    )


@pytest.mark.slow
def test_all_arms_run_in_miniature(tmp_path: Path) -> None:
    assert command.main(["moge", "--miniature", "--seeds", "1", "--jobs", "2", "--work", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "miniature" / "results" / "moge.json").read_text())
    assert {entry["verdict"] for entry in result["claims"]} == {"undecided"}
    assert set(result["arms"]) == {arm.name for arm in benchmark(miniature=True).arms}
    assert result["arms"]["moge"]["results"]["0"]["test/load/imbalance_16"] == 0
    assert result["arms"]["speculation"]["results"]["0"]["equal"] == 1
