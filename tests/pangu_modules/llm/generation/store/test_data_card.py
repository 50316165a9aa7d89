"""Exports of data stages: Parquet with a data card, read by datasets, pandas and TRL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from sampled import TINY, SeededEngine, Sums, refusal, sampling
from tiny_llm import word_tokenizer

from pangu_modules import GenerateStage, Recipe, ScoreStage
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.store.data_card import export_rollouts

TRL = os.environ.get("PANGU_TRL")  # a folder with TRL, which is no dependency


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def read(folder: str | Path) -> list[dict[str, object]]:
    from datasets import load_dataset

    return list(load_dataset(str(folder), split="train", cache_dir="cache"))


def test_the_command_writes_a_data_set_with_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder alone is enough for datasets: the card says where the rows lie."""
    assert "there is no run of toy" in refusal(sampling(), ["export"], capsys)
    main(sampling(), ["fit"])
    main(sampling(), ["export", "--output", "all"])
    main(sampling(), ["export", "--output", "right", "--min_reward", "1"])
    rows, right = read("all"), read("right")
    assert len(rows) == 20
    assert rows[0]["prompt"] == [{"content": "w0 w1 <b>&", "role": "user"}]
    (answer,) = rows[0]["completion"]  # type: ignore[misc]
    assert answer["role"] == "assistant"
    assert 0 < len(right) < 20
    assert right == [row for row in rows if row["reward"] == 1]
    card = Path("right/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert f"| rows | {len(right)} |" in card
    assert f"at least 1; {20 - len(right)} rows left out" in card
    assert '"temperature": 1.0' in card
    assert "is not empty" in refusal(sampling(), ["export", "--output", "all"], capsys)
    assert "--dtype" in refusal(sampling(), ["export", "--output", "x", "--dtype", "float16"], capsys)
    assert "'gguf'" in refusal(sampling(), ["export", "--output", "x", "--format", "gguf"], capsys)


def test_the_other_formats() -> None:
    import pandas

    made = sampling().make("run", quiet=True)
    assert export_rollouts(made.artefact, Path("chat"), format="messages") == 20
    roles = [[message["role"] for message in row["messages"]] for row in read("chat")]  # type: ignore[attr-defined]
    assert roles == [["user", "assistant"]] * 20
    assert export_rollouts(made.artefact, Path("whole"), format="rollouts") == 20
    rows = pandas.read_parquet("whole/data")
    assert len(rows) == 20
    assert set(rows) >= {"token_ids", "labels", "rewards"}


def test_nothing_is_written_where_no_answer_is_good_enough() -> None:
    made = sampling().make("run", quiet=True)
    with pytest.raises(ValueError, match="no answer has that much; 20 have less"):
        export_rollouts(made.artefact, Path("none"), min_reward=2)
    assert not Path("none").exists()


def test_scores_are_exported_too(capsys: pytest.CaptureFixture[str]) -> None:
    engine = SeededEngine.Config(max_new_tokens=4)
    stages = {
        "sample": GenerateStage(module=TINY, data=Sums.Config(num=4), engine=engine, device="cpu"),
        "teach": ScoreStage(module=TINY, engine=engine, top_k=2, data_from="sample", device="cpu"),
    }
    recipe = Recipe(stages=stages)
    main(recipe, ["fit"])
    assert "scores have no reward" in refusal(recipe, ["export", "--min_reward", "1"], capsys)
    main(recipe, ["export", "--output", "scores"])
    main(recipe, ["export", "--stage", "sample", "--output", "answers"])
    assert len(read("scores")) == len(read("answers")) == 4
    assert "| top k | 2 |" in Path("scores/README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(TRL is None, reason="PANGU_TRL names no folder with TRL: pip install --target FOLDER --no-deps trl")
@pytest.mark.parametrize("format", ["prompt_completion", "messages"])
def test_trl_takes_a_step(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL reads the folder as it is."""
    monkeypatch.syspath_prepend(str(TRL))
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    made = sampling().make("run", quiet=True)
    export_rollouts(made.artefact, Path("sft"), format=format)
    tokenizer = str(word_tokenizer(tmp_path / "words"))
    model = TINY.derive(tokenizer=tokenizer).build()
    settings = SFTConfig(
        output_dir="trl", max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False
    )
    data = load_dataset("sft", split="train", cache_dir="cache")
    trainer = SFTTrainer(model=model.model, args=settings, train_dataset=data, processing_class=model.tokenizer)
    assert trainer.train().global_step == 1
