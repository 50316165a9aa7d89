"""Conversations with more tokens than a sequence: left out, cut, or an error, and how many there were."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.text.chat_labels import Sample
from pangu_modules.common.batches import IGNORE_INDEX

TooLong = Literal["drop", "truncate", "error"]


class LengthLimit:
    """Applies one rule to all conversations that are too long, and counts them.

    Args:
        limit: tokens of a conversation, at most.
        rule: "drop" leaves a longer one out; "truncate" keeps its first tokens, unless none of them is an answer's;
            "error" stops.
    """

    def __init__(self, limit: int, rule: TooLong) -> None:
        self.limit = limit
        self.rule = rule
        self.dropped = 0
        self.truncated = 0
        self.unanswered = 0
        """Of those dropped, conversations whose answers begin beyond the limit."""

    def fit(self, sample: Sample) -> Sample | None:
        """Return the conversation as it is used, None if it is left out.

        Raises:
            ValueError: it is too long, and that is to be an error.
        """
        length = len(sample["input_ids"])
        if length <= self.limit:
            return sample
        if self.rule == "error":
            raise ValueError(
                f"it has {length} tokens, more than sequence_length={self.limit}: raise that, or set too_long to drop "
                "or truncate"
            )
        cut = {name: values[: self.limit] for name, values in sample.items()}
        answered = any(label != IGNORE_INDEX for label in cut["labels"][1:])  # the first token is never predicted
        if self.rule == "truncate" and answered:
            self.truncated += 1
            return cut
        self.dropped += 1
        self.unanswered += self.rule == "truncate"
        return None

    def report(self, total: int) -> None:
        """Say what became of how many of `total` conversations.

        Raises:
            ValueError: none is left.
        """
        excess = f"more than sequence_length={self.limit} tokens"
        if self.dropped == total:
            why = " before their first answer begins" if self.unanswered else ""
            raise ValueError(f"all {total} conversations have {excess}{why}")
        if self.dropped:
            why = f", and {self.unanswered} of these no answer within them" if self.unanswered else ""
            rank_zero_warn(f"{self.dropped} of {total} conversations left out: more than {self.limit} tokens{why}")
        if self.truncated:
            rank_zero_warn(f"{self.truncated} of {total} conversations cut to {self.limit} tokens (too_long=truncate)")
