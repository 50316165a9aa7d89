"""Predictions as rows: file names and classes, prompts and continuations, in the format that the ending names."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llm import TINY_LLAMA, word_tokenizer
from tiny_text import TokenBatches
from toys import ToyData, ToyModule

from datamodules import ImageFolderData
from pangu_modules import CausalLM, ImageClassifier, Recipe
from pangu_modules.common.errors import UsageError
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.engine.predicting import rows_of, write_predictions

TRAINER = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def fitted(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    main(recipe, ["fit"])
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    return recipe


def refused(recipe: Recipe, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-2]


def lines_of(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows_in(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_a_module_without_rows_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = fitted(Recipe(module=ToyModule.Config(), data=ToyData.Config(batch_size=8), trainer=TRAINER), monkeypatch)
    for name in ("x.csv", "x.jsonl", "x.pt"):
        main(recipe, ["predict", "--output", name])
    kept = torch.cat(torch.load("x.pt", weights_only=True))
    assert kept.shape == (16, 2)
    assert [row["prediction"] for row in lines_of("x.jsonl")] == kept.tolist()
    rows = rows_in("x.csv")
    assert [[float(row["prediction_0"]), float(row["prediction_1"])] for row in rows] == kept.tolist()
    assert "x.txt ends in '.txt'; give .csv, .jsonl, .pt" in refused(recipe, ["predict", "--output", "x.txt"], capsys)
    assert "ToyModule is no language model" in refused(recipe, ["predict", "--prompt", "hello"], capsys)


def test_images_have_file_label_and_probability(tmp_path: Path) -> None:
    module: Any = SimpleNamespace(runtime={"label_names": ["cat", "dog"]})
    batch = {"image": torch.zeros(2, 1), "file": ["a/1.png", "b, 2.png"]}
    rows = ImageClassifier.prediction_rows(module, batch, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert rows[0] == {
        "file": "a/1.png",
        "label": "dog",
        "class": 1,
        "probability": 0.75,
        "probabilities": [0.25, 0.75],
    }
    write_predictions(tmp_path / "x.csv", [], [rows])
    written = 'file,label,class,probability\na/1.png,dog,1,0.75\n"b, 2.png",cat,0,1.0\n'
    assert (tmp_path / "x.csv").read_text() == written
    unnamed: Any = SimpleNamespace(runtime={})
    (row,) = ImageClassifier.prediction_rows(unnamed, {"image": batch["image"]}, torch.tensor([[0.25, 0.75]]))
    assert ("file" in row, row["label"], row["class"]) == (False, "1", 1)


def test_language_models_continue_the_prompts_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    module = CausalLM.Config(
        architecture="llama", model_args=TINY_LLAMA, tokenizer=str(tokenizer), generation={"max_new_tokens": 3}
    )
    recipe = fitted(Recipe(module=module, data=TokenBatches.Config(), trainer=TRAINER), monkeypatch)
    capsys.readouterr()
    main(recipe, ["predict", "--prompt", "the cat", "--prompt", "a dog", "--output", "x.jsonl"])
    rows = lines_of("x.jsonl")
    assert [row["prompt"] for row in rows] == ["the cat", "a dog"]
    printed = capsys.readouterr().out
    assert printed.startswith("".join(f"{row['prompt']}{row['text']}\n" for row in rows))
    assert {len(row["token_ids"]) for row in rows} == {3}
    assert not Path("runs/toy/version_0/predictions.pt").exists()  # nothing but what was asked for
    assert "a prompt is empty" in refused(recipe, ["predict", "--prompt", ""], capsys)
    main(recipe, ["predict", "--output", "x.csv"])
    assert set(rows_in("x.csv")[0]) == {"prompt", "text", "finish_reason"}


def test_outputs_of_which_no_rows_can_be_made() -> None:
    with pytest.raises(UsageError, match=r"SimpleNamespace.predict_step returns a tuple.*prediction_rows"):
        rows_of(SimpleNamespace(), {}, (1, 2))


def test_a_folder_of_images_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for place in ("train/cat", "train/dog", "val/cat", "val/dog", "new"):
        folder = tmp_path / "images" / place
        folder.mkdir(parents=True)
        for number, shade in enumerate((10, 240)):
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(folder / f"{number}.png")
    vit = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}
    recipe = Recipe(
        module=ImageClassifier.Config(backbone="vit_tiny_patch16_224", model_args=vit, pretrained=False),
        data=ImageFolderData.Config(root="images", image_size=8, batch_size=2, num_workers=0),
        trainer=TRAINER,
    )
    fitted(recipe, monkeypatch)
    main(recipe, ["predict", "--data.predict_root", "images/new", "--output", "x.csv"])
    rows = rows_in("x.csv")
    assert [row["file"] for row in rows] == ["images/new/0.png", "images/new/1.png"]
    assert {row["label"] for row in rows} <= {"cat", "dog"}
    main(recipe, ["predict", "--data.predict_root", "images/new"])
    (kept,) = torch.load("runs/toy/version_0/predictions.pt", weights_only=True)
    assert [str(row["probability"]) for row in kept] == [row["probability"] for row in rows]
    assert sum(kept[0]["probabilities"]) == pytest.approx(1, abs=1e-6)
