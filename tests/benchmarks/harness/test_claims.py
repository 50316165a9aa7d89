import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import claims as command
from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.discovery import load, names_of
from benchmarks.harness.output import (
    claims_table,
    draw,
    judge,
    measured_text,
    render,
    result_of,
    terminal_rows,
    write_results,
)
from benchmarks.harness.quantities import Gain, Metric, Ratio
from benchmarks.harness.reuse import reuse_results
from benchmarks.harness.running import ArmsFailedError, fingerprint, run_arms, tasks_of
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MeanAbove
from benchmarks.harness.worker import checked

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
toy_arms = importlib.import_module("toy_arms")  # worker processes find it by this name and path

NOISE = toy_arms.NOISE
ACCURACY = Metric("accuracy", "accuracy", "%", scale=100, digits=1, difference_unit="points")
LOSS = Metric("loss", "loss", "nats", higher_is_better=False, log_axis=True)
SIZE = Metric("size", "parameters", digits=0)


def method(**changes):
    arms = (
        Arm("base", "the base", toy_arms.base_arm, config={"width": 64}),
        Arm("better", "the method | better", partial(toy_arms.better_arm, 0.02), config={"rank": 8}, needs=("base",)),
        Arm("extra", "only reported", toy_arms.base_arm, seeds=1),
    )
    claims = (
        Claim("accuracy", "Better by a point", Gain(ACCURACY, "better", "base"), MeanAbove(1.0), "+7.42 points"),
        Claim("loss", "Lower loss", Gain(LOSS, "better", "base"), EverySeedAbove(0.0)),
        Claim("size", "Seven more", Gain(SIZE, "better", "base"), AlwaysEqual(7)),
        Claim("time", "Time over the base", Ratio(SIZE, "better", "base")),
        Claim("extra", "Extra arm", Gain(ACCURACY, "extra", "base")),
    )
    values = {
        "name": "toy",
        "title": "Toy",
        "source": "nowhere",
        "setup": "Two numbers.",
        "arms": arms,
        "claims": claims,
        "metrics": (ACCURACY, LOSS),
        "figure": (ACCURACY, LOSS),
        "seeds": 3,
    }
    return Method(**{**values, **changes})


def results(seeds=3):
    by_seed = {}
    for seed in range(seeds):
        times = {"seconds": 2.0, "cpu_seconds": 1.0}
        by_seed[seed] = {
            "base": {"accuracy": 0.9 + NOISE[seed], "loss": 0.3, "size": 100, **times},
            "better": {"accuracy": 0.92 + 0.5 * NOISE[seed], "loss": 0.2 + NOISE[seed], "size": 107, **times},
        }
    by_seed[0]["extra"] = by_seed[0]["base"]
    return by_seed


def test_arms_run_with_their_inputs_and_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    lines = []
    by_seed = run_arms(method(seeds=2), tmp_path, jobs=3, report=lines.append)
    assert sorted(by_seed) == [0, 1]
    assert sorted(by_seed[0]) == ["base", "better", "extra"]
    assert sorted(by_seed[1]) == ["base", "better"]
    assert by_seed[1]["better"]["accuracy"] == 0.9 + NOISE[1] + 0.02
    assert by_seed[1]["better"]["size"] == 107
    assert by_seed[0]["base"]["threads"] == 1
    assert by_seed[0]["base"]["cpu_seconds"] >= 0
    assert len(lines) == 5
    assert lines[-1].startswith("[5/5] ")
    assert os.environ["OMP_NUM_THREADS"] == "2"  # only the workers have one thread
    logs = list(tmp_path.glob("toy/base/seed0-*/log.txt"))
    assert [log.read_text() for log in logs] == ["training\n"]


