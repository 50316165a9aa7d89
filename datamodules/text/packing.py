"""Packing: rows of several whole conversations, so that almost no token of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from datamodules.text.chat_labels import Sample
from pangu_modules.common.batches import IGNORE_INDEX


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices, each with at most `capacity` tokens: best fit, the longest first.

    Each sequence, from the longest on, goes to the fullest row that still has room for it. At most 11/9 of the rows
    that are needed, and about none too many where there are many short sequences. The rooms that some row has are the
    bits of one number, in which the smallest that fits is found without a walk over the rows.

    Args:
        lengths: tokens of each sequence; ties are in the order given.
        capacity: tokens of a row.

    Raises:
        ValueError: a sequence is empty, or longer than a row.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by how many tokens they still take
    rooms = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"sequence {index} has {length} tokens, a row has {capacity}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows


class PackedConversations(Dataset[Sample]):
    """Rows of whole conversations, packed once: the same in each epoch, for any number of workers and processes.

    A row has ``input_ids``, ``labels`` and ``position_ids``, which count from 0 in each conversation.

    Args:
        samples: the conversations, none longer than a row.
        sequence_length: tokens of a row, at most.
    """

    def __init__(self, samples: Sequence[Sample], sequence_length: int) -> None:
        self.samples = samples
        lengths = [len(sample["input_ids"]) for sample in samples]
        self.rows = best_fit(lengths, sequence_length)
        self.filled = sum(lengths) / (len(self.rows) * sequence_length)
        """Share of the rows' tokens that are no padding, if all are padded to `sequence_length`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return concatenated([self.samples[number] for number in self.rows[index]])


def concatenated(samples: Sequence[Sample]) -> Sample:
    """Return one row of several conversations; no token is predicted from the conversation before its own."""
    row: Sample = {"input_ids": [], "labels": [], "position_ids": []}
    for sample in samples:
        row["input_ids"] += sample["input_ids"]
        row["labels"] += [IGNORE_INDEX, *sample["labels"][1:]]
        row["position_ids"] += range(len(sample["input_ids"]))
    return row
