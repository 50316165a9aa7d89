import json

import pytest

from benchmarks import speed as command
from benchmarks.harness.discovery import names_of
from benchmarks.methods.scalenet.speed import (
    BOUND,
    SIZES,
    Size,
    depth_contest,
    expansion_contest,
    largest_difference,
    shared_name,
    sides,
)
from benchmarks.races.lightning_step import lightning_contest
from benchmarks.races.output import ratios_table, render, result_of, write_results
from benchmarks.races.race import (
    Benchmark,
    Contest,
    Race,
    UnequalOutcomeError,
    measure,
    run_contests,
    summarize,
    timed,
)

SMALL = Size(
    "small",
    "width 16",
    "vit_tiny_patch16_224",
    rank=4,
    batch_size=2,
    image=(1, 8, 8),
    arguments=(
        ("img_size", 8),
        ("patch_size", 4),
        ("in_chans", 1),
        ("embed_dim", 16),
        ("num_heads", 2),
        ("num_classes", 10),
    ),
)


class Clock:
    """Measurements from a list, and a record of whose turn it was."""

    def __init__(self):
        self.turns = []

    def side(self, name, values):
        left = iter(values)

        def measurement():
            self.turns.append(name)
            return next(left)

        return measurement


def race(**changes):
    values = {"id": "r", "title": "t", "ours": lambda: 1.0, "peer": lambda: 2.0, "peer_name": "peer"}
    return Race(**{**values, **changes})


def test_sides_take_turns_and_the_first_pair_only_warms_up():
    clock = Clock()
    ours = clock.side("A", [99.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    peer = clock.side("B", [99.0, 2.0, 2.0, 9.0, 4.0, 20.0])
    assert measure(race(ours=ours, peer=peer), repeats=5) == ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.0, 9.0, 4.0, 20.0])
    assert "".join(clock.turns) == "AB" * 6


def test_ratio_is_the_median_of_paired_ratios_with_quartiles():
    entry = summarize(race(target=1.5), [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.0, 9.0, 4.0, 20.0])  # ratios 2 1 3 1 4
    assert (entry["ratio"], entry["low"], entry["high"]) == (2.0, 1.0, 3.0)
    assert (entry["ours"], entry["peer"]) == (3.0, 4.0)
    assert entry["met"] is True
    assert summarize(race(target=2.5), [1.0], [2.0])["met"] is False
    assert summarize(race(), [1.0], [2.0])["met"] is None


def test_drift_of_the_machine_cancels():
    slower = [1.0, 2.0, 4.0, 8.0, 16.0]
    entry = summarize(race(), slower, [1.1 * seconds for seconds in slower])
    assert entry["ratio"] == pytest.approx(1.1)
    assert entry["high"] - entry["low"] == pytest.approx(0, abs=1e-12)


