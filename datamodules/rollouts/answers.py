"""RolloutData: answers that a model has sampled, to learn from as they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.loader import Order
from datamodules.rollouts.filters import RolloutFilters, difficulties, filtered, has_labels, is_right
from pangu_modules.llm.distillation.sequences import TaughtSequences
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.identity import text_identity
from pangu_modules.llm.generation.store.rollouts import KIND, read_rollouts
from pangu_modules.llm.generation.store.shard_files import read_manifest

Folders = str | tuple[str, ...] | None


class RolloutData(DataModule):
    """Samples of a stage of kind generate, as tokens: of the student's own right answers, or of a teacher's.

    Token ids are those that were sampled; no text is tokenized again. A batch holds ``input_ids``, ``attention_mask``
    (0 at padding, which is on the right) and ``labels`` (-100 where the policy did not write), all (batch, longest)
    int64, and ``sampled_logprobs`` (batch, longest), nan where unknown. All samples of some prompts are held out
    for the test, chosen by a hash of their keys.

    Args:
        config: the configuration.
    """

    class Config(DataModule.Config):
        """Which samples."""

        rollouts: Folders = Field(None, description="Folder of the samples, or several (set by data_from).")
        only: dict[str, str] = Field({}, description="Take samples with these labels alone, e.g. {mode: fast}.")
        filters: RolloutFilters = Field(RolloutFilters(), description="What is left out.")
        order: Literal["shuffle", "easy_first"] = Field(
            "shuffle", description="easy_first: by the share of a task's samples that are wrong, in each epoch."
        )
        test_share: float = Field(0.02, ge=0, lt=1, description="Share of the prompts held out for the test.")
        allow_other: bool = Field(
            False, description="Train on samples of another tokenizer, template, or than those that were scored."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.left_out: dict[str, int] = {}
        """Samples that are not trained on, by reason; known after `setup()`."""
        self.sampled_by: set[str] = set()
        """Hashes of the models that sampled; known after `setup()`."""
        self._difficulties: list[float] = []

    def setup(self, stage: str | None = None) -> None:
        """Read and filter the samples; once, whatever the stage.

        Raises:
            ValueError: no folder is named, one is no store of samples, its tokens or template are not those of the
                model that is trained, that has too few positions, or no sample is left.
        """
        if self.train_dataset is not None:
            return
        folders = folders_of(self.config.rollouts)
        if not folders:
            raise ValueError("rollouts: no samples to train on; name a stage with data_from, or a folder of rollouts")
        for folder in folders:
            self._check_identity(folder, read_manifest(folder, KIND)["identity"])
        rollouts = self._kept([rollout for folder in folders for rollout in read_rollouts(folder)])
        train, test = _split(rollouts, self.config.test_share)
        self._difficulties = difficulties(train)
        self.train_dataset = TaughtRows(self.sequences(train), self._padding())
        self.test_dataset = TaughtRows(self.sequences(test), self._padding()) if test else None
        self._check_length(max(len(one.prompt_ids) + len(one.token_ids) for one in rollouts))
        said = ", ".join(f"{count} {name}" for name, count in self.left_out.items() if count)
        rank_zero_info(
            f"{type(self).__name__}: {len(train)} samples to train on, {len(test)} held out; left out: {said or 'none'}"
        )

    def sequences(self, rollouts: Sequence[Rollout]) -> TaughtSequences:
        """Return what batches are made of."""
        return TaughtSequences(rollouts)

    def train_order(self, global_batch_size: int) -> Order | None:
        """Return the order by difficulty, if that is asked for."""
        return None if self.config.order == "shuffle" else EasyFirst(self._difficulties, self.config.seed)

    def _kept(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        config = self.config
        for rollout in rollouts:
            if not rollout.token_ids and rollout.text:
                raise ValueError(
                    f"rollouts: sample {rollout.sample} of {rollout.key!r} has no token ids: sample from a model in "
                    "this process, or from a server that tells them"
                )
        chosen = [rollout for rollout in rollouts if has_labels(rollout, config.only)]
        source = config.filters.teacher_rollouts
        solved = {one.key for one in read_rollouts(source) if is_right(one)} if source is not None else set()
        kept, counts = filtered(chosen, config.filters, solved)
        self.left_out = {"of other labels": len(rollouts) - len(chosen), **counts}
        self.check_left(kept, len(rollouts))
        return kept

    def check_left(self, kept: Sequence[Rollout], total: int) -> None:
        """Refuse to train on nothing.

        Raises:
            ValueError: no sample is left; the counts of each filter are in the message.
        """
        if not kept:
            counts = ", ".join(f"{count} {name}" for name, count in self.left_out.items() if count)
            raise ValueError(f"filters removed every sample of {total}: {counts or 'there was none'}")

    def _check_identity(self, folder: str, identity: dict[str, Any]) -> None:
        self.sampled_by.add(str(identity.get("model")))
        module = None if self.trainer is None else self.trainer.lightning_module
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is None or self.config.allow_other:
            return
        for name, value in text_identity(tokenizer).items():
            theirs = identity.get(name)
            if theirs and value and theirs != value:
                raise ValueError(
                    f"{Path(folder)}: samples were made with another {name} than the model has that is trained "
                    f"({theirs[:12]} there, {value[:12]} here): sample anew, or go on with allow_other=True"
                )

    def _check_length(self, longest: int) -> None:
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        check = getattr(module, "check_text", None)
        if check is not None:
            check(module.tokenizer, longest)

    def _padding(self) -> int:
        module = None if self.trainer is None else self.trainer.lightning_module
        tokenizer = getattr(module, "tokenizer", None)
        known = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
        return next((number for number in known if number is not None), 0)


class TaughtRows(Dataset[Any]):
    """Samples by number, read in whole batches."""

    def __init__(self, sequences: TaughtSequences, padding: int) -> None:
        self.sequences = sequences
        self.padding = padding

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch."""
        return self.sequences.batch(indices, self.padding)


class EasyFirst:
    """An order of samples by difficulty; equal ones are shuffled anew in each epoch."""

    def __init__(self, difficulty: Sequence[float], seed: int) -> None:
        self.difficulty = np.asarray(difficulty)
        self.seed = seed

    def __call__(self, epoch: int) -> Tensor:
        """Return the order of an epoch, int64."""
        draws = np.random.default_rng([self.seed, epoch]).random(len(self.difficulty))
        return torch.from_numpy(np.lexsort((draws, self.difficulty)))


def folders_of(given: Folders) -> tuple[str, ...]:
    """Return the folders that a field names, none, one or several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _split(rollouts: Sequence[Rollout], test_share: float) -> tuple[list[Rollout], list[Rollout]]:
    """Return samples to train on, and those of the prompts held out: at least one if a share is, never all."""
    keys = sorted({rollout.key for rollout in rollouts}, key=lambda key: hashlib.sha256(key.encode()).digest())
    held_out = set(keys[: min(len(keys) - 1, math.ceil(test_share * len(keys)))])
    train = [rollout for rollout in rollouts if rollout.key not in held_out]
    return train, [rollout for rollout in rollouts if rollout.key in held_out]
