"""Stages that make data: resumed they ask what is missing alone, and killed they end in the same shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from sampled import SCRIPT, SeededEngine, Sums, sampling
from tiny_llm import TINY_LLAMA, word_tokenizer
from toys import ToyData, ToyModule

from pangu_modules import CausalLM, GenerateStage, Recipe, ScoreStage, Stage
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.shards import read_manifest, shards_of

FIRST = Path("runs/toy/version_0")
MODULE = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(SeededEngine, "calls", [])
    monkeypatch.setattr(SeededEngine, "failing", frozenset())


def hashes(folder: Path, kind: str = "rollouts") -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in shards_of(folder / kind, read_manifest(folder / kind, kind))}


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "data").to_pylist()
    return found


def refusal(recipe: Recipe, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.partition("\nSee: ")[0]


def pipeline(**score: Any) -> Recipe:
    generate = {"module": MODULE, "data": Sums.Config(), "engine": SeededEngine.Config(max_new_tokens=6, samples=2)}
    return Recipe(
        stages={
            "sample": GenerateStage(**generate, tasks_per_shard=4, device="cpu"),
            "teach": ScoreStage(
                **{"module": MODULE, "engine": SeededEngine.Config(), "top_k": 3, "device": "cpu", **score},
                data_from="sample",
            ),
        }
    )


def test_every_task_is_answered_and_judged(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_report_shows_answers_and_runs_nothing_of_them() -> None:
    main(sampling(), ["fit"])
    page = (FIRST / "report.html").read_text(encoding="utf-8")
    assert "Some right answers" in page
    assert "Some wrong answers" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;&amp;" in page


def test_answers_that_nothing_could_judge_are_counted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "verify", lambda self, task, text: None)
    main(sampling(), ["fit"])
    assert {row["reward"] for row in rows(FIRST / "rollouts")} == {None}
    table = json.loads((FIRST / "report_parts/rollouts_1_pass_rates.json").read_text())
    assert table["rows"][-1]["not_judged"] == 20
    assert table["rows"][-1]["right"] is None


@pytest.mark.parametrize("kill_at", [2, 4])
def test_killed_at_40_and_80_percent_the_shards_are_those_of_an_uninterrupted_run(kill_at: int, tmp_path: Path) -> None:
    """SIGKILL in a process of its own, in the call after two and after four of five shards."""
    main(sampling(), ["fit"])
    support = str(SCRIPT.parent)
    path = os.pathsep.join([support, *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path}
    where = tmp_path / "killed"
    where.mkdir()
    command = [sys.executable, str(SCRIPT), "fit"]
    killed = {**environment, "KILL_AT_CALL": str(kill_at + 1)}
    dead = subprocess.run(command, cwd=where, env=killed, capture_output=True, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    folder = where / "runs/sampled_recipe/version_0"
    assert len(hashes(folder)) == kill_at
    again = subprocess.run(command, cwd=where, env=environment, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(list(folder.parent.iterdir())) == 1  # it went on where it was
    assert hashes(folder) == hashes(FIRST)


def test_nothing_is_asked_twice() -> None:
    main(sampling(), ["fit"])
    asked = len(SeededEngine.calls)
    main(sampling(), ["fit", "--ckpt_path", "last"])
    assert len(SeededEngine.calls) == asked == 5
    main(sampling(), ["fit", "--ckpt_path", "last", "--engine.samples", "3"])
    assert SeededEngine.calls[asked:] == [(2, 1)] * 5
    whole = sampling(engine={"samples": 3}).make("whole", quiet=True)
    three = {(row["key"], row["sample"]): row["text"] for row in rows(whole.artefact)}
    assert {(row["key"], row["sample"]): row["text"] for row in rows(FIRST / "rollouts")} == three


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


def test_a_teacher_scores_the_tokens_that_the_policy_wrote() -> None:
    main(pipeline(), ["fit"])
    samples = {(row["key"], row["sample"]): row for row in rows(FIRST / "sample/rollouts")}
    scored = rows(FIRST / "teach/scores")
    assert len(scored) == len(samples) == 20
    for row in scored:
        tokens = samples[row["key"], row["sample"]]["token_ids"]
        assert row["token_ids"] == tokens
        assert row["positions"] == [2 + number for number in range(len(tokens))]
        assert row["logprobs"] == [-float(token) for token in tokens]  # of its own token, not of the one before
        assert row["top_ids"] == [[0, 1, 2]] * len(tokens)
        assert row["top_logprobs"] == [[0.0, -1.0, -2.0]] * len(tokens)


def test_a_score_stage_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    main(pipeline(), ["fit"])
    before = hashes(FIRST / "teach", "scores")
    (FIRST / "teach/result.json").unlink()
    (FIRST / "teach/scores/data/shard-00001.parquet").unlink()
    SeededEngine.calls.clear()
    main(pipeline(), ["fit"])
    assert SeededEngine.calls == [(8, 1)]
    assert hashes(FIRST / "teach", "scores") == before


def test_samples_of_other_tokens_are_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (str(word_tokenizer(tmp_path / str(words), words)) for words in (20, 120))
    recipe = pipeline(module=MODULE.derive(tokenizer=many)).derive(sample={"module": {"tokenizer": few}})
    assert "another tokenizer's tokens" in refusal(recipe, ["fit"], capsys)


def test_a_stage_runs_alone_and_options_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data_from: stage 'sample' has no result" in refusal(pipeline(), ["fit", "--stage", "teach"], capsys)
    main(pipeline(), ["fit", "--stage", "sample", "--sample.limit", "3", "--seed", "5"])
    assert {row["seed"] for row in rows(FIRST / "sample/rollouts")} == {5}
    main(pipeline(), ["fit", "--stage", "teach", "--teach.top_k", "1"])
    assert len(rows(FIRST / "teach/scores")) == 6


def test_the_configuration_round_trips(capsys: pytest.CaptureFixture[str]) -> None:
    main(pipeline(), ["fit", "--teach.top_k", "7", "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["sample"]["kind"] == "generate"
    Path("c.yaml").write_text(printed)
    main(pipeline(), ["fit", "--config", "c.yaml", "--print_config"])
    assert capsys.readouterr().out == printed
    wrong = refusal(pipeline(), ["fit", "--sample.kind", "score", "--print_config"], capsys)
    assert "--sample.kind: expected one of 'generate'" in wrong or "sample.kind" in wrong


def test_training_data_get_the_folder_of_samples() -> None:
    """A datamodule without a field for it is refused by name."""
    train = {"module": ToyModule.Config(), "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    stages = dict(pipeline().stages)
    from pangu_modules.engine.earlier import with_earlier
    from pangu_modules.engine.place import Place

    main(pipeline(), ["fit"])
    reads = with_earlier(Stage(**train, data=Sums.Config(), data_from="sample"), stages, Place(FIRST))
    assert reads.data.rollouts == str(FIRST / "sample/rollouts")
    with pytest.raises(ValueError, match=r"ToyData\.Config has no field 'rollouts'"):
        with_earlier(Stage(**train, data=ToyData.Config(), data_from="sample"), stages, Place(FIRST))


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_needs_a_checkpoint_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(sampling(), ["fit", "--limit", "1"])
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
    with pytest.raises(ValueError, match="kind='generat': leave it out for a training run; others: generate, score"):
        sampling(kind="generat")
    with pytest.raises(ValueError, match="names no earlier stage that makes data"):
        Recipe(stages={"a": Stage(module=ToyModule.Config(), data=ToyData.Config(), data_from="b")})
    with pytest.raises(ValueError, match="call make"):
        sampling().fit("here")
