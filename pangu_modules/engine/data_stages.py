"""Stages that make data, as data: samples of a model (`GenerateStage`), and what a model thinks of them (`ScoreStage`).

They train nothing, so they have neither callbacks nor a Trainer. What does their work stands in the registry under
their kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator

from pangu_modules.common.config import Config
from pangu_modules.engine.stages import BaseStage


class DataStage(BaseStage):
    """What both kinds have: they are resumable inside, and leave a folder of Parquet shards with a manifest."""

    callbacks: ClassVar[Mapping[str, Any]] = {}  # type: ignore[misc]
    trainer: ClassVar[Mapping[str, Any]] = {}  # type: ignore[misc]
    if TYPE_CHECKING:
        kind: str
        device: str

    artefact: ClassVar[str]  # name of that folder, and of the field in which later data configurations get it

    @model_validator(mode="after")
    def _check_one_seed(self) -> Self:
        given = getattr(getattr(self, "engine", None), "seed", 0)
        if given:
            raise ValueError(f"engine.seed={given}: a stage samples with its own seed; give `seed` in its place")
        return self


class GenerateStage(DataStage):
    """Samples answers to the tasks of a datamodule, judged by it, into ``rollouts/``."""

    parts = ("module", "data", "engine")
    artefact = "rollouts"

    kind: Literal["generate"] = Field("generate", description="What the stage does.")
    module: SerializeAsAny[Config] = Field(description="Configuration of the module to sample from.")
    data: SerializeAsAny[Config] = Field(description="Configuration of the datamodule with tasks.")
    engine: SerializeAsAny[Config] = Field(description="How to choose tokens, and where; without a seed of its own.")
    answers: Literal["sampled", "references"] = Field(
        "sampled", description="references: write the data's own answers, data.reference(task), in place of samples."
    )
    split: Literal["train", "test"] = Field("train", description="Whose tasks are asked.")
    num_tasks: PositiveInt | None = Field(None, description="Ask this many of the tasks, the first; empty: all.")
    tasks_per_shard: PositiveInt = Field(8, description="Tasks asked together; a kill loses at most these.")
    seed: NonNegativeInt = Field(0, description="Seed of the sampling.")
    start_from: str | None = Field(None, description="Earlier stage from whose last checkpoint is sampled.")
    data_from: str | None = Field(
        None, description="Earlier stage that makes data, whose folder the data configuration gets."
    )
    device: str = Field("auto", description="Where the module computes: cpu, cuda, ...; auto: an accelerator, if any.")
    allow_other: bool = Field(False, description="Go on with samples of another model, template or settings.")


class ScoreStage(DataStage):
    """Writes the log-probabilities of earlier samples under a module, a teacher, into ``scores/``."""

    parts = ("module", "engine")
    artefact = "scores"

    kind: Literal["score"] = Field("score", description="What the stage does.")
    module: SerializeAsAny[Config] = Field(description="Configuration of the module that scores, the teacher.")
    engine: SerializeAsAny[Config] = Field(description="Where scores are computed, and in what pieces.")
    rollouts: str | None = Field(None, description="Folder of the samples to score (set by data_from).")
    top_k: NonNegativeInt = Field(32, description="Likeliest tokens kept at each position, with log-probabilities.")
    nucleus: float | None = Field(
        None, gt=0, le=1, description="Keep of these the fewest that hold this share of the probability; empty: all."
    )
    precision: Literal["float16", "float32"] = Field("float16", description="Type that log-probabilities are kept in.")
    teacher: str = Field("", description="Name of the teacher, where several score different samples.")
    only: dict[str, str] = Field({}, description="Score samples with these labels alone, e.g. {mode: fast}.")
    seed: NonNegativeInt = Field(0, description="Seed of a module that is built without weights.")
    start_from: str | None = Field(None, description="Earlier stage whose last checkpoint scores.")
    data_from: str | None = Field(None, description="Earlier stage of kind generate, whose samples are scored.")
    device: str = Field("auto", description="Where the module computes: cpu, cuda, ...; auto: an accelerator, if any.")
    allow_other: bool = Field(False, description="Go on with scores of another teacher, or samples of other tokens.")


DATA_STAGES: Mapping[str, type[DataStage]] = {"generate": GenerateStage, "score": ScoreStage}
