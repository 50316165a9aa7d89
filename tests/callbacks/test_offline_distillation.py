"""OfflineDistillation from the command line: samples, scores and training in one recipe."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from distilled import FIRST, distilled

from pangu_modules import CausalLM
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def logged(stage: str) -> dict[str, list[float]]:
    with (FIRST / stage / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_a_recipe_samples_scores_and_distils(tmp_path: Path) -> None:
    """Would fail if the teacher's entries were those of other tokens: the divergence would not fall."""
    recipe = distilled(tmp_path, steps=30).derive(distill={"trainer": {"logger": True}})
    main(recipe, ["fit"])
    metrics = logged("distill")
    losses = metrics["train/loss"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    # float16 would not show: both log-probabilities are the model's own, of batches of other shapes
    assert metrics["train/distill_staleness"][0] == pytest.approx(0, abs=1e-6)
    assert metrics["train/distill_staleness"][-1] > 1e-3
    assert all(0 <= value < 1 for value in metrics["train/distill_outside"])
    module = CausalLM.load_from_checkpoint(FIRST / "distill/checkpoints/last.ckpt", weights_only=True)
    assert module.tokenizer is not None  # of the checkpoint that it started from
    assert list(torch.load(FIRST / "distill/checkpoints/last.ckpt", weights_only=True)["state_dict"])
