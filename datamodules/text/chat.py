"""ChatData: conversations for supervised fine-tuning, through a chat template, with loss on the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import Order, ResumableLoader
from datamodules.text.buckets import LengthBuckets
from datamodules.text.chat_labels import RESERVED, Rendering, Sample, chat_sample
from datamodules.text.conversations import conversation_of
from datamodules.text.long import LengthLimit, TooLong
from datamodules.text.modes import Mode, check_modes, mode_of, tagged, template_options
from datamodules.text.ngrams import sequences_sharing
from datamodules.text.packing import PackedConversations
from datamodules.text.reading import download, located_rows
from datamodules.text.rows import BadRows
from datamodules.text.tokens import SPLITS, TokenData, assign_splits
from pangu_modules.common.batches import IGNORE_INDEX


class ChatData(TokenData):
    """Conversations, one in each row of a file or dataset, in any of the shapes of `conversation_of`.

    A batch holds ``input_ids``, ``attention_mask`` (0 at padding, which is on the right) and ``labels``, all
    (batch, longest) int64; labels are the assistant's tokens, and -100 elsewhere. Batches of packed rows also hold
    ``position_ids``, which count from 0 in each conversation. Only training batches are packed or of similar lengths.
    """

    class Config(TokenData.Config):
        """Where the conversations come from."""

        source: str = Field(
            description="A .jsonl, .json or .parquet file, a folder of .jsonl or of .parquet files, or a dataset "
            "('name', 'name:configuration')."
        )
        messages_field: str = Field(
            "messages",
            description="Name of the list of messages in each row; without it conversations (ShareGPT), prompt and "
            "completion, or instruction, input and output (Alpaca) are looked for.",
        )
        mode_field: str | None = Field(
            None,
            description="Name of the field with a row's mode: thinking, fast, auto, true (thinking) or false (fast); "
            "empty: rows have none.",
        )
        mode_option: str | None = Field(
            "enable_thinking",
            description="Option by which the chat template is told the mode, true or false; empty: it is told nothing.",
        )
        mode_tags: dict[Mode, str] = Field(
            {}, description="What the last question ends with in each mode: {fast: ' /no_think'} (openPangu)."
        )
        too_long: TooLong = Field(
            "drop",
            description="Conversations of more than sequence_length tokens: drop leaves them out, truncate keeps their "
            "beginning if an answer begins there, error stops.",
        )
        packing: Literal["none", "best_fit"] = Field(
            "none",
            description="best_fit: training rows of sequence_length tokens hold several whole conversations, which do "
            "not see each other; batch_size counts rows.",
        )
        length_buckets: bool = Field(
            False, description="Training batches hold conversations of similar lengths, and so less padding."
        )

        @model_validator(mode="after")
        def _check_rows(self) -> Self:
            if self.packing != "none" and self.length_buckets:
                raise ValueError("length_buckets=True: packed rows have one length already; choose one of the two")
            if self.mode_option is not None and (not self.mode_option.isidentifier() or self.mode_option in RESERVED):
                raise ValueError(f"mode_option={self.mode_option!r} is not the template's: name one that it reads")
            if self.mode_tags and self.mode_field is None:
                raise ValueError("mode_tags: no row has a mode; name its field in mode_field")
            return self

    config: Config

    def __init__(self, config: Config, *, tokenizer: Any = None) -> None:
        super().__init__(config, tokenizer=tokenizer)
        self.too_long = 0
        """Conversations left out because they have more than `sequence_length` tokens; known after `setup()`."""
        self.truncated = 0
        """Conversations cut to `sequence_length` tokens; known after `setup()`."""
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
            ValueError: a split has no conversation, the tokenizer no chat template, or a row is no conversation or does
                not fit the template; the message has its number.
        """
        super().setup(stage)
        if self.train_dataset is not None:
            return
        config = self.config
        Rendering(self.tokenizer)  # without a template no row can be read
        if config.mode_field is not None:
            check_modes(self.tokenizer, config.mode_field, config.mode_option, config.mode_tags)
        datasets = self._split(self._read())
        if config.packing == "best_fit":
            single = datasets["train"]
            datasets.setdefault("calibration", single)  # methods take statistics of conversations, not of rows
            packed = PackedConversations(single.samples, config.sequence_length)
            rank_zero_info(
                f"packing: {len(single)} conversations in {len(packed)} rows of {config.sequence_length} tokens, "
                f"{100 * packed.filled:.1f} % filled"
            )
            self._take({**datasets, "train": packed})
        else:
            self._take(datasets)

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of the training conversations, single or packed.

        Raises:
            ValueError: rows are packed, and what is trained cannot keep the conversations of a row apart.
        """
        module = self._module()
        if self.config.packing != "none" and module is not None:
            check = getattr(module, "check_packing", None)
            if check is None:
                raise ValueError(
                    f"packing: {type(module).__name__} has no check_packing(), which says whether it keeps the "
                    "conversations of a row apart: set packing=none, or train a CausalLM"
                )
            check()
        return super().train_dataloader()

    def train_order(self, global_batch_size: int) -> Order | None:
        """Return the order by length, if that is asked for."""
        if not self.config.length_buckets or not isinstance(self.train_dataset, Conversations):
            return None
        lengths = [len(sample["input_ids"]) for sample in self.train_dataset.samples]
        return LengthBuckets(lengths, global_batch_size, self.config.seed)

    def _read(self) -> list[Sample]:
        """Return all conversations of the source that can be used, tokenized."""
        config, total = self.config, 0
        bad, limit = BadRows(config.on_bad_row), LengthLimit(config.sequence_length, config.too_long)
        samples = []
        for number, (_, row) in enumerate(located_rows(config.source, config.messages_field)):
            total += 1
            where = f"conversation {number} of {config.source}"
            try:
                read = self._sample(row)
            except ValueError as error:
                bad.meet(f"{where}: {error}", error)
                continue
            try:
                sample = limit.fit(read)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if sample is not None:
                samples.append(sample)
        bad.report(config.source, total)
        if bad.count == total:
            raise ValueError(f"{config.source}: none of {total} rows is a conversation to learn from. {bad.first}")
        self.too_long, self.truncated = limit.dropped, limit.truncated
        limit.report(total - bad.count)
        return samples

    def _sample(self, row: Any) -> Sample:
        conversation = conversation_of(row, self.config.messages_field)
        mode = mode_of(row, self.config.mode_field)
        messages = tagged(conversation.messages, self.config.mode_tags.get(mode, "") if mode else "")
        options = template_options(mode, self.config.mode_option)
        return chat_sample(self.tokenizer, messages, conversation.tools, options)

    def _split(self, samples: list[Sample]) -> dict[str, Conversations]:
        shares, n = self.config.shares(), self.config.overlap_ngram
        splits = assign_splits([len(sample["input_ids"]) for sample in samples], shares, self.config.seed)
        datasets: dict[str, Conversations] = {}
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
    """Return a batch, padded to its longest sample: input_ids, attention_mask, labels, all (batch, longest) int64.

    Of packed rows also position_ids, in which the padding counts from 0 as a sequence of its own.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    longest = max(lengths)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    batch = {
        "input_ids": padded([sample["input_ids"] for sample in samples], padding),
        "attention_mask": padded([[1] * length for length in lengths], 0),
        "labels": padded([sample["labels"] for sample in samples], IGNORE_INDEX),
    }
    if "position_ids" in samples[0]:
        rows = [[*sample["position_ids"], *range(longest - len(sample["input_ids"]))] for sample in samples]
        batch["position_ids"] = torch.tensor(rows)
    return batch
