"""Configuration of DWMReweighting: the schedule, the target, and what stays of a run, around the method's own."""

from __future__ import annotations

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from callbacks.weighting.schedule import RoundSchedule
from pangu_modules.llm.weighting.config import DWMConfig

MOVED = ("model", "engine", "fd_scale", "precondition", "normalize_h", "dwm_lr", "sync_weights")


class ReweightingConfig(RoundSchedule):
    """When the weighting model learns, from which target, and what is kept of it."""

    renamed = {**RoundSchedule.renamed, **{name: f"method.{name}" for name in MOVED}}

    method: DWMConfig = Field(DWMConfig(), description="The weighting model, and how it learns.")
    target: str = Field(
        "val",
        description="Data that training should get better on: 'val', or another dataset of the datamodule by its "
        "name, e.g. 'calibration' for calibration_dataset. Nothing reported may come from it.",
    )
    val_batch_size: PositiveInt = Field(16, description="Sequences of the target in an update, all processes.")
    follow_lr: bool = Field(
        False,
        description="Scale method.dwm_lr as the trained model's schedule scales its own learning rate, so that late "
        "updates, which have little left to improve, change weights little.",
    )
    frozen: str | None = Field(
        None, description="Folder of an earlier run whose weighting models are used round by round, without updates."
    )
    keep_encoder: bool = Field(
        False,
        description="Keep the trained model beside each round's weighting model, so that with encoder 'lm' it can "
        "weigh another model's data (frozen), for a forward pass of the kept one.",
    )
    seed: NonNegativeInt = Field(0, description="Seed of the weighting model and of the batches of its updates.")

    @model_validator(mode="after")
    def _kept_encoder_is_read(self) -> Self:
        if self.keep_encoder and self.method.model.encoder != "lm":
            raise ValueError(
                "keep_encoder=True keeps what encoder='lm' reads, but method.model.encoder="
                f"{self.method.model.encoder!r}, which needs no other model: leave it out"
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
