"""OfflineDistillation: the loss is the resident teacher's, a whole recipe runs and resumes, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distilled import FIRST, distilled
from pydantic import ValidationError

from callbacks import Distillation, OfflineDistillation
from datamodules import DistillationData
from pangu_modules import CausalLM
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.distillation.cached import CachedDistillation, CachedDistillationConfig
from pangu_modules.llm.distillation.loss import distillation_loss
from pangu_modules.llm.generation.store.shard_files import read_manifest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def logged(stage: str) -> dict[str, list[float]]:
    with (FIRST / stage / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def loaded(stage: str) -> Any:
    return CausalLM.load_from_checkpoint(FIRST / stage / "checkpoints/last.ckpt", weights_only=True).eval()


def refusal(recipe: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.partition("\nSee: ")[0]


def test_a_recipe_samples_scores_and_distils(tmp_path: Path) -> None:
    """Would fail if the teacher's entries were those of other tokens: the divergence would not fall."""
    recipe = distilled(tmp_path, steps=30).derive(distill={"callbacks": {"distill": {"max_staleness": 0.001}}})
    with pytest.warns(UserWarning, match="nats a token from the one that sampled"):
        main(recipe, ["fit"])
    metrics = logged("distill")
    losses = metrics["train/loss"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    # Both log-probabilities are the model's own, of batches of other shapes: of 1e-6 the square is seen.
    assert metrics["train/distill_staleness"][0] == pytest.approx(0, abs=1e-6)
    assert metrics["train/distill_staleness"][-1] > 1e-3
    assert all(0 <= value < 1 for value in metrics["train/distill_outside"])
    assert loaded("distill").tokenizer is not None  # of the checkpoint that it started from
    result = json.loads((FIRST / "score/result.json").read_text())
    assert result["metrics"]["score/bytes_per_token"] > 0


def test_the_cached_loss_is_the_resident_teachers(tmp_path: Path) -> None:
    """With all tokens kept in float32; would fail if the head's padding counted on one side alone."""
    recipe = distilled(tmp_path, score={"top_k": 128, "precision": "float32"})
    for stage in ("teacher", "sft", "sample", "score"):
        main(recipe, ["fit", "--stage", stage])
    data = DistillationData.Config(
        rollouts=str(FIRST / "sample/rollouts"),
        scores=str(FIRST / "score/scores"),
        filters={"keep_truncated": True},
        test_share=0,
    ).build()
    data.setup()
    batch = data.train_dataset.__getitems__(range(len(data.train_dataset)))
    student, teacher = loaded("sft"), loaded("teacher")
    with torch.no_grad():
        outputs = student.compute_outputs(batch)
        theirs = teacher.compute_outputs(batch)["logits"]
        student.config = student.config.derive(loss_per="token")
        cached, counts = CachedDistillation(CachedDistillationConfig())(student, batch, outputs)
        resident = distillation_loss(outputs["logits"], theirs, batch["labels"])
    torch.testing.assert_close(cached, resident, rtol=1e-5, atol=1e-6)  # seen 3e-7 of 1 to 3
    assert counts.sum() == (batch["labels"] != -100).sum()


def test_a_teacher_of_an_earlier_stage_and_an_interrupted_run(tmp_path: Path) -> None:
    """Killed in training after the scores: the same bits, and no sample and no score is made twice."""
    both = {
        "offline": OfflineDistillation.Config(method={"alpha_kd": 0.5}),
        "resident": Distillation.Config(),
    }
    recipe = distilled(tmp_path, steps=4, callbacks=both)
    stages = {**recipe.stages, "distill": recipe.stages["distill"].derive(teacher_from="teacher")}
    recipe = recipe.with_stages(stages)
    main(recipe, ["fit"])
    whole = torch.load(FIRST / "distill/checkpoints/last.ckpt", weights_only=True)
    assert whole["callbacks"]["resident"]["teacher"]
    (seen,) = set(logged("distill")["train/offline_seen"])  # the first step's, written on until the epoch ends
    assert 0 < seen < 1
    before = [read_manifest(FIRST / place, kind) for place, kind in STORES]
    (FIRST / "distill/result.json").unlink()
    main(recipe, ["fit", "--stage", "distill", "--distill.trainer.max_steps", "2"])
    main(recipe, ["fit", "--stage", "distill", "--ckpt_path", "last"])
    again = torch.load(FIRST / "distill/checkpoints/last.ckpt", weights_only=True)
    assert again["global_step"] == 4
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name]), name
    assert [read_manifest(FIRST / place, kind) for place, kind in STORES] == before


STORES = (("sample/rollouts", "rollouts"), ("score/scores", "scores"))


def test_references_are_scored_as_samples_are(tmp_path: Path) -> None:
    recipe = distilled(tmp_path).derive(sample={"answers": "references", "engine": {"samples": 1}})
    main(recipe, ["fit"])
    (losses,) = (logged_losses for logged_losses in [logged("distill")["train/loss"]])
    assert len(losses) == 4
    assert "train/distill_staleness" not in logged("distill")  # nothing sampled them
    manifest = read_manifest(FIRST / "sample/rollouts", "rollouts")
    assert manifest["identity"]["model"] == "references"


def test_samples_of_another_student_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = distilled(tmp_path, start_from="teacher")
    assert "the samples are of another student" in refusal(recipe, ["fit"], capsys)
    main(recipe, ["fit", "--distill.callbacks.distill.allow_stale", "true"])


def test_a_teacher_of_few_labels_scores_those_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = distilled(tmp_path, score={"only": {"level": "1"}})
    main(recipe, ["fit"])
    assert read_manifest(FIRST / "score/scores", "scores")["identity"]["only"] == {"level": "1"}
    none = recipe.derive(score={"only": {"level": "9"}})
    (tmp_path / "other").mkdir()
    assert "no sample in" in refusal(none, ["fit", "--seed", "1"], capsys)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValidationError, match="both 0: nothing would be learned"):
        OfflineDistillation.Config(method={"alpha_kd": 0})
    with pytest.raises(ValidationError, match="scores are kept at temperature 1"):
        OfflineDistillation.Config(method={"temperature": 2.0})
    loss = CachedDistillation(CachedDistillationConfig())
    with pytest.raises(ValueError, match="the batch has no teacher_ids"):
        loss(None, {"input_ids": torch.zeros(1, 2)}, {})
