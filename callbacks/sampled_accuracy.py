"""SampledAccuracy: what share of a test's tasks the model answers right, and how far its samples are from a teacher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from pangu_modules.common import registry
from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.tasks import Task
from pangu_modules.llm.distillation.on_samples import divergence_on_samples
from pangu_modules.llm.distillation.teacher_loading import load_teacher
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.training.callback import RecipeCallback


class SampledAccuracy(RecipeCallback):
    """Answers tasks of split "test" at the end of each test, and logs the share of right ones by label.

    With ``by="mode"`` these are ``test/accuracy_fast``, ``test/accuracy_thinking`` and so on, of greedy answers unless
    `generation` says otherwise. With a teacher it also logs ``test/kl_fast`` ...: the mean over tokens of
    ``KL(teacher || model)``, in nats, on samples that the model writes at temperature 1 to the same questions. And
    ``test/target_tokens``, the tokens that were learned from in the training before it.

    The tasks are those of the stage's own data, or of another of our datamodules, by its public name.
    """

    class Config(BaseConfig):
        """Whose tasks, how many, and how they are answered."""

        data: str | None = Field(None, description="Public name of a datamodule with tasks; empty: the stage's data.")
        data_fields: dict[str, Any] = Field({}, description="Fields of that datamodule's configuration.")
        limit: PositiveInt | None = Field(1000, description="Tasks to answer, the first ones; empty: all.")
        by: str | None = Field(
            "mode", description="Label of the tasks by which results are given; empty: all together."
        )
        generation: GenerationEngine.Config = Field(
            GenerationEngine.Config(batch_size=64), description="How answers are written."
        )
        teacher: str | None = Field(
            None, description="Checkpoint, hub id or folder to compare samples with (set by teacher_from); empty: none."
        )
        seed: NonNegativeInt = Field(0, description="Seed of the samples that are compared with the teacher's.")

    config: Config

    def __init__(self, config: Config, *, name: str = "sampled_accuracy") -> None:
        super().__init__(config, name=name)
        self._data: Any = None
        self._teacher: Any = None
        self._tokens = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the tasks and the teacher, before any training.

        Raises:
            ValueError: there is no such datamodule, it has no tasks, they lack the label, or the teacher has other
                tokens than the model.
        """
        super().setup(trainer, pl_module, stage)
        if getattr(pl_module, "tokenizer", None) is None:
            raise ValueError(
                f"callback {self.name!r} asks questions in words, so it needs a language model with a tokenizer; name "
                "one in module.tokenizer"
            )
        if self._data is None:
            self._data = self._tasks_of(trainer)
        if self.config.teacher is not None and self._teacher is None:
            self._teacher = load_teacher(self.config.teacher, pl_module, f"callback {self.name!r}")

    def _tasks_of(self, trainer: Trainer) -> Any:
        config = self.config
        if config.data is None:
            data = getattr(trainer, "datamodule", None)
            if not (hasattr(data, "tasks") and hasattr(data, "verify")):
                raise ValueError(
                    f"callback {self.name!r}: {type(data).__name__} has no tasks; name a datamodule that has in "
                    "`data`, e.g. ReasoningTasks"
                )
        else:
            data = registry.load("datamodules", config.data).Config(**config.data_fields).build()
        for task in self._chosen(data):
            if config.by is not None and config.by not in task.labels:
                raise ValueError(
                    f"callback {self.name!r}: by={config.by!r} is no label of task {task.key!r}, which has "
                    f"{', '.join(task.labels) or 'none'}"
                )
        return data

    def _chosen(self, data: Any) -> Sequence[Task]:
        tasks: Sequence[Task] = data.tasks("test")[: self.config.limit]
        return tasks

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int
    ) -> None:
        """Count the tokens that were learned from."""
        labels = batch.get("labels", batch["input_ids"])
        self._tokens += int((labels[:, 1:] != IGNORE_INDEX).sum())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer the tasks, and log."""
        engine = self._engine(pl_module, self.config.generation)
        right: dict[str, list[bool]] = defaultdict(list)
        for task, rollout in self._answers(engine):
            score = self._data.verify(task, rollout.text)
            right[self._group(rollout)].append(score is not None and score.value >= 1)
        metrics = {f"test/accuracy_{name}": sum(values) / len(values) for name, values in right.items()}
        if self._teacher is not None:
            metrics |= self._divergences(pl_module)
        pl_module.log_dict({**metrics, "test/target_tokens": float(self._tokens)})

    def _divergences(self, module: Any) -> dict[str, float]:
        config = self.config.generation.derive(temperature=1.0, top_p=1.0, top_k=0, seed=self.config.seed)
        samples = [rollout for _, rollout in self._answers(self._engine(module, config))]
        teacher = self._teacher.to(next(module.model.parameters()).device)
        found = divergence_on_samples(module.model, teacher, samples, self._group)
        return {f"test/kl_{name}": value for name, value in found.items()}

    def _engine(self, module: Any, config: GenerationEngine.Config) -> GenerationEngine:
        engine: GenerationEngine = config.build(model=module.model, tokenizer=module.tokenizer)
        return engine

    def _answers(self, engine: GenerationEngine) -> list[tuple[Task, Rollout]]:
        """Return an answer to each task, with the task's key and labels."""
        tasks = self._chosen(self._data)
        rollouts = engine.generate([list(task.messages) for task in tasks], samples=1)
        return [
            (task, replace(rollout, key=task.key, labels=task.labels))
            for task, rollout in zip(tasks, rollouts, strict=True)
        ]

    def _group(self, rollout: Rollout) -> str:
        return "all" if self.config.by is None else rollout.labels[self.config.by]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tokens so far."""
        return {"tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._tokens = int(state_dict["tokens"])
