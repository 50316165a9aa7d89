"""When a completion ends, and its text: end-of-text and stop tokens, stop strings across the borders of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from pangu_modules.llm.generation.records import FinishReason
from pangu_modules.llm.generation.settings import GenerationSettings

BYTES_PER_CHARACTER = 4  # at most, in UTF-8: a byte-level token may hold one byte of a character
SPARE_TOKENS = 8  # the first tokens of a part of a text may decode to something else than within the whole


class Stopping:
    """The ends of completions by one model.

    Args:
        settings: stop, stop_token_ids, max_new_tokens.
        tokenizer: the model's, or None.
        end_tokens: tokens that end a text; see `end_tokens`.

    Raises:
        ValueError: a stop string can never occur, or it needs a tokenizer.
    """

    def __init__(self, settings: GenerationSettings, tokenizer: Any, end_tokens: Sequence[int]) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self.tokens = frozenset({*end_tokens, *settings.stop_token_ids})
        longest = max((len(text) for text in settings.stop), default=0)
        self._window = BYTES_PER_CHARACTER * longest + SPARE_TOKENS
        if settings.stop:
            self._check_strings()

    def reason(self, tokens: Sequence[int], room: int) -> FinishReason | None:
        """Return why a completion ends with its last token, or None if it goes on.

        Args:
            tokens: of the completion so far; it has not ended before the last one.
            room: tokens that it may have at most.
        """
        if tokens[-1] in self.tokens:
            return "stop"
        if self._settings.stop and self._holds_stop(tokens):
            return "stop_string"
        return "length" if len(tokens) >= room else None

    def text(self, tokens: Sequence[int], reason: FinishReason) -> str:
        """Return a completion's text without special tokens and without the stop string; empty without a tokenizer."""
        if self._tokenizer is None:
            return ""
        text = self._decode(tokens)
        if reason != "stop_string":
            return text
        return text[: min(text.find(stop) for stop in self._settings.stop if stop in text)]

    def _holds_stop(self, tokens: Sequence[int]) -> bool:
        # A long text is decoded as a whole only if its end holds a stop string: decoding takes time with its length.
        if len(tokens) > self._window:
            shown = (token for token in reversed(tokens) if token not in self._special)
            end = self._decode(list(islice(shown, self._window))[::-1])
            if not any(stop in end for stop in self._settings.stop):
                return False
        text = self._decode(tokens)
        return any(stop in text for stop in self._settings.stop)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)

    def _check_strings(self) -> None:
        if self._tokenizer is None:
            raise ValueError("stop: the model has no tokenizer, so it writes no text: give stop_token_ids")
        for text in self._settings.stop:
            token = self._tokenizer.convert_tokens_to_ids(text)
            if token in self._special and self._tokenizer.convert_ids_to_tokens(token) == text:
                raise ValueError(
                    f"stop={text!r} can never occur, since it is a special token, which texts do not show: give "
                    f"stop_token_ids={token}"
                )
            if text in self._decode(self._tokenizer(text, add_special_tokens=False)["input_ids"]):
                continue
            missing = sorted(set(text) - self._characters)
            if missing:
                raise ValueError(
                    f"stop={text!r} can never occur: the tokenizer writes no {missing[0]!r}; leave it out or give "
                    "another text"
                )

    @cached_property
    def _characters(self) -> frozenset[str]:
        """Characters of all tokens; blanks may also stand between tokens."""
        numbers = [[number] for number in range(len(self._tokenizer))]
        return frozenset("".join(self._tokenizer.batch_decode(numbers))) | {" "}


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a text: those of the model's generation settings, and the tokenizer's."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    of_tokenizer = getattr(tokenizer, "eos_token_id", None)
    ends = of_model if isinstance(of_model, list) else [of_model]
    return list(dict.fromkeys(end for end in (*ends, of_tokenizer) if end is not None))
