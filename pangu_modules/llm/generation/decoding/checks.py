"""What an engine in this process asks of prompts and settings before it writes: every refusal says what to give."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_modules.llm.generation.prompts import Prompt, chat_tokens
from pangu_modules.llm.generation.settings import GenerationSettings


def prompt_tokens(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Return the tokens of a text or of a conversation, or the tokens that a prompt is already.

    Raises:
        ValueError: it is empty, or needs a tokenizer or chat template that is not there.
    """
    if not len(prompt):
        raise ValueError("a prompt is empty: a model can only continue one token or more")
    if not isinstance(prompt, str) and not isinstance(prompt[0], Mapping):
        return [int(token) for token in prompt]  # type: ignore[arg-type]
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: give prompts as token ids, or set module.tokenizer")
    tokens = list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else chat_tokens(tokenizer, prompt)  # type: ignore[arg-type]
    if not tokens:
        raise ValueError(f"the prompt {prompt!r} has no tokens: a model can only continue one token or more")
    return tokens


def check_tokens(texts: Sequence[Sequence[int]], vocabulary: int, what: str) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        ValueError: a token is outside of the vocabulary.
    """
    for number, text in enumerate(texts):
        wrong = next((token for token in text if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ValueError(f"{what} {number} has token {wrong}: the model's tokens are 0 to {vocabulary - 1}")


def check_choice(settings: GenerationSettings, vocabulary: int) -> None:
    """Refuse settings that do not fit the vocabulary.

    Raises:
        ValueError: there are fewer tokens than top_k, or no such stop token.
    """
    if settings.top_k > vocabulary:
        raise ValueError(f"top_k={settings.top_k}: the model has {vocabulary} tokens; give at most that, or 0 for all")
    for token in settings.stop_token_ids:
        if token >= vocabulary:
            raise ValueError(f"stop_token_ids={token}: the model's tokens are 0 to {vocabulary - 1}; leave it out")


def room_for_each(prompts: Sequence[Sequence[int]], positions: int | None, most: int) -> list[int]:
    """Return the tokens that may follow each prompt: `most`, or those that the model has positions for, with a warning.

    Raises:
        ValueError: a prompt leaves no position.
    """
    if positions is None:
        return [most] * len(prompts)
    for number, prompt in enumerate(prompts):
        if len(prompt) >= positions:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, of the model's {positions} positions "
                f"(max_position_embeddings) none is left to write: give at most {positions - 1} tokens"
            )
    rooms = [min(most, positions - len(prompt)) for prompt in prompts]
    short = sum(room < most for room in rooms)
    if short:
        warnings.warn(
            f"{short} of {len(prompts)} prompts leave fewer than max_new_tokens={most} of the model's {positions} "
            "positions (max_position_embeddings): their completions end there, by 'length'",
            stacklevel=2,
        )
    return rooms


def vocabulary_of(model: Any) -> int:
    """Return the number of a model's tokens."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def positions_of(model: Any) -> int | None:
    """Return the positions that a model has, or None where its configuration names no limit."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
