"""ColumnSums: generated sums with reference answers to train on, tasks to sample for, and a judge of answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.sums.columns import (
    LONGEST,
    MODES,
    PAD,
    PROMPT_TOKENS,
    Mode,
    Style,
    draw_operands,
    draw_sums,
    is_held_out,
    prompts,
    references,
)
from datamodules.sums.tokenizer import question, tokenizer_folder
from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.common.tasks import Task
from pangu_modules.verification.scores import Score

Split = Literal["train", "test"]
TRAIN, TASKS, TEST = range(1, 4)  # random streams of a seed
AT_ONCE = 1_000  # sums drawn at once
TRIES = 200  # times as many sums drawn as are wanted before the difficulty counts as exhausted


class ColumnSums(DataModule):
    """Sums of three numbers below 100, in a thinking mode (column by column) and a fast one (the sum at once).

    As training data it has rows of prompt and reference answer: ``input_ids`` and ``labels`` (batch, longest), -100 at
    the prompt and the padding, which is on the right. As tasks it has questions with labels ``mode`` and ``level``
    (operands of two digits, 0 to 3); no question is twice among those of a split. Which sums are held out for the test
    is decided by a hash of the operands, the same in every run; test questions are the same for all seeds, and each is
    asked in all modes.

    Args:
        config: the configuration.
    """

    class Config(DataModule.Config):
        """How many sums, of which difficulty, and what the references are like."""

        num_train: PositiveInt = Field(25_600, description="Rows to train on, in an epoch.")
        num_tasks: PositiveInt = Field(4266, description="Questions of split train, with the modes in turn.")
        num_test: PositiveInt = Field(1000, description="Sums of split test; each is a question in every mode.")
        operands: tuple[float, float, float] = Field(
            (0.45, 0.30, 0.25), description="Shares of numbers of two digits, of one digit, and of zeros."
        )
        modes: tuple[Mode, ...] = Field(MODES, min_length=1, description="Modes of the tasks: thinking, fast.")
        thinking_share: float = Field(0.5, ge=0, le=1, description="Share of thinking rows among those to train on.")
        style: Style = Field(
            "random", description="Order of a column's digits in thinking references: random, or left_to_right."
        )
        wrong_share: float = Field(
            0.0, ge=0, le=1, description="Share of references to train on with a slip that goes on to a wrong sum."
        )
        corrected_share: float = Field(
            0.0, ge=0, le=1, description="Share of thinking references with a slip that is marked, and then mended."
        )
        test_share: float = Field(0.1, gt=0, lt=1, description="Share of all sums that are held out, about.")

        @model_validator(mode="after")
        def _check_shares(self) -> Self:
            if min(self.operands) < 0 or abs(sum(self.operands) - 1) > 1e-9:
                raise ValueError(f"operands={self.operands}: three shares from 0 on, which add up to 1")
            if self.wrong_share + self.corrected_share > 1:
                raise ValueError(
                    f"wrong_share={self.wrong_share:g} and corrected_share={self.corrected_share:g} add up to more "
                    "than 1: a reference has one slip at most"
                )
            if len(set(self.modes)) < len(self.modes):
                raise ValueError(f"modes={self.modes}: name each once")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._tasks: dict[Split, list[Task]] = {}

    def module_arguments(self) -> dict[str, Any]:
        """Return the tokenizer's folder as its name."""
        return {"tokenizer": str(tokenizer_folder())}

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the 18 tokens, as transformers loads it."""
        from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

        return load_tokenizer(str(tokenizer_folder()))

    def setup(self, stage: str | None = None) -> None:
        """Generate the rows of training and test; once, whatever the stage.

        Raises:
            ValueError: the model that is trained has other tokens.
        """
        module = None if self.trainer is None else self.trainer.lightning_module
        check = getattr(module, "check_text", None)
        if check is not None:
            check(self.tokenizer, LONGEST)
        if self.train_dataset is not None:
            return
        self.train_dataset = self._rows()
        self.test_dataset = self._test_rows()

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the questions of a split, "train" or "test", in a fixed order; the modes take turns.

        Raises:
            ValueError: there is no such split, or too few different sums for it.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r}: tasks are in 'train' and 'test'")
        if split not in self._tasks:
            self._tasks[split] = self._draw_tasks(split)
        return self._tasks[split]

    def verify(self, task: Task, text: str) -> Score:
        """Return 1 for a text that ends with the right sum in three digits, as long as the mode says; otherwise 0."""
        right = str(task.reference["answer"])
        thought = text[: -len(right)]
        if not text.endswith(right):
            return Score(0.0, reason=f"{text[-len(right) :]!r} is not {right!r}")
        if bool(thought) != (task.labels["mode"] == "thinking"):
            return Score(0.0, reason=f"a {task.labels['mode']} answer does not have {len(thought)} tokens before it")
        return Score(1.0, reason=f"ends with {right!r}")

    def reference(self, task: Task, *, seed: int = 0) -> list[int]:
        """Return the tokens of a right reference answer to a task, in the configuration's style."""
        operands = np.array([task.reference["operands"]])
        generator = np.random.default_rng([seed, *operands[0].tolist()])
        sums = draw_sums(generator, operands, self.config.style, slip_share=0)
        thinking = np.array([task.labels["mode"] == "thinking"])
        tokens: list[int] = references(sums, thinking, corrected=np.array([False]))[0].tolist()
        return tokens

    # Drawing.

    def _drawn(self, generator: np.random.Generator, *, held_out: bool) -> np.ndarray:
        """Return random sums of one side of the hash, (n, 3); some may be equal."""
        drawn = draw_operands(generator, self.config.operands, AT_ONCE)
        return drawn[is_held_out(drawn, self.config.test_share) == held_out]

    def _draw_tasks(self, split: Split) -> list[Task]:
        config, test = self.config, split == "test"
        wanted = config.num_test if test else config.num_tasks
        generator = np.random.default_rng((0, TEST) if test else (config.seed, TASKS))
        found: dict[tuple[int, ...], None] = {}
        for _ in range(0, TRIES * wanted, AT_ONCE):
            found |= dict.fromkeys(tuple(row) for row in self._drawn(generator, held_out=test).tolist())
            if len(found) >= wanted:
                break
        else:
            name = "num_test" if test else "num_tasks"
            raise ValueError(
                f"{name}={wanted}: only {len(found)} different sums for it came up; lower it, or let more `operands` "
                "have two digits"
            )
        chosen = list(found)[:wanted]
        if test:
            return [_task(operands, mode) for operands in chosen for mode in config.modes]
        return [_task(operands, config.modes[i % len(config.modes)]) for i, operands in enumerate(chosen)]

    def _rows(self) -> Rows:
        config = self.config
        generator = np.random.default_rng((config.seed, TRAIN))
        operands = np.zeros((0, 3), dtype=np.int64)
        for _ in range(0, TRIES * config.num_train, AT_ONCE):
            if len(operands) >= config.num_train:
                break
            operands = np.concatenate([operands, self._drawn(generator, held_out=False)])
        operands = operands[: config.num_train]
        slips = config.wrong_share + config.corrected_share
        sums = draw_sums(generator, operands, config.style, slips)
        thinking = generator.random(len(operands)) < config.thinking_share
        corrected = generator.random(len(operands)) < (config.corrected_share / slips if slips else 0)
        return Rows(prompts(operands, thinking), references(sums, thinking, corrected=corrected))

    def _test_rows(self) -> Rows:
        """Return the test's questions with right references in the configuration's style."""
        tasks = self.tasks("test")
        operands = np.array([task.reference["operands"] for task in tasks])
        thinking = np.array([task.labels["mode"] == "thinking" for task in tasks])
        return Rows(prompts(operands, thinking), [np.array(self.reference(task)) for task in tasks])


