"""Recipes of data stages on a tiny model: sums as tasks, and an engine that writes what its seed says and may fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from lightning.pytorch import LightningDataModule
from pydantic import Field
from tiny_llm import TINY_LLAMA

from pangu_modules import CausalLM, Config, Configurable, GenerateStage, Recipe, ScoreStage
from pangu_modules.common.tasks import Task
from pangu_modules.engine.cli import main
from pangu_modules.llm.generation.records import IncompleteGenerationError, Rollout, SequenceScores, sample_seed
from pangu_modules.llm.generation.settings import GenerationSettings
from pangu_modules.llm.generation.store.shard_files import read_manifest, shards_of
from pangu_modules.verification.scores import Score

FIRST = Path("runs/toy/version_0")
TINY = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA)
SCRIPT = Path(__file__).with_name("sampled_recipe.py")


class Sums(Configurable, LightningDataModule):
    """Tasks of two levels; an answer is right if its text holds the digit wanted."""

    class Config(Config):
        num: int = Field(10, description="Number of tasks.")
        rollouts: str | None = Field(None, description="Folder of earlier samples.")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def tasks(self, split: str) -> Sequence[Task]:
        return [
            Task(
                key=f"{split}-{number}",
                messages=[{"role": "user", "content": f"w{number} w{number + 1} <b>&"}],
                reference={"answer": str(number % 10)},
                labels={"task": "sums", "level": str(1 + number % 2)},
            )
            for number in range(self.config.num)
        ]

    def verify(self, task: Task, text: str) -> Score | None:
        if "unjudged" in text:
            return None
        right = str(task.reference["answer"]) in text
        return Score(float(right), reason="there" if right else "<script>alert(1)</script> not there")


class SeededEngine(Configurable):
    """Writes tokens that depend on (seed, prompt, sample) alone; kills its process, or fails, where it is told to."""

    class Config(GenerationSettings):
        vocabulary: int = Field(50, description="Number of different tokens.")

    failing: ClassVar[frozenset[tuple[str, int]]] = frozenset()  # (content of the prompt, sample)
    calls: ClassVar[list[tuple[int, int]]] = []  # prompts and samples of each call

    def __init__(self, config: Any, *, model: Any = None, tokenizer: Any = None) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer

    def generate(
        self, prompts: Sequence[Any], *, seed: int | None = None, samples: int | None = None, first_sample: int = 0
    ) -> list[Rollout]:
        type(self).calls.append((len(prompts), samples or 1))
        kill_at = os.environ.get("KILL_AT_CALL")
        if kill_at is not None and len(self.calls) == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        rollouts, failures = [], {}
        for prompt in prompts:
            for sample in range(first_sample, first_sample + (samples or 1)):
                if (prompt[0]["content"].split()[0], sample) in self.failing:
                    failures[len(rollouts)] = "answered 503"
                    rollouts.append(None)
                else:
                    rollouts.append(self._rollout(prompt[0]["content"], seed or 0, sample))
        if failures:
            raise IncompleteGenerationError(rollouts, failures)
        return rollouts

    def _rollout(self, content: str, seed: int, sample: int) -> Rollout:
        generator = np.random.default_rng(sample_seed(seed, content, sample))
        length = int(generator.integers(1, self.config.max_new_tokens + 1))
        ids = tuple(int(token) for token in generator.integers(5, self.config.vocabulary, length))
        return Rollout(
            text=" ".join(map(str, ids)),
            finish_reason="stop",
            prompt_ids=(5, 6),
            token_ids=ids,
            policy_mask=(True,) * length,
            logprobs=tuple(-float(token) for token in ids) if self.config.logprobs else None,
            seed=seed,
            sample=sample,
            model="seeded",
        )

    def score(
        self, sequences: Sequence[Sequence[int]], *, top_k: int = 0, num_tokens: int | None = None
    ) -> list[SequenceScores]:
        type(self).calls.append((len(sequences), 1))
        scores = []
        for ids in sequences:
            length = len(ids) - 1
            top = np.tile(np.arange(top_k, dtype=np.int32), (length, 1))
            own = -np.asarray(ids[1:], dtype=np.float32)
            scores.append(SequenceScores(own, top, -top.astype(np.float32)))
        return scores


def sampling(**changes: Any) -> Recipe:
    """Return the smallest recipe of a generate stage."""
    engine: Mapping[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "samples": 2, **changes.pop("engine", {})}
    fields = {
        "kind": "generate",
        "module": TINY,
        "data": Sums.Config(),
        "engine": SeededEngine.Config(**engine),
        "tasks_per_shard": 2,
        "device": "cpu",
    }
    return Recipe(**{**fields, **changes})


def hashes(folder: Path, kind: str = "rollouts") -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in shards_of(folder / kind, read_manifest(folder / kind, kind))}


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "data").to_pylist()
    return found


def refusal(recipe: Recipe, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.partition("\nSee: ")[0]


def pipeline(**score: Any) -> Recipe:
    generate = {"module": TINY, "data": Sums.Config(), "engine": SeededEngine.Config(max_new_tokens=6, samples=2)}
    return Recipe(
        stages={
            "sample": GenerateStage(**generate, tasks_per_shard=4, device="cpu"),
            "teach": ScoreStage(
                **{"module": TINY, "engine": SeededEngine.Config(), "top_k": 3, "device": "cpu", **score},
                data_from="sample",
            ),
        }
    )