def test_finished_arms_are_not_run_again_and_changed_ones_are(tmp_path):
    first = method(seeds=1)
    run_arms(first, tmp_path, jobs=2, report=lambda line: None)
    for task in tasks_of(first, tmp_path):  # a mark that a second run would not write
        task.folder.write({**task.folder.result(), "mark": 1}, None)
    lines = []
    again = run_arms(first, tmp_path, jobs=2, report=lines.append)
    assert lines == ["3 of 3 results are there already"]
    assert all(values["mark"] == 1 for values in again[0].values())

    arms = tuple(replace(arm, config={"rank": 16}) if arm.name == "better" else arm for arm in first.arms)
    changed = run_arms(replace(first, arms=arms), tmp_path, jobs=2, report=lambda line: None)
    assert [name for name, values in changed[0].items() if "mark" not in values] == ["better"]

    fresh = run_arms(first, tmp_path, jobs=2, fresh=True, report=lambda line: None)
    assert not any("mark" in values for values in fresh[0].values())


def test_unchanged_arms_are_taken_over_from_a_result_file(tmp_path):
    first = method(seeds=2)
    file = write_results(result_of(first, results(2)), first, tmp_path)[0]

    def taken(second, folder):
        return reuse_results(second, file, tmp_path / folder)

    everything = [("base", 0), ("better", 0), ("extra", 0), ("base", 1), ("better", 1)]
    assert taken(first, "all") == everything
    lines = []
    assert run_arms(first, tmp_path / "all", jobs=1, report=lines.append) == results(2)
    assert lines == ["5 of 5 results are there already"]
    assert taken(first, "all") == []  # what is there stays
    # One more seed runs; a changed arm runs, and so does what it needs, whose folder is not there.
    assert taken(method(seeds=3), "more") == everything
    arms = {arm.name: arm for arm in first.arms}
    changed = {**arms, "better": replace(arms["better"], config={"rank": 16})}
    assert taken(replace(first, arms=tuple(changed.values())), "dependent") == [("extra", 0)]
    changed = {**arms, "base": replace(arms["base"], config={"width": 32})}
    assert taken(replace(first, arms=tuple(changed.values())), "needed") == [("extra", 0)]


def test_results_of_other_versions_or_none_are_not_taken_over(tmp_path):
    file = write_results(result_of(method(), results()), method(), tmp_path)[0]
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "versions": {"torch": "0.1"}}))
    with pytest.raises(ValueError, match="other versions of the libraries: leave out --reuse"):
        reuse_results(method(), file, tmp_path)
    with pytest.raises(ValueError, match="no earlier results to take over; leave out --reuse"):
        reuse_results(method(), tmp_path / "none.json", tmp_path)


def test_a_change_of_a_needed_arm_makes_its_dependents_stale():
    first = method()
    arms = tuple(replace(arm, config={"width": 32}) if arm.name == "base" else arm for arm in first.arms)
    second = replace(first, arms=arms)
    assert fingerprint(first, first.arm("better")) != fingerprint(second, second.arm("better"))
    assert fingerprint(first, first.arm("extra")) == fingerprint(second, second.arm("extra"))


def test_a_failure_is_reported_with_its_log_after_all_others_have_run(tmp_path):
    first = method()
    needing = Arm("needing", "needs the failing one", toy_arms.base_arm, needs=("failing",))
    arms = (Arm("failing", "fails", toy_arms.failing_arm), needing, *first.arms)
    with pytest.raises(ArmsFailedError, match="needing, seed 1: needs failing, which failed") as error:
        run_arms(replace(first, arms=arms, seeds=2), tmp_path, jobs=2, report=lambda line: None)
    (log,) = tmp_path.glob("toy/failing/seed1-*/log.txt")
    assert f"failing, seed 1: see {log}" in str(error.value)
    assert "RuntimeError: out of luck" in log.read_text()
    assert len(list(tmp_path.glob("toy/*/*/result.json"))) == 7  # 9 tasks, two of them not finished


