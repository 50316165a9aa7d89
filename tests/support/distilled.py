"""A recipe of five stages in miniature: teacher and student learn, the student samples, is scored and distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from sampled import Sums
from tiny_llm import TINY_LLAMA, word_tokenizer

from callbacks import OfflineDistillation
from datamodules import DataModule, DistillationData
from pangu_modules import CausalLM, GenerateStage, GenerationEngine, OptimizerConfig, Recipe, ScoreStage, Stage

FIRST = Path("runs/toy/version_0")
OPTIMIZER = OptimizerConfig(lr=1e-2, schedule="constant", warmup_share=0)
ENGINE = GenerationEngine.Config(max_new_tokens=6, temperature=1.0, samples=2, logprobs=True, batch_size=8)


class WordSums(DataModule):
    """The tasks of `Sums`, as training rows too: the question's words, and three words of an answer."""

    class Config(DataModule.Config):
        words: str = Field("words", description="Folder of the tokenizer.")
        num: int = Field(10, description="Number of tasks.")
        batch_size: int = Field(5, description="Rows of a batch.")

    def module_arguments(self) -> dict[str, Any]:
        return {"tokenizer": self.config.words}

    def setup(self, stage: str | None = None) -> None:
        number = torch.arange(self.config.num)
        words = 5 + torch.stack([number, number + 1, number + 2, number + 2, number], 1)
        rows = torch.cat([torch.tensor([[0, 3]]).expand(len(words), 2), words, torch.ones(len(words), 1)], 1).long()
        self.train_dataset = [{"input_ids": row} for row in rows]  # type: ignore[assignment]

    def tasks(self, split: str) -> Any:
        return Sums(Sums.Config(num=self.config.num)).tasks(split)

    def reference(self, task: Any, *, seed: int = 0) -> str:
        return str(task.messages[0]["content"]).split(" <b>")[0]

    def verify(self, task: Any, text: str) -> Any:
        return Sums(Sums.Config(num=self.config.num)).verify(task, text)


def distilled(folder: Path, *, steps: int = 4, score: Any = (), **distill: Any) -> Recipe:
    """Return the recipe; its tokenizer lies in `folder`."""
    words = str(word_tokenizer(folder / "words"))
    module = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA, optimizer=OPTIMIZER, loss_per="token")
    sums = WordSums.Config(words=words, num=12)
    trainer = {"accelerator": "cpu", "limit_val_batches": 0, "log_every_n_steps": 1}
    distilling = {
        "data": DistillationData.Config(batch_size=4, filters={"keep_truncated": True}),
        "callbacks": {"distill": OfflineDistillation.Config(measure_every=1)},
        "trainer": {**trainer, "max_steps": steps},
    }
    return Recipe(
        stages={
            "teacher": Stage(module=module, data=sums, trainer={**trainer, "max_steps": 6}, seed=1),
            "sft": Stage(module=module, data=sums, trainer={**trainer, "max_steps": 2}),
            "sample": GenerateStage(
                module=module, data=sums, engine=ENGINE, start_from="sft", tasks_per_shard=4, device="cpu"
            ),
            "score": ScoreStage(
                **{"module": module, "engine": GenerationEngine.Config(), "top_k": 8, "device": "cpu", **dict(score)},
                start_from="teacher",
                data_from="sample",
            ),
            "distill": Stage(**{**distilling, "start_from": "sft", "data_from": "score", **distill}, module=module),
        }
    )