def test_exact_numbers_are_measured_once():
    clock = Clock()
    ours, peer = clock.side("A", [3.0]), clock.side("B", [6.0])
    entry = summarize(race(), *measure(race(ours=ours, peer=peer, exact=True), repeats=5))
    assert (entry["ratio"], entry["low"], entry["high"]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_sides_that_compute_different_things_are_not_raced(error):
    def never():
        raise AssertionError("raced")

    contest = Contest("sum", lambda: (error, 0.1), (race(ours=never),))
    with pytest.raises(UnequalOutcomeError, match="sum: the two sides differ by"):
        run_contests([contest], repeats=5)


def test_contests_are_built_one_at_a_time_and_reported():
    built, lines = [], []

    def contests():
        for name in ("first", "second"):
            built.append((name, len(lines)))
            yield Contest(name, lambda: (1e-7, 1e-6), (race(id=name, target=1.5),))

    entries = run_contests(contests(), repeats=5, report=lines.append)
    assert built == [("first", 0), ("second", 1)]
    assert [entry["id"] for entry in entries] == ["first", "second"]
    assert lines[0] == "first: ratio 2.000 (2.000 to 2.000)"
    assert entries[0]["error"] == 1e-7
    assert entries[0]["measurements"] == {"ours": [1.0] * 5, "peer": [2.0] * 5}


def test_timed_returns_the_seconds_of_one_call():
    calls = []
    assert timed(lambda: calls.append(1))() >= 0
    assert calls == [1]


def test_written_results_are_whole(tmp_path):
    contest = Contest("c", lambda: (0, 0), (race(id="fast", title="a | b", target=1.5), race(id="slow", unit="MB")))
    benchmark = Benchmark("Toy", "Two numbers.", ())
    result = result_of("toy", benchmark, run_contests([contest], repeats=5, report=lambda line: None), seconds=1.0)
    paths = write_results(result, tmp_path)
    assert [path.name for path in paths] == ["toy.json", "toy.md"]
    assert json.loads(paths[0].read_text()) == result
    assert [entry["met"] for entry in result["ratios"]] == [True, None]
    text = render(result)
    assert "| a \\| b, against peer | 1.000 s | 2.000 s | 2.000 | at least 1.500 | yes |" in text
    assert "| t, against peer | 1.000 MB | 2.000 MB | 2.000 | reported | - |" in text
    rows, columns = ratios_table(result)
    assert set(rows[0]) == set(columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scalnet"], "Did you mean 'scalenet'?"),
        (["scalenet", "--repeats", "4"], "--repeats 4: a median with quartiles needs at least 5"),
    ],
)
def test_the_command_answers_wrong_arguments_with_exit_code_2(arguments, message, capsys):
    assert "scalenet" in names_of("speed")
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_shared_names_lead_to_the_owner():
    assert shared_name("blocks.13.attn.qkv.weight") == "blocks.1.attn.module.qkv.weight"
    assert shared_name("blocks.3.mlp.fc1.bias") == "blocks.3.mlp.module.fc1.bias"
    assert shared_name("blocks.13.norm1.weight") == "blocks.13.norm1.weight"
    assert shared_name("head.weight") == "head.weight"


def test_scalenet_and_its_unshared_peer_compute_the_same_and_the_check_would_see_otherwise():
    import torch

    ours, peer = sides(SMALL)
    assert largest_difference(ours, peer) <= BOUND
    with torch.no_grad():
        peer.model.blocks[15].mlp.fc1.weight[0, 0] += 0.1
    assert largest_difference(ours, peer) > 100 * BOUND


def test_scalenet_memory_is_counted_from_the_tensors():
    for side in sides(SMALL):
        # Weight, gradient and two moments in 4 bytes each, and one step counter a tensor.
        expected = sum(16 * parameter.numel() + 4 for parameter in side.model.parameters())
        assert side.megabytes() == pytest.approx(expected / 1e6)


def test_scalenet_races_have_the_targets_of_the_project():
    races = {race.id: race for size in SIZES[:1] for race in depth_contest(size).races}
    assert {name: race.target for name, race in races.items()} == {
        "step_digits": None,
        "gradients_digits": None,
        "memory_digits": None,
    }
    small = {race.id: race.target for race in depth_contest(SMALL).races}
    assert small["step_small"] == pytest.approx(1 / 1.08)
    assert small["gradients_small"] is None
    assert small["memory_small"] == pytest.approx(1 / 0.6)
    assert [(size.backbone, size.rank) for size in SIZES[1:]] == [
        ("deit_small_patch16_224", 16),
        ("deit_base_patch16_224", 32),
    ]


@pytest.mark.slow
def test_expansion_of_deit_b_adds_the_parameters_of_the_formula():
    assert expansion_contest().check() == (0, 0)


@pytest.mark.slow
def test_lightning_and_the_bare_loop_end_with_the_same_weights():
    assert lightning_contest().check()[0] == 0


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1.0, 1)])
def test_the_command_writes_ratios_unless_the_sides_differ(error, code, tmp_path, monkeypatch, capsys):
    contest = Contest("toy contest", lambda: (error, 0.5), (race(target=1.5),))
    monkeypatch.setattr(command, "load", lambda package, name: lambda: Benchmark("Toy", "Two numbers.", [contest]))
    assert command.main(["toy", "--repeats", "5", "--results", str(tmp_path)]) == code
    assert (tmp_path / "toy.json").exists() == (code == 0)
    assert ("toy contest: the two sides differ" in capsys.readouterr().err) == (code == 1)