PROGRAM = """
import signal, sys, time
from pathlib import Path
from benchmarks.harness.arms import Arm, Method
from benchmarks.harness.running import run_arms

def quick(seed, inputs, folder):
    return {"x": seed}

def slow(seed, inputs, folder):
    mark = folder.parents[2] / "started"
    again = mark.exists()
    mark.touch()
    while not again:
        time.sleep(0.02)
    return {"x": -seed}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    arms = (Arm("quick", "", quick), Arm("slow", "", slow, needs=("quick",)))
    toy = Method("toy", "", "", "", arms, (), (), (), seeds=1)
    run_arms(toy, Path(sys.argv[1]), jobs=1, report=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_ends_its_workers_and_continues(tmp_path, kill):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command_line = [sys.executable, str(program), str(tmp_path / "work")]
    first = subprocess.Popen(command_line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = tmp_path / "work" / "started"
    while not started.exists():
        assert first.poll() is None
        time.sleep(0.02)
    (child,) = [int(text) for text in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()][-1:]
    first.send_signal(kill)
    first.wait()
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.02)
    second = subprocess.run(command_line, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout.splitlines()[0] == "1 of 2 results are there already"
    assert second.stdout.splitlines()[1].startswith("[2/2] slow, seed 0: x 0")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.9", None])
def test_numbers_must_be_finite(value):
    with pytest.raises(ValueError, match="the arm returned accuracy="):
        checked({"accuracy": value})


def test_a_method_is_checked_when_declared():
    with pytest.raises(ValueError, match="arm 'better': needs 'base', which is no arm declared before"):
        method(arms=method().arms[1:], claims=())
    with pytest.raises(ValueError, match="more than one arm is named base"):
        method(arms=method().arms[:1] * 2, claims=())
    with pytest.raises(ValueError, match="claim 'accuracy': 'better', which is no arm"):
        method(arms=method().arms[:1])


def test_result_has_claims_with_verdicts_and_all_raw_numbers():
    result = result_of(method(), results())
    accuracy, loss, size = result["claims"]
    assert accuracy["id"] == "accuracy"
    assert accuracy["measured"] == pytest.approx(100 * (0.02 - 0.5 * 0.001))
    assert accuracy["spread"] == pytest.approx(100 * 0.5 * 0.003)
    assert accuracy["unit"] == "points"
    assert accuracy["seeds"] == [0, 1, 2]
    assert [entry["verdict"] for entry in (accuracy, loss, size)] == ["holds", "holds", "holds"]
    assert loss["measured"] == pytest.approx(0.1 - 0.001)
    assert [entry["id"] for entry in result["reported"]] == ["time", "extra"]
    assert "verdict" not in result["reported"][0]
    assert result["reported"][0]["measured"] == pytest.approx(1.07)
    assert result["reported"][1]["seeds"] == [0]
    assert result["arms"]["better"]["results"]["2"]["size"] == 107
    assert result["arms"]["better"]["config"] == {"rank": 8}
    assert result["seconds"] == 14.0
    assert result["versions"]["python"]


def test_two_seeds_decide_nothing():
    verdicts = [entry["verdict"] for entry in result_of(method(), results(2))["claims"]]
    assert verdicts == ["undecided"] * 3


def test_a_claim_without_results_is_an_error():
    with pytest.raises(ValueError, match="claim 'extra': no seed has results of both extra and base"):
        judge(method().claims[-1], {1: {"base": {"accuracy": 1.0}}})


def test_written_results_are_whole(tmp_path):
    result = result_of(method(), results())
    paths = write_results(result, method(), tmp_path)
    assert [path.name for path in paths] == ["toy.json", "toy.md", "toy.png"]
    assert json.loads(paths[0].read_text()) == result
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    text = paths[1].read_text()
    assert "| Better by a point | +7.42 points | +1.95 ± 0.15 points | 3 | holds |" in text
    assert "| better | the method \\| better | 3 | 92.0 ± 0.1 | 0.201 ± 0.003 | 1 |" in text
    assert "| Extra arm | - | +0.00 points | 1 |" in text


def test_figure_shows_each_arm_and_seed_with_units():
    figure = draw(result_of(method(), results()), (ACCURACY, LOSS))
    accuracy, loss = figure.axes
    assert accuracy.get_xlabel() == "accuracy (%)"
    assert loss.get_xlabel() == "loss (nats)"
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["base", "better", "extra"]
    assert list(accuracy.lines[0].get_xdata()) == pytest.approx([90.4, 89.8, 90.1])
    assert (accuracy.get_xscale(), loss.get_xscale()) == ("linear", "linear")


def test_figure_has_a_logarithmic_axis_where_values_span_more():
    by_seed = results()
    by_seed[0]["base"] = {**by_seed[0]["base"], "loss": 3.0}
    accuracy, loss = draw(result_of(method(), by_seed), (ACCURACY, LOSS)).axes
    assert (accuracy.get_xscale(), loss.get_xscale()) == ("linear", "log")


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([2.5, 5.0, 1.3, 1.6], "points", "+2.6 ± 1.7 points"),
        ([0.015, 0.009, 0.011, 0.011], "nats", "+0.0115 ± 0.0025 nats"),
        ([-0.01], "nats", "-0.01 nats"),
        ([2.31, 2.36], "times", "2.335 ± 0.035 times"),
        ([55_680, 55_680, 55_680], "", "+55,680"),
    ],
)
def test_measured_text_shows_two_digits_of_the_spread(values, unit, text):
    from statistics import fmean, stdev

    spread = stdev(values) if len(values) > 1 else 0.0
    assert measured_text({"values": values, "measured": fmean(values), "spread": spread, "unit": unit}) == text


def test_terminal_table_and_markdown_agree():
    result = result_of(method(), results())
    measured = [row["measured"] for row in terminal_rows(result)]
    assert measured == [row["measured"] for row in claims_table(result)[0]]
    assert terminal_rows(result)[1]["rule"] == "every seed above 0"
    rows, columns = claims_table(result)
    assert list(columns) == ["statement", "paper", "measured", "seeds", "verdict"]
    assert all(row["measured"] in render(result, (ACCURACY,)) for row in rows)


def test_benchmarks_are_found_by_name():
    assert "scalenet" in names_of("claims")
    assert "harness" not in names_of("claims")
    with pytest.raises(ValueError, match=r"no claims of 'scalnet'. Did you mean 'scalenet'\?"):
        load("claims", "scalnet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["scalnet"], "Did you mean 'scalenet'?"), (["scalenet", "--seeds", "0"], "--seeds 0: must be at least 1")],
)
def test_the_command_answers_wrong_arguments_with_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_runs_a_method_and_writes_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda package, name: lambda miniature: method())
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert command.main(["toy", "--seeds", "1", "--jobs", "3", *folders]) == 0
    result = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert [entry["seeds"] for entry in result["claims"]] == [[0], [0], [0]]
    assert str(tmp_path / "results" / "toy.md") in capsys.readouterr().out


def test_the_command_takes_over_earlier_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda package, name: lambda miniature: method(seeds=1))
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit):
        command.main(["toy", "--reuse", *folders])
    assert "no earlier results" in capsys.readouterr().err
    write_results(result_of(method(seeds=1), results(1)), method(), tmp_path / "results")
    assert command.main(["toy", "--reuse", *folders]) == 0
    assert "taken over: base (seed 0), better (seed 0), extra (seed 0)" in capsys.readouterr().out


def test_the_command_ends_with_code_1_and_no_results_when_an_arm_fails(tmp_path, monkeypatch, capsys):
    arms = (*method().arms, Arm("failing", "fails", toy_arms.failing_arm))
    monkeypatch.setattr(command, "load", lambda package, name: lambda miniature: method(arms=arms))
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert command.main(["toy", "--seeds", "2", "--jobs", "3", *folders]) == 1
    assert "failing, seed 1: see" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