class Rows(Dataset[Any]):
    """Prompts with reference answers, read in whole batches, each as long as its longest row.

    Args:
        asked: tokens of the prompts, (n, 11).
        answered: tokens of each answer.
    """

    def __init__(self, asked: np.ndarray, answered: Sequence[np.ndarray]) -> None:
        lengths = np.array([len(answer) for answer in answered])
        answers = np.full((len(asked), lengths.max()), PAD)
        for row, answer in enumerate(answered):
            answers[row, : len(answer)] = answer
        self.input_ids = torch.from_numpy(np.concatenate([asked, answers], axis=1))
        hidden = np.full_like(asked, IGNORE_INDEX)
        self.labels = torch.from_numpy(
            np.concatenate([hidden, np.where(answers == PAD, IGNORE_INDEX, answers)], axis=1)
        )
        self.lengths = torch.from_numpy(PROMPT_TOKENS + lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        length = int(self.lengths[index])
        return {"input_ids": self.input_ids[index, :length], "labels": self.labels[index, :length]}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch; no mask is needed, since what comes before a token is no padding."""
        chosen = torch.tensor(indices)
        longest = int(self.lengths[chosen].max())
        return {"input_ids": self.input_ids[chosen, :longest], "labels": self.labels[chosen, :longest]}


def _task(operands: tuple[int, ...], mode: Mode) -> Task:
    text = question(operands, mode)
    labels = {"mode": mode, "level": str(sum(operand > 9 for operand in operands))}
    reference = {"operands": list(operands), "answer": f"{sum(operands):03d}"}
    return Task(text, [{"role": "user", "content": text}], "", reference, labels)
