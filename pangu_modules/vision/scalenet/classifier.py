"""ScaleNetClassifier: a pretrained image classifier, deepened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from pangu_modules.common.config import caller_only
from pangu_modules.training.optim import build_optimizer
from pangu_modules.training.structure import Plan, find_plan
from pangu_modules.vision.classifier import ImageClassifier
from pangu_modules.vision.scalenet.config import ScaleNetConfig, ScaleNetTraining
from pangu_modules.vision.scalenet.plan import ScaleNetPlan
from pangu_modules.vision.scalenet.sharing import pretrained_parameters


class ScaleNetClassifier(ImageClassifier):
    """A pretrained classifier deepened by layers that share its weights (arXiv:2510.18431).

    Start it from timm's weights (``pretrained``) or from a checkpoint of an `ImageClassifier` of the base's depth
    (``init_checkpoint``).
    """

    class Config(ScaleNetTraining, ImageClassifier.Config):
        """The classifier's fields and the expansion's."""

        pretrained: bool | str = Field(
            True,
            description="true: timm's weights of that name; a path: .safetensors or .pth; false: from scratch.",
            json_schema_extra=caller_only(False),
        )

    config: Config

    def __init__(self, config: Config | Mapping[str, Any], **runtime: Any) -> None:
        super().__init__(config, **runtime)
        plan = find_plan(self.config.structure, "scalenet")
        if isinstance(plan, ScaleNetPlan) and plan.expansion != self.config.expansion():
            raise ValueError(
                f"the checkpoint is expanded with {_differences(plan.expansion, self.config.expansion())}: ask for the "
                "same expansion, or train it on as an ImageClassifier"
            )
        if self.config.train == "adapters":
            for parameter in pretrained_parameters(self.model).values():
                parameter.requires_grad_(False)

    def initial_plans(self) -> Sequence[Plan]:
        """Return the expansion."""
        return (ScaleNetPlan(expansion=self.config.expansion()),)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, with ``backbone_lr_scale`` on the pretrained weights."""
        scales = {f"model.{name}": self.config.backbone_lr_scale for name in pretrained_parameters(self.model)}
        total = self.trainer.estimated_stepping_batches
        optimizer, scheduler = build_optimizer(self, self.config.optimizer, total, scales)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _differences(stored: ScaleNetConfig, asked: ScaleNetConfig) -> str:
    theirs, ours = stored.plain(), asked.plain()
    return ", ".join(f"{name}={theirs[name]} and not {ours[name]}" for name in ours if theirs[name] != ours[name])
