"""TokenData: what the datamodules of text and of conversations share - tokenizer, splits, disjointness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.text.reading import check_text_source, download, read_texts
from datamodules.text.rows import OnBad
from datamodules.text.windows import Windows, pack, tokenize
from pangu_modules.common.names import check_source
from pangu_modules.llm.models.names import EMBEDDED_PACKAGES

SPLITS = ("test", "val", "calibration", "train")
"""In the order of precedence: what a split shares with an earlier one is taken from the later one."""


class TokenData(DataModule):
    """Tokenized text in four disjoint splits: train, val, test, and calibration for methods that need statistics.

    Args:
        config: the configuration.
        tokenizer: a tokenizer in place of the one the configuration names.

    Raises:
        ValueError: a source or the tokenizer has a name that is none of ours, no path, and no hub id.
    """

    class Config(DataModule.Config):
        """Fields of all token data."""

        renamed = {f"{split}_fraction": f"{split}_share" for split in ("val", "test", "calibration")}

        tokenizer: str | None = Field(
            None,
            description="Hub id or folder of the tokenizer, or 'smollm2' (embedded); empty: the model's own, and "
            "smollm2's for a model from scratch.",
        )
        sequence_length: PositiveInt = Field(512, description="Tokens of a sequence, at most.")
        val_share: float = Field(0.05, ge=0, lt=1, description="Share of the text for validation.")
        test_share: float = Field(0.1, ge=0, lt=1, description="Share of the text for the test.")
        calibration_share: float = Field(0.1, ge=0, lt=1, description="Share reserved for calibration.")
        overlap_ngram: NonNegativeInt = Field(
            16,
            description="Sequences that share so many tokens in a row with an earlier split (test, val, calibration, "
            "train) are left out; 0 keeps all.",
        )
        on_bad_row: OnBad = Field(
            "error", description="At a row that cannot be used: error stops, skip leaves it out and counts it."
        )
        batch_size: PositiveInt = Field(8, description="Sequences per training batch, on each process.")
        eval_batch_size: PositiveInt = Field(8, description="Sequences per batch of validation and test.")

        @model_validator(mode="after")
        def _leaves_training_data(self) -> Self:
            shares = (self.val_share, self.test_share, self.calibration_share)
            if sum(shares) >= 1:
                raise ValueError(
                    f"val_share, test_share and calibration_share add up to {sum(shares):g}: leave a part for training"
                )
            return self

        def shares(self) -> dict[str, float]:
            """Return the share of each split but train."""
            shares = {"test": self.test_share, "val": self.val_share, "calibration": self.calibration_share}
            return {split: share for split, share in shares.items() if share > 0}

    config: Config
    own_sources: ClassVar[tuple[str, ...]] = ()  # names of sources that this class alone knows

    def __init__(self, config: Config, *, tokenizer: Any = None) -> None:
        super().__init__(config)
        for source in self.source_names():
            check_text_source(source, self.own_sources)
        if tokenizer is None and config.tokenizer is not None:
            check_source(config.tokenizer, "tokenizer", EMBEDDED_PACKAGES)
        self.calibration_dataset: Dataset[Any] | None = None
        self._calibration_sources: dict[str, Dataset[Any]] = {}
        self.removed: dict[str, int] = {}
        """Sequences left out of each split because an earlier split holds parts of them; known after `setup()`."""
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def source_names(self) -> list[str]:
        """Return what the text is read from, as the configuration names it."""
        return []

    @cached_property
    def tokenizer(self) -> Any:
        """The configuration's tokenizer, or that of the model that is trained on these data, or the default.

        Raises:
            ValueError: it is to be the model's, and that has none.
        """
        from pangu_modules.llm.models.tokenizer_loading import DEFAULT_TOKENIZER, load_tokenizer

        module = self._module()
        if self.config.tokenizer is not None or not hasattr(module, "tokenizer"):
            return load_tokenizer(self.config.tokenizer or DEFAULT_TOKENIZER)
        if module.tokenizer is None:
            raise ValueError("the model has no tokenizer of its own: name one in data.tokenizer")
        return module.tokenizer

    def module_arguments(self) -> dict[str, Any]:
        """Return the tokenizer's name, or the name of the one for a model that has none."""
        from pangu_modules.llm.models.tokenizer_loading import DEFAULT_TOKENIZER

        name = self.config.tokenizer
        return {"default_tokenizer": DEFAULT_TOKENIZER} if name is None else {"tokenizer": name}

    def setup(self, stage: str | None = None) -> None:
        """Ask the model that is trained on these data whether it can read them; a subclass calls it first.

        Raises:
            ValueError: it has another tokenizer, or too few positions.
        """
        check = getattr(self._module(), "check_text", None)
        if check is not None:
            check(self.tokenizer, self.config.sequence_length)

    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    def calibration_source(self, source: str) -> Dataset[Any]:
        """Return the windows of a text as `TextData` reads it, with this datamodule's tokenizer and length.

        Raises:
            FileNotFoundError: the source is not there.
            ValueError: it is shorter than one window.
        """
        if source not in self._calibration_sources:
            field = str(getattr(self.config, "text_field", "text"))
            download(source)
            texts = read_texts(source, field, self.config.on_bad_row)
            windows = pack(tokenize(texts, self.tokenizer), self.config.sequence_length)
            if len(windows) == 0:
                raise ValueError(
                    f"calibration.source={source!r} is shorter than a window of sequence_length="
                    f"{self.config.sequence_length} tokens: give more text or a shorter data.sequence_length"
                )
            self._calibration_sources[source] = Windows(windows)
        return self._calibration_sources[source]

    def _take(self, datasets: Mapping[str, Dataset[Any]]) -> None:
        """Take the datasets by split; a split that is not there has None."""
        self.test_dataset, self.val_dataset = datasets.get("test"), datasets.get("val")
        self.calibration_dataset, self.train_dataset = datasets.get("calibration"), datasets["train"]


def assign_splits(sizes: Sequence[int], shares: Mapping[str, float], seed: int) -> list[str]:
    """Return the split of each document, so that the splits' sizes come close to their shares.

    In an order drawn from the seed, each document goes to a split that still has room for it, drawn in proportion to
    that room, or else to the split that has most room.

    Args:
        sizes: tokens of each document.
        shares: of the splits; the rest is for train.
        seed: of order and draws.
    """
    generator = np.random.default_rng(seed)
    wanted = {**shares, "train": 1 - sum(shares.values())}
    room = {split: share * sum(sizes) for split, share in wanted.items()}
    assigned = [""] * len(sizes)
    for index in generator.permutation(len(sizes)):
        fitting = [split for split in room if room[split] >= sizes[index]]
        if fitting:
            weights = np.array([room[split] for split in fitting])
            split = fitting[generator.choice(len(fitting), p=weights / weights.sum())]
        else:
            split = max(room, key=lambda name: room[name])
        room[split] -= sizes[index]
        assigned[index] = split
    return assigned
