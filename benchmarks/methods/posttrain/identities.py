"""What must be equal: the loss from a cache, and that of a teacher at hand, on the same samples of the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric
from benchmarks.harness.recipe_arm import CHECKPOINT
from benchmarks.methods.posttrain.task import STUDENT, TEACHER
from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.training.objectives import sequence_losses

FULL_KL = Metric("full_kl_difference", "full KL, difference", "nats", digits=9, higher_is_better=False)
CACHED = Metric("cached_difference", "cached loss, difference", "of it", digits=9, higher_is_better=False)
SAMPLES = 256


@dataclass(frozen=True)
class Identities:
    """Compares losses on samples of the student, before any step of distillation.

    Args:
        rollouts: arm of the samples.
        scores: arm of the teacher's scores of all tokens, in float32.
    """

    rollouts: str
    scores: str

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Return the largest difference of a token's divergence from ``F.kl_div``, and the losses' relative one."""
        from datamodules import DistillationData
        from pangu_modules import CausalLM
        from pangu_modules.llm.distillation.cached import CachedDistillation, CachedDistillationConfig
        from pangu_modules.llm.distillation.divergences import DivergenceConfig, cached_divergence
        from pangu_modules.llm.distillation.support import TeacherSupport
        from pangu_modules.llm.distillation.teacher import distillation_objective

        student, teacher = (
            CausalLM.load_from_checkpoint(inputs[name].folder / CHECKPOINT, weights_only=True).eval()
            for name in (STUDENT, TEACHER)
        )
        data = DistillationData.Config(
            rollouts=str(inputs[self.rollouts].folder / "run" / "rollouts"),
            scores=str(inputs[self.scores].folder / "run" / "scores"),
            filters={"keep_truncated": True, "max_repeat_4gram": 1.0},
            batch_size=1,
        ).build()
        data.setup("fit")
        rows = data.train_dataset
        batch = rows.__getitems__(range(min(SAMPLES, len(rows))))
        with torch.no_grad():
            outputs = student.compute_outputs(batch)
            losses, counts = CachedDistillation(CachedDistillationConfig())(student, batch, outputs)
            resident = sequence_losses(distillation_objective(teacher)(student, batch, outputs))
            cached, online = (float((counts * each).sum()) for each in (sequence_losses(losses), resident))
            valid = batch["labels"][:, 1:] != IGNORE_INDEX
            log_q = outputs["logits"][:, :-1][valid].double().log_softmax(-1)
            log_p = teacher.compute_outputs(batch)["logits"][:, :-1][valid].double().log_softmax(-1)
            every = torch.arange(log_p.shape[1]).expand(len(log_p), -1)
            ours = cached_divergence(log_q, TeacherSupport.of(every, log_p), DivergenceConfig())
            full = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        return {
            "full_kl_difference": float((ours - full).abs().max()),
            "cached_difference": abs(cached / online - 1),
            "wall_seconds": 0.0,
        }


def identity_arm(rollouts: str, scores: str) -> Arm:
    """Return the arm of the comparison."""
    config = {"samples": SAMPLES, "rollouts": rollouts, "scores": scores}
    needs = (STUDENT, TEACHER, rollouts, scores)
    return Arm("identities", "loss from the cache and from the teacher", Identities(rollouts, scores), config, needs)
