"""Pipelines with stages that make data: scores of samples, what passes between stages, options and plans by stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from sampled import FIRST, TINY, SeededEngine, Sums, hashes, pipeline, refusal, rows
from tiny_llm import word_tokenizer
from toys import ToyData, ToyModule

from pangu_modules import Stage
from pangu_modules.engine.cli import main
from pangu_modules.engine.earlier import with_earlier
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.engine.place import Place
from pangu_modules.llm.generation.store.score_rows import read_scores, sequence_hash


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(SeededEngine, "calls", [])
    monkeypatch.setattr(SeededEngine, "failing", frozenset())


def test_a_plan_has_the_modules_figures(capsys: pytest.CaptureFixture[str]) -> None:
    main(pipeline(), ["plan", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["stages"]["sample"]["parameters"] == figures["stages"]["teach"]["parameters"] > 0


def test_a_teacher_scores_the_tokens_that_the_policy_wrote() -> None:
    main(pipeline(), ["fit"])
    samples = {(row["key"], row["sample"]): row for row in rows(FIRST / "sample/rollouts")}
    scored = list(read_scores(FIRST / "teach/scores"))
    assert len(scored) == len(samples) == 20
    for row in scored:
        sample = samples[row.key, row.sample]
        tokens = sample["token_ids"]
        assert row.sequence == sequence_hash(sample["prompt_ids"], tokens, sample["policy_mask"])
        assert row.logprobs.tolist() == [-float(token) for token in tokens]  # of its own token, not of the one before
        assert row.top_ids.tolist() == [[0, 1, 2]] * len(tokens)
        assert row.top_logprobs.tolist() == [[0.0, -1.0, -2.0]] * len(tokens)


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
    recipe = pipeline(module=TINY.derive(tokenizer=many)).derive(sample={"module": {"tokenizer": few}})
    main(recipe, ["fit"])  # what one has beyond the other is no difference
    other = Path(many) / "tokenizer.json"
    other.write_text(other.read_text().replace('"w3"', '"x3"'))
    said = refusal(recipe, ["fit", "--seed", "1"], capsys)
    assert "another tokenizer's tokens" in said
    assert "token 8 is 'w3' in the one and 'x3' in the other" in said


def test_a_stage_runs_alone_and_options_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data_from: stage 'sample' has no result" in refusal(pipeline(), ["fit", "--stage", "teach"], capsys)
    main(pipeline(), ["fit", "--stage", "sample", "--sample.num_tasks", "3", "--seed", "5"])
    assert {row["seed"] for row in rows(FIRST / "sample/rollouts")} == {5}
    main(pipeline(), ["fit", "--stage", "teach", "--teach.top_k", "1"])
    assert len(list(read_scores(FIRST / "teach/scores"))) == 6


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
    (FIRST / "sample").mkdir(parents=True)
    (FIRST / "sample/result.json").write_text("{}")  # the stage's last file
    reads = with_earlier(Stage(**train, data=Sums.Config(), data_from="sample"), stages, Place(FIRST))
    assert reads.data.rollouts == str(FIRST / "sample/rollouts")
    with pytest.raises(ValueError, match=r"ToyData\.Config has no field 'rollouts'"):
        with_earlier(Stage(**train, data=ToyData.Config(), data_from="sample"), stages, Place(FIRST))
