"""``python -m benchmarks.claims``: arguments, exit codes, files, all methods, the quick check."""

import json

import pytest
import toy_arms
from toy_method import method, results

from benchmarks import claims as command
from benchmarks.harness.arms import Arm
from benchmarks.harness.output import result_of, write_results


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


def test_a_quick_check_runs_one_arm_with_what_it_needs_and_writes_no_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda package, name: lambda miniature: method(quick="better"))
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    stored = results()
    stored[0]["better"] = {**stored[0]["better"], "accuracy": 0.9 + 0.004 + 0.02, "loss": 0.5}
    (file, *_) = write_results(result_of(method(), stored), method(), tmp_path / "results")
    before = file.read_bytes()
    assert command.main(["toy", "--quick", "--jobs", "1", *folders]) == 0
    answer = capsys.readouterr().out
    assert "better, seed 0: 2 of 3 numbers equal the committed ones exactly" in answer
    assert "[2/2] better, seed 0" in answer
    assert file.read_bytes() == before
    assert {path.name for path in (tmp_path / "work").glob("quick/toy/*")} == {"base", "better"}


@pytest.mark.parametrize("option", [["--seeds", "1"], ["--reuse"], ["--miniature"]])
def test_a_quick_check_takes_no_other_options(option, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["scalenet", "--quick", *option])
    assert exit_.value.code == 2
    assert "leave out --seeds, --reuse and --miniature" in capsys.readouterr().err


def test_without_a_name_all_methods_run_and_say_what_remains(tmp_path, monkeypatch, capsys):
    methods = {name: method(name=name, seeds=1) for name in ("first", "second")}
    monkeypatch.setattr(command, "names_of", lambda kind: list(methods))
    monkeypatch.setattr(command, "load", lambda package, name: lambda miniature: methods[name])
    for name, one in methods.items():
        stored = results(1)
        for numbers in stored[0].values():
            numbers["cpu_seconds"] = 120.0 if name == "first" else 60.0
        write_results(result_of(one, stored), one, tmp_path / "results")
    folders = ["--jobs", "1", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert command.main(folders) == 0
    answer = capsys.readouterr().out
    assert "first (1 of 2): about 9 minutes remain on 1 cores" in answer
    assert "second (2 of 2): about 3 minutes remain on 1 cores" in answer
    assert command.main(folders) == 0
    assert "first (1 of 2): about 0 minutes remain on 1 cores" in capsys.readouterr().out


def test_every_method_names_its_quick_arm():
    from benchmarks.harness.discovery import load, names_of

    for name in names_of("claims"):
        assert load("claims", name)().quick
