"""Reference answers as rollouts, so that everything behind a store takes them as it takes samples."""

from __future__ import annotations

from typing import Any

from pangu_modules.common.tasks import Task
from pangu_modules.llm.generation.prompts import chat_tokens
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.identity import REFERENCES


class References:
    """Answers that come with tasks: ``data.reference(task, seed=...)``, as text or as tokens with the one that ends it.

    Args:
        data: the datamodule.
        tokenizer: of the model that is to learn from them.

    Raises:
        ValueError: the data have no references, or there is no tokenizer.
    """

    def __init__(self, data: Any, tokenizer: Any) -> None:
        if not hasattr(data, "reference"):
            raise ValueError(
                f"answers='references': {type(data).__name__} has no reference(task, seed=...), which returns a text "
                "or tokens; sample answers in their place"
            )
        if tokenizer is None:
            raise ValueError("answers='references': the module has no tokenizer; name one in module.tokenizer")
        self.data = data
        self.tokenizer = tokenizer

    def rollout(self, task: Task, seed: int, sample: int) -> Rollout:
        """Return a reference answer to a task; another sample number may give another one."""
        answer = self.data.reference(task, seed=seed + sample)
        if isinstance(answer, str):
            answer = [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        return Rollout(
            text=self.tokenizer.decode(answer, skip_special_tokens=True),
            finish_reason="stop",
            prompt_ids=tuple(chat_tokens(self.tokenizer, task.messages)),
            token_ids=tuple(answer),
            policy_mask=(True,) * len(answer),
            seed=seed,
            sample=sample,
            model=REFERENCES,
            key=task.key,
            labels=dict(task.labels),
        )
