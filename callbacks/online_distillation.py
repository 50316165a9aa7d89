"""OnlineDistillation: the student answers each batch's prompts anew, and a teacher at hand scores them."""

from __future__ import annotations

import hashlib
from typing import Any, Self

from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from callbacks.offline_distillation import add_cached_objective
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.names import check_source
from pangu_modules.llm.distillation.cached import CachedDistillationConfig
from pangu_modules.llm.distillation.sequences import TaughtSequences, policy_mask
from pangu_modules.llm.distillation.teacher_loading import load_teacher
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.prompts import prompts_of
from pangu_modules.llm.generation.store.score_rows import CachedScores
from pangu_modules.llm.models.names import EMBEDDED_PACKAGES
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.fingerprint import fingerprint
from pangu_modules.training.module import PanguModule


class OnlineDistillation(RecipeCallback):
    """Trains on the student's own answers of this very step, towards a teacher that is in memory.

    It is on-policy distillation without stages between (generalised knowledge distillation, Agarwal et al. 2024,
    arXiv:2306.13649, with student's samples only), and pays for answers and the teacher's pass at every step. Of a
    batch it keeps the prompts, the tokens before the first label; which answer a prompt gets depends on `seed`, epoch,
    batch and prompt alone. The loss is `OfflineDistillation`'s, over the teacher's `top_k` likeliest tokens.

    The teacher is no part of the module and of no checkpoint.
    """

    class Config(BaseConfig):
        """The teacher, the loss, and how answers are written."""

        method: CachedDistillationConfig = Field(CachedDistillationConfig(), description="Losses and their weights.")
        teacher: str | None = Field(
            None, description="Hub id, folder, .gguf, 'smollm2', or a .ckpt of fit (set by teacher_from)."
        )
        top_k: PositiveInt | None = Field(32, description="Likeliest tokens of the teacher; empty: all tokens.")
        generation: GenerationEngine.Config = Field(
            GenerationEngine.Config(temperature=1.0, batch_size=64), description="How answers are written."
        )
        seed: NonNegativeInt = Field(0, description="Seed of the answers.")

        @model_validator(mode="after")
        def _check_generation(self) -> Self:
            if self.generation.samples != 1 or self.generation.base_url is not None:
                raise ValueError("generation: each prompt of a batch gets one answer, of the model that is trained")
            return self

    config: Config

    def __init__(self, config: Config, *, name: str = "distillation") -> None:
        super().__init__(config, name=name)
        if config.teacher is not None:
            check_source(config.teacher, "teacher", EMBEDDED_PACKAGES)
        self._teacher: Any = None
        self._tokens = 0  # that student and teacher have in common
        self._fingerprint = ""  # of the teacher
        self._loaded: str | None = None  # the teacher's fingerprint in the checkpoint a run resumes from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the teacher and add the objective; only for training.

        Raises:
            TypeError: the module is not a `PanguModule` over a language model.
            ValueError: no teacher is named, it cannot be found, has other tokens, or fewer than `top_k`.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not (isinstance(pl_module, PanguModule) and hasattr(pl_module.model, "config")):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        if self.config.teacher is None:
            raise ValueError(f"callback {self.name!r}: teacher names none; give one, or a stage with teacher_from")
        self._teacher = load_teacher(self.config.teacher, pl_module, f"callback {self.name!r}")
        self._fingerprint = fingerprint(self._teacher)
        models: tuple[Any, Any] = (self._teacher, pl_module.model)
        self._tokens = min(model.config.get_text_config().vocab_size for model in models)
        if self.config.top_k is not None and self.config.top_k > self._tokens:
            raise ValueError(f"callback {self.name!r}: top_k={self.config.top_k}, and there are {self._tokens} tokens")
        loss = add_cached_objective(pl_module, self.config.method, self.name)
        loss.num_tokens = self._tokens

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse another teacher than the interrupted run's.

        Raises:
            ValueError: it is another one.
        """
        if self._loaded not in (None, self._fingerprint):
            raise ValueError(
                f"callback {self.name!r}: teacher {self.config.teacher!r} is not that of the interrupted run; name the "
                "same one, or start a new run"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put fresh answers, and the teacher's scores of them, in the place of those in the batch.

        Raises:
            ValueError: the batch is no dictionary of unpacked rows.
        """
        if not isinstance(batch, dict) or "position_ids" in batch:
            raise ValueError(f"callback {self.name!r} needs batches of one sequence a row: set packing=none")
        module: Any = pl_module
        engine: GenerationEngine = self.config.generation.build(model=module.model, tokenizer=module.tokenizer)
        rollouts = engine.generate(prompts_of(batch), seed=self._seed(trainer.current_epoch, batch_idx))
        self._teacher.to(module.device)
        reader = GenerationEngine.Config(batch_size=len(rollouts)).build(model=self._teacher)
        found = reader.score(
            [[*one.prompt_ids, *one.token_ids] for one in rollouts],
            top_k=self.config.top_k or self._tokens,
            num_tokens=self._tokens,
        )
        rows = [{**vars(one), "policy_mask": policy_mask(one).tolist()} for one in rollouts]
        scores = [CachedScores.of(row, own) for row, own in zip(rows, found, strict=True)]
        padding = int(getattr(module.tokenizer, "pad_token_id", None) or 0)
        fresh = TaughtSequences(rollouts, scores).batch(range(len(rollouts)), padding)
        batch.update({name: tensor.to(module.device) for name, tensor in fresh.items()})

    def _seed(self, epoch: int, batch_idx: int) -> int:
        named = f"{self.config.seed} {epoch} {batch_idx}".encode()
        return int.from_bytes(hashlib.blake2b(named, digest_size=6).digest(), "little")

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the teacher."""
        return {"teacher": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what identified the teacher of the run that is resumed."""
        self._loaded = state_dict["teacher"]
