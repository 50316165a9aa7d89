"""Stages that make data: resumed they ask what is missing alone, and killed they end in the same shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sampled import FIRST, SCRIPT, SeededEngine, Sums, hashes, refusal, rows, sampling
from toys import ToyData, ToyModule

from pangu_modules import CausalLM, Recipe, Stage
from pangu_modules.common.tasks import Task
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.shard_files import read_manifest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(SeededEngine, "calls", [])
    monkeypatch.setattr(SeededEngine, "failing", frozenset())


def test_every_task_is_answered_judged_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What a model or a task says is text of the report's page, and no part of it."""
    main(sampling(), ["fit"])
    answers = rows(FIRST / "rollouts")
    assert [(row["key"], row["sample"]) for row in answers] == [(f"train-{n}", s) for n in range(10) for s in (0, 1)]
    for number, row in enumerate(answers):
        right = str(number // 2) in row["text"]
        assert row["reward"] == float(right)
        assert row["token_ids"] == [int(token) for token in row["text"].split()]
    result = json.loads((FIRST / "result.json").read_text())
    right = [row["reward"] for row in answers]
    assert result["metrics"]["generate/right"] == sum(right) / 20
    solved = {row["key"] for row in answers if row["reward"]}
    assert result["metrics"]["generate/solved"] == len(solved) / 10
    assert result["metrics"]["generate/tokens"] == sum(len(row["token_ids"]) for row in answers)
    assert "Pass rates" in capsys.readouterr().out
    page = (FIRST / "report.html").read_text(encoding="utf-8")
    assert "Some right answers" in page
    assert "Some wrong answers" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;&amp;" in page


def test_answers_that_nothing_could_judge_are_counted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "verify", lambda self, task, text: None)
    sampling().make("run", quiet=True)
    assert {row["reward"] for row in rows(Path("run/rollouts"))} == {None}
    table = json.loads(Path("run/report_parts/rollouts_1_pass_rates.json").read_text())
    assert table["rows"][-1]["not_judged"] == 20
    assert table["rows"][-1]["right"] is None


