"""GenerationEngine: the only way to sample text - transformers in this process, or an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pangu_modules.common.config import Configurable
from pangu_modules.llm.generation.prompts import Completion, Prompt, chat_tokens
from pangu_modules.llm.generation.server import complete_on_server
from pangu_modules.llm.generation.settings import GenerationSettings
from pangu_modules.llm.generation.speculation import Speculation, fit_assistant, load_assistant, reading_lengths
from pangu_modules.training.randomness import isolated_randomness


class GenerationEngine(Configurable):
    """Continues prompts, with random numbers of its own: it neither uses nor moves those of training.

    With an assistant, a drafter, it decodes speculatively, one prompt at a time; `speculation` then counts passes, and
    drafted and accepted tokens. Greedy continuations are the same with it and without.

    Args:
        config: the configuration.
        model: a transformers causal LM; needed unless a server is configured.
        tokenizer: its tokenizer; needed for prompts that are not tokens already.

    Raises:
        ValueError: there is neither model nor server.
    """

    class Config(GenerationSettings):
        """How to choose tokens, and where."""

    config: Config

    def __init__(self, config: Config, *, model: nn.Module | None = None, tokenizer: Any = None) -> None:
        if model is None and config.base_url is None:
            raise ValueError("a generation engine needs a model in this process, or base_url and model of a server")
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.speculation = Speculation()
        self._fitting: Any = None  # the drafter that was checked

    def generate(self, prompts: Sequence[Prompt], *, seed: int | None = None) -> list[Completion]:
        """Return one completion for each prompt, in their order.

        The same call gives the same tokens; for several samples of a prompt, repeat the prompt.

        Args:
            prompts: texts, token ids or conversations.
            seed: in place of the configuration's.

        Raises:
            ValueError: a prompt is empty, or it needs a tokenizer or chat template that is not there.
            ConnectionError: the server cannot be reached, or answers with an error.
        """
        seed = self.config.seed if seed is None else seed
        if self.config.base_url is not None:
            return complete_on_server(self.config, list(prompts), seed, self.config.samples, 0)  # type: ignore[return-value]
        tokens = [self._tokens(prompt) for prompt in prompts]
        # Prompts of about the same length share a batch, which saves padding.
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        completions: dict[int, Completion] = {}
        size = self.config.batch_size if self.config.assistant is None else 1  # transformers drafts for one prompt
        for number, start in enumerate(range(0, len(order), size)):
            chosen = order[start : start + size]
            batch_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            written = self._continue([tokens[index] for index in chosen], batch_seed)
            completions |= dict(zip(chosen, written, strict=True))
        return [completions[index] for index in range(len(tokens))]

    def _tokens(self, prompt: Prompt) -> list[int]:
        if not prompt:
            raise ValueError("a prompt is empty: a model can only continue one token or more")
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return list(prompt)  # type: ignore[arg-type]
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer: give prompts as token ids, or set module.tokenizer")
        if isinstance(prompt, str):
            tokens: list[int] = self.tokenizer(prompt)["input_ids"]
            return tokens
        return chat_tokens(self.tokenizer, prompt)  # type: ignore[arg-type]

    def _continue(self, prompts: list[list[int]], seed: int) -> list[Completion]:
        """Continue one batch of prompts, padded on the left, with the model in this process."""
        from transformers import GenerationConfig

        assert self.model is not None
        device = next(self.model.parameters()).device
        ends = self._end_tokens()
        padding = ends[0] if ends else 0
        input_ids, mask = pad_left(prompts, padding)
        settings = {"max_new_tokens": self.config.max_new_tokens, "pad_token_id": padding, "eos_token_id": ends or None}
        drafter = self._drafter(device)
        # No inference mode: buffers a model renews while it writes (rotary frequencies) must be fit for training.
        with (
            _evaluating(self.model),
            isolated_randomness(device, seed),
            torch.no_grad(),
            reading_lengths(self.model) as lengths,
        ):
            written: Tensor = self.model.generate(  # type: ignore[operator]
                input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(**settings, **self._choice()),
                **({} if drafter is None else {"assistant_model": drafter}),
            )
        rows = written[:, input_ids.shape[1] :].tolist()
        if drafter is not None:
            self.speculation.add(len(rows[0]), input_ids.shape[1], lengths)
        return [self._completion(row, ends) for row in rows]

    def _drafter(self, device: torch.device) -> Any:
        """Return the drafter with its settings, or None without one."""
        config = self.config
        if config.assistant is None:
            return None
        drafter: Any = load_assistant(config.assistant, next(self.model.parameters()).dtype, device)  # type: ignore[union-attr]
        if drafter is not self._fitting:
            fit_assistant(config.assistant, drafter, self.model, self.tokenizer)
            self._fitting = drafter
        drafter.generation_config.num_assistant_tokens = config.assistant_tokens
        drafter.generation_config.num_assistant_tokens_schedule = "constant"
        drafter.generation_config.assistant_confidence_threshold = config.assistant_confidence
        return drafter

    def _choice(self) -> dict[str, Any]:
        """Return how to choose tokens, in transformers' words."""
        config = self.config
        if config.temperature == 0:
            return {"do_sample": False}
        limits = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        return {"do_sample": True, **limits}

    def _end_tokens(self) -> list[int]:
        """Return the tokens that end a text: those of the model's generation settings, and the tokenizer's."""
        of_model = getattr(self.model.generation_config, "eos_token_id", None)  # type: ignore[union-attr]
        of_tokenizer = getattr(self.tokenizer, "eos_token_id", None)
        ends = of_model if isinstance(of_model, list) else [of_model]
        return list(dict.fromkeys(end for end in (*ends, of_tokenizer) if end is not None))

    def _completion(self, row: list[int], ends: Sequence[int]) -> Completion:
        length = next((index + 1 for index, token in enumerate(row) if token in ends), None)
        token_ids = row if length is None else row[:length]
        text = "" if self.tokenizer is None else self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(text, tuple(token_ids), "length" if length is None else "stop")


def pad_left(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (batch, longest) int64, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put all parts of a model into evaluation mode within the block, and each back into its own mode after it."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
