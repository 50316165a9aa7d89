"""Configuration of DWMReweighting: the schedule of dwm_schedule, the weighting model, and how it learns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from callbacks.weighting.schedule import StageSchedule
from pangu_modules.llm.weighting.model import DataWeightingModel


class DWMConfig(StageSchedule):
    """Schedule, weighting model, and how it learns."""

    model: DataWeightingModel.Config = Field(DataWeightingModel.Config(), description="The weighting model.")
    target: str = Field(
        "val",
        description="Data that training should get better on: 'val', or another dataset of the datamodule by its "
        "name, e.g. 'calibration' for calibration_dataset. Nothing reported may come from it.",
    )
    val_batch_size: PositiveInt = Field(16, description="Sequences of the target in an update, all processes.")
    engine: Literal["fd", "jvp", "dot", "exact"] = Field(
        "fd",
        description="Hypergradient: fd (two forward passes, any kernel), jvp (forward mode), dot (one backward "
        "pass per sequence), exact (double backward, the reference); jvp and exact need eager attention.",
    )
    fd_scale: float = Field(
        1e-2,
        ge=1e-5,
        le=1,
        description="Norm of the displacement of all parameters, engine fd; 0.1 is better from some 100 M parameters.",
    )
    precondition: Literal["none", "adam"] = Field(
        "adam", description="Step that is looked ahead: SGD, or AdamW with the moments of the optimizer."
    )
    normalize_h: bool = Field(False, description="Scale each batch's hypergradients to mean 0, deviation 1.")
    dwm_lr: PositiveFloat = Field(1e-3, description="Learning rate (AdamW) of the weighting model.")
    follow_lr: bool = Field(
        False,
        description="Scale dwm_lr as the trained model's schedule scales its own learning rate, so that late updates, "
        "which have little left to improve, change weights little.",
    )
    sync_weights: bool = Field(
        False, description="Weigh the batches of all processes as one; otherwise each process its own."
    )
    frozen: str | None = Field(
        None, description="Folder of an earlier run whose weighting models are used stage by stage, without updates."
    )
    keep_encoder: bool = Field(
        False,
        description="Keep the trained model beside each stage's weighting model, so that with encoder 'lm' it can "
        "weigh another model's data (frozen), for a forward pass of the kept one.",
    )
    seed: NonNegativeInt = Field(0, description="Seed of the weighting model and of the batches of its updates.")

    @model_validator(mode="after")
    def _kept_encoder_is_read(self) -> Self:
        if self.keep_encoder and self.model.encoder != "lm":
            raise ValueError(
                f"keep_encoder=True keeps what encoder='lm' reads, but model.encoder={self.model.encoder!r}, which "
                "needs no other model: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _target_is_not_reported(self) -> Self:
        if self.target in ("train", "test"):
            raise ValueError(
                f"target={self.target!r}: the target steers training, so it is neither trained on nor reported; "
                "take 'val' or a dataset of its own"
            )
        return self
