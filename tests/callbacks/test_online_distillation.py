"""OnlineDistillation: fresh answers in the batch, the loss of a teacher at hand, resuming, and what it refuses."""

from __future__ import annotations

import lightning
import pytest
import torch
from distilled import WordSums
from pydantic import ValidationError
from quiet_trainer import StopAt, quiet_trainer
from tiny_llm import tiny_module, word_tokenizer

from callbacks import ExactResume
from callbacks.online_distillation import OnlineDistillation
from pangu_modules.llm.distillation.loss import distillation_loss


class Kept(lightning.Callback):
    """Keeps the batches as training sees them."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append({name: value.clone() for name, value in batch.items()})


@pytest.fixture
def words(tmp_path):
    return str(word_tokenizer(tmp_path / "words"))


def fit(folder, words, *, module=None, **fields):
    tiny_module(seed=3, tokenizer=words).export(folder / "teacher")
    method = OnlineDistillation.Config(
        teacher=str(folder / "teacher"), generation={"temperature": 1.0, "max_new_tokens": 5}, **fields
    ).build(name="online")
    kept, module = Kept(), module or tiny_module(tokenizer=words, loss_per="token")
    quiet_trainer(folder / "run", [method, kept], max_steps=3, limit_val_batches=0).fit(
        module, datamodule=WordSums.Config(words=words, batch_size=4).build()
    )
    return module, kept.batches


def test_answers_are_fresh_and_the_loss_is_the_teachers(tmp_path, words):
    """Would fail if the references stayed, if all steps wrote the same, or if scores were of other positions."""
    module, batches = fit(tmp_path, words, top_k=None)
    prompts = [batch["input_ids"][:, :7] for batch in batches]  # as in the data
    assert all(bool((rows[:, :2] == torch.tensor([0, 3])).all()) for rows in prompts)
    batch = batches[-1]
    teacher = tiny_module(seed=3, tokenizer=words)
    with torch.no_grad():
        outputs = module.compute_outputs(batch)
        losses, counts = module.objectives["online"].loss(module, batch, outputs)
        resident = distillation_loss(outputs["logits"], teacher.compute_outputs(batch)["logits"], batch["labels"])
    # Both float32, the teacher's pass in another batch shape: 2e-7 of 2 seen
    torch.testing.assert_close(losses, resident, rtol=1e-5, atol=1e-6)
    assert counts.tolist() == (batch["labels"][:, 1:] != -100).sum(1).tolist()


def test_an_interrupted_run_writes_the_same_answers(tmp_path, words):
    """Would fail if the answers came from the state of a random generator, or all teachers were taken for the same."""
    tiny_module(seed=3, tokenizer=words).export(tmp_path / "teacher")
    tiny_module(seed=4, tokenizer=words).export(tmp_path / "other")

    def run(name, *callbacks, teacher="teacher", **resumed):
        config = OnlineDistillation.Config(teacher=str(tmp_path / teacher), generation={"temperature": 1.0})
        trainer = quiet_trainer(
            tmp_path / name,
            [config.build(name="online"), ExactResume.Config().build(name="resume"), *callbacks],
            max_steps=4,
            limit_val_batches=0,
        )
        module = tiny_module(tokenizer=words)
        trainer.fit(module, datamodule=WordSums.Config(words=words, batch_size=4).build(), **resumed)
        return module

    whole = run("whole")
    with pytest.raises(ZeroDivisionError):
        run("cut", StopAt(3, tmp_path / "cut.ckpt"))
    resumed = {"ckpt_path": tmp_path / "cut.ckpt", "weights_only": True}
    again = run("cut", **resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="is not that of the interrupted run"):
        run("cut", teacher="other", **resumed)


def test_what_does_not_fit_is_refused(tmp_path, words):
    with pytest.raises(ValueError, match="top_k=1000, and there are 128 tokens"):
        fit(tmp_path, words, top_k=1000)
    with pytest.raises(ValidationError, match="each prompt of a batch gets one answer"):
        OnlineDistillation.Config(generation={"samples": 2})
    trainer = quiet_trainer(tmp_path / "none", [OnlineDistillation.Config().build(name="online")], max_steps=1)
    with pytest.raises(ValueError, match="teacher names none"):
        trainer.fit(tiny_module(tokenizer=words), datamodule=WordSums.Config(words=words).build())
