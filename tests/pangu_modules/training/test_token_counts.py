"""Sequences that count by their tokens: one mean over all targets of an optimizer step, however they are divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_llm import tiny_module
from tiny_text import TokenBatches, Tokens

from callbacks import GradientNorm
from pangu_modules.training.objectives import Objective, evaluate

LR = 0.1


class Unequal(Tokens):
    """Ten sequences with 1 to 15 targets."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.tokens[index].clone()
        labels[: 1 + (5 * index) % 15] = -100
        return {"input_ids": self.tokens[index], "labels": labels}


class UnequalBatches(TokenBatches):
    """Ten training sequences."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the tokens."""
        self.train_dataset = Unequal(10, seed=1)


def module_of(**fields: Any) -> Any:
    module = tiny_module(loss_per="token", **fields)

    def sgd() -> Any:
        return torch.optim.SGD(module.parameters(), lr=LR)

    module.configure_optimizers = sgd  # the step is the gradient itself
    return module.double()


def trained(folder: Path, batch_size: int, **arguments: Any) -> dict[str, torch.Tensor]:
    """One optimizer step on all ten sequences, or as many as the arguments say."""
    module = module_of()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, max_epochs=1, **{**quiet, **arguments}, enable_checkpointing=False)
    trainer.fit(module, datamodule=UnequalBatches.Config(batch_size=batch_size).build())
    return module.state_dict()


def by_hand() -> dict[str, torch.Tensor]:
    """The same step: the mean over targets, one by one, of all sequences."""
    module = module_of()
    data, losses = Unequal(10, seed=1), []
    for row in range(10):
        sample = data[row]
        logits = module.model(input_ids=sample["input_ids"][None]).logits[0].log_softmax(-1)
        losses += [
            -logits[position, label] for position, label in enumerate(sample["labels"][1:].tolist()) if label != -100
        ]
    (sum(losses) / len(losses)).backward()
    return {
        name: value - LR * parameter.grad
        for (name, value), parameter in zip(
            ((name, parameter.detach()) for name, parameter in module.named_parameters()),
            module.parameters(),
            strict=True,
        )
    }


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-7)  # RMSNorm computes in float32; seen: 6e-9


@pytest.mark.parametrize(("batch_size", "accumulated"), [(10, 1), (2, 5), (1, 10), (5, 7)])
def test_micro_batches_give_the_step_of_one_batch(tmp_path: Path, batch_size: int, accumulated: int) -> None:
    """With 7 to accumulate the epoch ends first. A mean of means fails all but the first."""
    assert_same(trained(tmp_path, batch_size, accumulate_grad_batches=accumulated), by_hand())


def test_a_limit_of_batches_ends_a_step(tmp_path: Path) -> None:
    limited = trained(tmp_path, 2, accumulate_grad_batches=3, limit_train_batches=2, gradient_clip_val=None)
    assert_same(limited, trained(tmp_path, 4, limit_train_batches=1))


def test_two_processes_give_the_step_of_one(tmp_path: Path) -> None:
    """Each has five of the ten, in five micro-batches."""
    trained(tmp_path, 1, accumulate_grad_batches=5, devices=2, strategy="ddp_fork", callbacks=[Keep(tmp_path / "w")])
    assert_same(torch.load(tmp_path / "w", weights_only=True), by_hand())


class Keep(GradientNorm):
    """Writes the weights at the end: those of another process do not come back."""

    def __init__(self, path: Path) -> None:
        super().__init__(GradientNorm.Config(), name="keep")
        self.path = path

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write them from the first process."""
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), self.path)


def test_clipping_sees_the_gradient_of_the_whole_step(tmp_path: Path) -> None:
    assert_same(
        trained(tmp_path, 2, accumulate_grad_batches=5, gradient_clip_val=0.01),
        trained(tmp_path, 10, gradient_clip_val=0.01),
    )


def test_an_objective_without_counts_takes_those_of_the_others() -> None:
    module = module_of()
    losses = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    module.objectives = {
        "counted": Objective(lambda *_: (losses, torch.tensor([1, 0, 3]))),
        "plain": Objective(lambda *_: 2 * losses, weight=0.5),
    }
    found = evaluate(module.objectives, module, {"input_ids": torch.zeros(3, 2)}, {})
    assert float(found.total) == pytest.approx(2 * (1 * 1 + 3 * 5) / 4)
    assert int(found.count) == 4
    module.objectives["other"] = Objective(lambda *_: (losses, torch.tensor([1, 1, 3])))
    with pytest.raises(ValueError, match=r"'counted' and 'other' count different tokens .*\[1, 0, 3\] and \[1, 1, 3\]"):
        evaluate(module.objectives, module, {"input_ids": torch.zeros(3, 2)}, {})


def test_weights_inside_the_batch_are_of_sequences() -> None:
    from pangu_modules.llm.weighting.protocol import per_sequence_losses

    with pytest.raises(ValueError, match=r"set module\.loss_per=sequence"):
        per_sequence_losses(module_of(), {"input_ids": torch.zeros(2, 4, dtype=torch.long)})
