"""Speculative decoding: a small drafter proposes tokens, the model accepts or replaces them in one pass.

The written text follows the model's own distribution (Leviathan et al. 2023, arXiv:2211.17192); how much is saved
depends on the share of drafted tokens that are accepted. transformers does the work; here are the drafter's loading,
the ends of completions and the counts. It gives no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pangu_modules.llm.generation.decoding.writing import Writing
from pangu_modules.llm.generation.settings import GenerationSettings


@dataclass
class Speculation:
    """Counts over all prompts continued so far.

    Attributes:
        written: tokens written.
        passes: forward passes of the model; without a drafter it is one for each token.
        drafted: tokens that the drafter proposed.
    """

    written: int = 0
    passes: int = 0
    drafted: int = 0

    @property
    def accepted(self) -> int:
        """Drafted tokens that stayed; each pass adds one token of the model's own."""
        return self.written - self.passes

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that stayed, in [0, 1]; 0 before any was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens written in each pass of the model: the most that can be gained where a drafter costs nothing."""
        return self.written / self.passes if self.passes else 0.0

    def add(self, written: int, prompt: int, lengths: list[int]) -> None:
        """Add one continuation.

        Args:
            written: new tokens.
            prompt: tokens of the prompt.
            lengths: tokens that the model read in each of its passes: the prompt or the last token, and drafted ones.
        """
        self.written += written
        self.passes += len(lengths)
        self.drafted += sum(lengths) - prompt - (len(lengths) - 1)


class SpeculativeDecoder:
    """Writes completions one after the other, each with random numbers of its own.

    Args:
        model: the transformers model.
        tokenizer: its tokenizer, or None.
        settings: the drafter, and how to choose tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._fitting: Any = None  # the drafter that was checked
        self.counts = Speculation()

    @torch.no_grad()
    def write(self, waiting: Sequence[Writing]) -> None:
        """Write completions."""
        device = next(self._model.parameters()).device
        drafter = self._drafter(device)
        for writing in waiting:
            # What follows a stop string is written in vain, and left out.
            for token in self._continue(writing, drafter, device):
                if not writing.add(token):
                    break

    def _continue(self, writing: Writing, drafter: Any, device: torch.device) -> list[int]:
        from transformers import GenerationConfig

        ends = sorted(writing.stopping.tokens)
        settings = {
            "max_new_tokens": writing.room,
            "pad_token_id": ends[0] if ends else 0,
            "eos_token_id": ends or None,
        }
        prompt = torch.tensor([writing.prompt_ids], device=device)
        torch.manual_seed(int(writing.generator.integers(2**63)))
        with reading_lengths(self._model) as lengths:
            written = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=GenerationConfig(**settings, **self._choice()),
                assistant_model=drafter,
            )
        tokens: list[int] = written[0, prompt.shape[1] :].tolist()
        self.counts.add(len(tokens), prompt.shape[1], lengths)
        return tokens

    def _drafter(self, device: torch.device) -> Any:
        """Return the drafter with its settings."""
        settings = self._settings
        assert settings.assistant is not None
        drafter: Any = load_assistant(settings.assistant, next(self._model.parameters()).dtype, device)
        if drafter is not self._fitting:
            fit_assistant(settings.assistant, drafter, self._model, self._tokenizer)
            self._fitting = drafter
        drafter.generation_config.num_assistant_tokens = settings.assistant_tokens
        drafter.generation_config.num_assistant_tokens_schedule = "constant"
        drafter.generation_config.assistant_confidence_threshold = settings.assistant_confidence
        return drafter

    def _choice(self) -> dict[str, Any]:
        """Return how to choose tokens, in transformers' words."""
        settings = self._settings
        if settings.temperature == 0:
            return {"do_sample": False}
        limits = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
        return {"do_sample": True, **limits}


@contextmanager
def reading_lengths(model: nn.Module) -> Iterator[list[int]]:
    """Record how many tokens each forward pass of a transformers model reads within the block."""
    lengths: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths.append(int((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


@lru_cache(maxsize=1)  # the next engine, of another `predict`, has it at once
def load_assistant(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a drafter in evaluation mode; `name` as `load_causal_lm` takes it. The last one loaded is kept."""
    from pangu_modules.llm.models.loading import load_causal_lm

    return load_causal_lm(name, dtype=dtype).to(device).eval()


def fit_assistant(name: str, assistant: Any, model: Any, tokenizer: Any) -> None:
    """Refuse a drafter with other tokens; give one that is padded to another length as many rows as the model has.

    Rows that are added are zero: they draft no token that the model would not refuse.

    Raises:
        ValueError: the tokens differ.
    """
    from pangu_modules.llm.text_checks import check_siblings

    check_siblings(f"assistant={name!r}", name, assistant, model, tokenizer)
    rows, added = model.config.vocab_size, model.config.vocab_size - assistant.config.vocab_size
    if added == 0:
        return
    with torch.random.fork_rng(devices=[]):  # transformers draws rows
        assistant.resize_token_embeddings(rows, mean_resizing=False)
    if added > 0:
        with torch.no_grad():
            for layer in (assistant.get_input_embeddings(), assistant.get_output_embeddings()):
                layer.weight[-added:] = 0