def test_broken_off_again_and_again_the_shards_are_those_of_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would fail if a part were asked in other pieces after a resume, or a shard told of the time or the process."""

    class Killed(BaseException):
        pass

    def dies_in_its_third_call(self: SeededEngine, prompts: Sequence[Any], **options: Any) -> list[Rollout]:
        if len(self.calls) == 2:
            raise Killed
        return write(self, prompts, **options)

    sampling().make("whole", quiet=True)
    write = SeededEngine.generate
    with monkeypatch.context() as patch:
        patch.setattr(SeededEngine, "generate", dies_in_its_third_call)
        for shards in (2, 4):
            SeededEngine.calls.clear()
            with pytest.raises(Killed):
                sampling().make("run", quiet=True)
            assert len(hashes(Path("run"))) == shards
    sampling().make("run", quiet=True)
    assert hashes(Path("run")) == hashes(Path("whole"))
    assert rows(Path("run/rollouts")) == rows(Path("whole/rollouts"))


@pytest.mark.slow
def test_killed_at_40_and_80_percent_the_shards_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """SIGKILL in processes of their own, while the third and then the fifth of five shards is asked for."""
    sampling().make("whole", quiet=True)
    path = os.pathsep.join([str(SCRIPT.parent), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path}
    where = tmp_path / "killed"
    where.mkdir()

    def fit(**more: str) -> int:
        command = [sys.executable, str(SCRIPT), "fit"]
        return subprocess.run(command, cwd=where, env=environment | more, capture_output=True, check=False).returncode

    folder = where / "runs/sampled_recipe/version_0"
    for shards in (2, 4):
        assert fit(KILL_AT_CALL="3") == -signal.SIGKILL
        assert len(hashes(folder)) == shards
    assert fit() == 0
    assert len(list(folder.parent.iterdir())) == 1  # it went on where it was
    assert hashes(folder) == hashes(Path("whole"))


def test_nothing_is_asked_twice() -> None:
    """Further samples of a task are asked for by their numbers, so that they are not the first ones again."""
    sampling().make("run", quiet=True)
    asked = len(SeededEngine.calls)
    sampling().make("run", quiet=True)
    assert len(SeededEngine.calls) == asked == 5
    sampling(engine={"samples": 3}).make("run", quiet=True)
    assert SeededEngine.calls[asked:] == [(2, 1)] * 5
    whole = sampling(engine={"samples": 3}).make("whole", quiet=True)
    three = {(row["key"], row["sample"]): row["text"] for row in rows(whole.artefact)}
    assert {(row["key"], row["sample"]): row["text"] for row in rows(Path("run/rollouts"))} == three


def test_other_questions_under_the_same_keys_are_refused() -> None:
    """Keys of generated tasks are numbers: with another seed they name other questions."""
    sampling().make("run", quiet=True)
    kept = hashes(Path("run"))
    Path("run/result.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        of_seed_0 = Sums.tasks
        patch.setattr(Sums, "tasks", lambda self, split: other_questions(of_seed_0(self, split)))
        with pytest.raises(ValueError, match="task 'train-0' asks something else"):
            sampling().make("run", quiet=True)
    assert hashes(Path("run")) == kept


def other_questions(tasks: Sequence[Task]) -> list[Task]:
    return [replace(task, messages=[{"role": "user", "content": "another"}]) for task in tasks]


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SeededEngine, "generate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(sampling(), ["fit"])
    assert stopped.value.code == 130
    assert "to go on: python toy.py fit --ckpt_path last" in capsys.readouterr().err


def test_failed_prompts_lose_no_others_and_are_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SeededEngine, "failing", frozenset({("w1", 1), ("w4", 0), ("w4", 1)}))
    said = refusal(sampling(), ["fit"], capsys)
    assert "3 of 20 samples are missing; the first is train-1, sample 1: answered 503" in said
    assert len(rows(FIRST / "rollouts")) == 17
    assert not (FIRST / "result.json").exists()
    monkeypatch.setattr(SeededEngine, "failing", frozenset())
    SeededEngine.calls.clear()
    main(sampling(), ["fit"])
    assert SeededEngine.calls == [(1, 1), (1, 2)]
    whole = sampling().make("whole", quiet=True)

    def by_sample(folder: Path) -> list[dict[str, Any]]:
        return sorted(rows(folder), key=lambda row: (row["key"], row["sample"]))

    assert by_sample(FIRST / "rollouts") == by_sample(whole.artefact)


def test_a_server_has_the_model_so_none_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the module was built")

    monkeypatch.setattr(CausalLM, "build_model", never)
    main(sampling(), ["fit", "--engine.base_url", "http://127.0.0.1:8000/v1", "--engine.model", "NAME"])
    assert read_manifest(FIRST / "rollouts", "rollouts")["identity"]["model"] == "NAME on a server"


def test_another_model_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    main(sampling(), ["fit"])
    before = hashes(FIRST)
    words = ["fit", "--ckpt_path", "last", "--engine.temperature", "0.5"]
    said = refusal(sampling(), words, capsys)
    assert "another sampling" in said
    assert "allow_other=True" in said
    assert hashes(FIRST) == before
    main(sampling(), [*words, "--allow_other", "true", "--data.num", "12"])
    assert len(rows(FIRST / "rollouts")) == 24


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_needs_a_checkpoint_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(sampling(), [command], capsys)
    assert said == f"error: {command}: a stage of kind generate makes data and has no checkpoint; its data: export"


BAD = {
    "no tasks": ({"data": ToyData.Config()}, [], "data: ToyData has no tasks(...)"),
    "none of a split": ({}, ["--data.num", "0"], "gives no task of split 'train'"),
    "two seeds": ({}, ["--engine.seed", "3"], "engine.seed=3: a stage samples with its own seed"),
    "a checkpoint": ({}, ["--ckpt_path", "x.ckpt"], "x.ckpt"),
    "a device": ({}, ["--device", "toaster"], "device='toaster'"),
    "no run": ({}, ["--ckpt_path", "last"], "there is no run of toy to resume"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, words, named = BAD[name]
    assert named in refusal(sampling(**changes), ["fit", *words], capsys)
    assert not list(Path("runs").rglob("manifest.json"))


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError("no server at base_url='http://127.0.0.1:1/v1': start it")

    monkeypatch.setattr(SeededEngine, "generate", absent)
    assert "no server at base_url" in refusal(sampling(), ["fit"], capsys)


def test_other_kinds_of_stages_are_named() -> None:
    with pytest.raises(ValueError, match="kind='sample': leave it out for a training run; others: generate, score"):
        sampling(kind="sample")
    with pytest.raises(ValueError, match="names no earlier stage that makes data"):
        Recipe(stages={"a": Stage(module=ToyModule.Config(), data=ToyData.Config(), data_from="b")})
    with pytest.raises(ValueError, match="call make"):
        sampling().fit("here")
