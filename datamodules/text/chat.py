"""ChatData: conversations for supervised fine-tuning, through a chat template, with loss on the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.text.chat_labels import Sample, chat_sample
from datamodules.text.conversations import conversation_of
from datamodules.text.ngrams import sequences_sharing
from datamodules.text.reading import download, located_rows
from datamodules.text.rows import BadRows
from datamodules.text.tokens import SPLITS, TokenData, assign_splits
from pangu_modules.common.batches import IGNORE_INDEX


class ChatData(TokenData):
    """Conversations, one in each row of a file or dataset, in any of the shapes of `conversation_of`.

    A batch holds ``input_ids``, ``attention_mask`` (0 at padding, which is on the right) and ``labels``, all
    (batch, longest) int64; labels are the assistant's tokens, and -100 elsewhere.
    """

    class Config(TokenData.Config):
        """Where the conversations come from."""

        source: str = Field(
            description="A .jsonl or .json file, a folder of .jsonl files, or a dataset ('name', 'name:configuration')."
        )
        messages_field: str = Field(
            "messages",
            description="Name of the list of messages in each row; without it conversations (ShareGPT), prompt and "
            "completion, or instruction, input and output (Alpaca) are looked for.",
        )

    config: Config

    def __init__(self, config: Config, *, tokenizer: Any = None) -> None:
        super().__init__(config, tokenizer=tokenizer)
        self.too_long = 0
        """Conversations left out because they have more than `sequence_length` tokens; known after `setup()`."""
        self.collate_fn = self._collate

    def source_names(self) -> list[str]:
        """Return the source."""
        return [self.config.source]

    def prepare_data(self) -> None:
        """Download a dataset of the hub."""
        download(self.config.source)

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize and split the conversations; once, whatever the stage.

        Raises:
            FileNotFoundError: the source is not there.
            ValueError: a split has no conversation, or a row is none or does not fit the chat template; the message
                has its number.
        """
        super().setup(stage)
        if self.train_dataset is not None:
            return
        samples, bad, rows = [], BadRows(self.config.on_bad_row), 0
        for number, (_, row) in enumerate(located_rows(self.config.source, self.config.messages_field)):
            rows += 1
            try:
                conversation = conversation_of(row, self.config.messages_field)
                samples.append(chat_sample(self.tokenizer, conversation.messages, conversation.tools))
            except ValueError as error:
                bad.meet(f"conversation {number} of {self.config.source}: {error}", error)
        bad.report(self.config.source, rows)
        if not samples:
            raise ValueError(f"{self.config.source}: none of {rows} rows is a conversation to learn from. {bad.first}")
        self._take(self._split(self._short_enough(samples)))

    def _short_enough(self, samples: list[Sample]) -> list[Sample]:
        limit = self.config.sequence_length
        kept = [sample for sample in samples if len(sample["input_ids"]) <= limit]
        self.too_long = len(samples) - len(kept)
        if not kept:
            raise ValueError(f"all {len(samples)} conversations have more than sequence_length={limit} tokens")
        if self.too_long:
            rank_zero_warn(f"{self.too_long} of {len(samples)} conversations left out: more than {limit} tokens")
        return kept

    def _split(self, samples: list[Sample]) -> dict[str, Dataset[Any]]:
        shares, n = self.config.shares(), self.config.overlap_ngram
        splits = assign_splits([len(sample["input_ids"]) for sample in samples], shares, self.config.seed)
        datasets: dict[str, Dataset[Any]] = {}
        seen: list[Tensor] = []
        for split in (name for name in SPLITS if name == "train" or name in shares):
            own = [sample for sample, chosen in zip(samples, splits, strict=True) if chosen == split]
            shared = (
                sequences_sharing([answer_of(sample) for sample in own], seen, n).tolist() if n else [False] * len(own)
            )
            kept = [sample for sample, is_shared in zip(own, shared, strict=True) if not is_shared]
            self.removed[split] = len(own) - len(kept)
            if not kept:
                raise ValueError(
                    f"{split}: none of {len(samples)} conversations is left for it ({self.removed[split]} share "
                    f"overlap_ngram={n} tokens in a row with an earlier split): give more, or change its share"
                )
            seen += [answer_of(sample) for sample in kept]
            datasets[split] = Conversations(kept)
        return datasets

    def _collate(self, samples: Any) -> dict[str, Tensor]:
        padding = self.tokenizer.pad_token_id
        return pad_right(samples, padding if padding is not None else self.tokenizer.eos_token_id or 0)


class Conversations(Dataset[Sample]):
    """Tokenized conversations of unequal lengths; `pad_right` makes batches of them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def answer_of(sample: Sample) -> Tensor:
    """Return the tokens with a label, (tokens,) int64: prompts repeat by nature, answers should not."""
    return torch.tensor([label for label in sample["labels"] if label != IGNORE_INDEX])


def pad_right(samples: Sequence[Sample], padding: int) -> dict[str, Tensor]:
    """Return a batch, padded to its longest sample: input_ids, attention_mask, labels, all (batch, longest) int64."""
    longest = max(len(sample["input_ids"]) for sample in samples)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([sample["input_ids"] for sample in samples], padding),
        "attention_mask": padded([[1] * len(sample["input_ids"]) for sample in samples], 0),
        "labels": padded([sample["labels"] for sample in samples], IGNORE_INDEX),
    }
