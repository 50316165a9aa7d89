"""DWM's claims: which arms the gates need, margins, what the arms read from reports, and a miniature run of all."""

import json

import pytest

from benchmarks import claims as command
from benchmarks.harness.arms import ArmInput
from benchmarks.harness.running import fingerprint
from benchmarks.methods.dwm.claims import GATES, benchmark
from benchmarks.methods.dwm.curves import draw, series
from benchmarks.methods.dwm.rows import NOISE
from benchmarks.methods.dwm.task import WeighedRun, ess_by_round, interleaved, noise_weight, shift
from callbacks.weighting.preferences import DomainWeights, Preferences, RoundSummary
from recipes.dwm_text import DOMAINS

PROSE = DomainWeights(domain="prose", tokens=60, means={0: 1.0, 1: 1.4, 2: 1.6}, errors={0: 0.0, 1: 0.03, 2: 0.04})
CODE = DomainWeights(domain="code", tokens=40, means={0: 1.0, 1: 0.6, 2: 0.4}, errors={0: 0.0, 1: 0.02, 2: 0.02})
ROUNDS = tuple(
    RoundSummary(round=number, updates=1, effective_batch=share, last_loss=loss)
    for number, share, loss in ((0, 1.0, 6.0), (1, 0.8, 5.5), (2, 0.6, None))
)


def recipes_of(method):
    return {arm.name: arm.config["recipe"] for arm in method.arms}


def test_gates_need_only_arms_that_run_on_all_seeds():
    method = benchmark()
    assert method.seeds >= 3
    for claim in GATES:
        assert all(method.arm(arm).seeds is None for arm in claim.quantity.arms), claim.id


def test_arms_differ_in_the_weights_alone():
    recipes = recipes_of(benchmark())
    mixed = ("uniform", "dwm", "random", "static", "per_sample", "loss_high", "loss_low", "perplexity", "dsir",
             "classifier")  # fmt: skip
    for part in ("module", "data", "trainer"):
        assert all(recipes[name][part] == recipes["dwm"][part] for name in mixed)
    assert recipes["dwm"]["module"]["model_args"]["num_hidden_layers"] == 4
    assert recipes["dwm"]["module"]["model_args"]["hidden_size"] == 128
    assert recipes["wide_transfer"]["module"]["model_args"]["hidden_size"] == 256
    assert recipes["static"]["callbacks"]["dwm"]["freeze_after_round"] == 1
    assert recipes["per_sample"]["callbacks"]["dwm"]["method"]["model"]["num_mix"] == 0
    assert recipes["uniform"]["callbacks"]["dwm"] is None


def test_baselines_are_told_by_the_rounds_of_dwm():
    recipes = recipes_of(benchmark())
    for name, baseline in (("dwm", "uniform"), ("dwm", "influence"), ("smollm2_dwm", "smollm2_uniform")):
        rounds = recipes[name]["callbacks"]["dwm"]["num_rounds"]
        assert recipes[baseline]["callbacks"]["weighting"]["num_rounds"] == rounds


def test_half_of_the_mixture_is_clean_and_the_oracle_is_all_clean():
    shares = {name: domain.share for name, domain in DOMAINS.items()}
    assert tuple(shares) == ("prose", *NOISE)
    assert shares["prose"] == sum(shares[name] for name in NOISE)
    oracle = recipes_of(benchmark())["oracle"]["data"]["domains"]
    assert [name for name, domain in oracle.items() if domain["share"] > 0] == ["prose"]


def test_the_seed_reaches_run_data_and_weights():
    method = benchmark()
    for name in ("dwm", "random"):
        recipe = method.arm(name).run.derived(seed=7).plain()
        callback = recipe["callbacks"]["dwm" if name == "dwm" else "weighting"]
        assert recipe["seed"] == recipe["data"]["seed"] == callback["seed"] == 7


def test_random_and_transfer_take_over_from_dwm(tmp_path):
    inputs = {"dwm": ArmInput(tmp_path, {"ess_round1": 0.75, "ess_round0": 1.0000001})}
    method = benchmark()
    random = method.arm("random").run.derived(0, inputs).plain()["callbacks"]["weighting"]
    assert random["method"]["ess"] == [1.0, 0.75]
    transfer = method.arm("wide_transfer").run.derived(0, inputs).plain()["callbacks"]["dwm"]
    assert transfer["frozen"] == str(tmp_path / "run")
    assert method.arm("random").needs == method.arm("wide_transfer").needs == ("dwm",)
    assert ess_by_round({"ess_round10": 0.2, "ess_round9": 0.5, "ess": 0.1}) == (0.5, 0.2)


def test_numbers_from_the_reports_tables():
    values = WeighedRun("recipe", noise=("code",), followed="prose").numbers(
        Preferences(domains=(PROSE, CODE), rounds=ROUNDS)
    )
    assert values["ess"] == 0.6
    assert values["ess_round1"] == 0.8
    assert values["target_loss_round0"] == 6.0
    assert "target_loss_round2" not in values
    assert values["tokens_code"] == 40
    assert values["weight_code_round1"] == 0.6
    assert values["noise_weight"] == noise_weight([CODE]) == 0.4
    assert values["shift"] == shift(PROSE) == pytest.approx(0.2 / 0.05)


def test_actions_are_timed_in_turn():
    calls = []
    times = interleaved(lambda: calls.append("a"), lambda: calls.append("b"))
    assert len(times) == 2
    assert calls[:4] == ["a", "b", "a", "b"]


def test_miniature_results_are_never_taken_for_real_ones():
    real, small = benchmark(), benchmark(miniature=True)
    assert all(fingerprint(small, arm) != fingerprint(real, real.arm(arm.name)) for arm in small.arms)


@pytest.mark.slow
def test_all_arms_run_in_miniature(tmp_path):
    assert command.main(["dwm", "--miniature", "--seeds", "1", "--jobs", "2", "--work", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "miniature" / "results" / "dwm.json").read_text())
    assert {entry["verdict"] for entry in result["claims"]} == {"undecided"}
    assert set(result["arms"]) == {arm.name for arm in benchmark(miniature=True).arms}
    assert result["arms"]["uniform"]["results"]["0"]["noise_weight"] == 1.0


def test_curves_compare_arms_on_the_seeds_that_all_have():
    arms = {
        name: {"results": {str(seed): {"ess_round0": 1.0, "target_loss_round0": 5.0 + seed, "weight_prose_round0": 1.0}
                           for seed in range(seeds)}}
        for name, seeds in (("uniform", 3), ("dwm", 3), ("dsir", 1))
    }  # fmt: skip
    _, batch, loss = draw(arms, ["prose"]).axes
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[5.0]] * 3
    assert loss.get_ylabel().endswith("(seed 0)")
    assert len(batch.get_lines()) == 2  # uniform weights are 1 throughout
    assert series(arms["dwm"], "target_loss") == [6.0]
