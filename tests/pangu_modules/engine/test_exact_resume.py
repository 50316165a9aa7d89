"""An interrupted and resumed run must end with the weights of the uninterrupted one, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import Dataset

from callbacks.weight_average import WeightAverage
from datamodules.base import DataModule
from pangu_modules.engine.exact_resume import ExactResume, random_state, restore_random_state
from pangu_modules.engine.resume_checkpoint import ResumeCheckpoint

BATCHES = 9  # an epoch: 70 samples in batches of 8
EPOCHS = 3


class NoisyPoints(Dataset):
    """Points with noise that is a function of (epoch, index)."""

    def __init__(self, size: int, seed: int) -> None:
        self.points = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict:
        noise = torch.randn(8, generator=torch.Generator().manual_seed(1000 * self.epoch + index))
        point = self.points[index]
        return {"x": point + 0.1 * noise, "label": (point.sum() > 0).long()}


class Points(DataModule):
    def setup(self, stage: str) -> None:
        self.train_dataset, self.val_dataset = NoisyPoints(70, 0), NoisyPoints(20, 1)


class Classifier(LightningModule):
    """An MLP that draws random numbers of all three generators in every step."""

    def __init__(self, estimate_steps: bool) -> None:
        super().__init__()
        self.estimate_steps = estimate_steps
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.validated_at: list[int] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        x = batch["x"] + 0.01 * random.random() + 0.01 * np.random.rand()
        return nn.functional.cross_entropy(self.net(x), batch["label"])

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch["x"]), batch["label"]))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated_at.append(self.trainer.global_step)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        # Asking for the number of steps makes Lightning build the loaders before it reads a checkpoint.
        steps = int(self.trainer.estimated_stepping_batches) if self.estimate_steps else 60
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class InterruptAt(Callback):
    """Interrupt the n-th batch of this process: by an error in its middle, by SIGTERM, or by asking the parent."""

    def __init__(self, batch: int, how: str) -> None:
        self.left = batch
        self.how = how

    def on_train_batch_start(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0 and self.how == "error":
            raise ZeroDivisionError
        if self.left == 0 and self.how == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.left == 0 and self.how == "parent":
            print("ready", flush=True)
            sys.stdin.readline()


def train(
    folder: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    interrupt: Callback | None = None,
    estimate_steps: bool = False,
    **arguments: object,
) -> Classifier:
    # A resumed run must not profit from the same seed; each process draws its own numbers.
    seed_everything((20 if resume else 10) + int(os.environ.get("LOCAL_RANK", 0)), verbose=False)
    module = Classifier(estimate_steps)
    path = folder / "last.ckpt"
    callbacks = [
        WeightAverage(WeightAverage.Config(decay=0.9), name="ema"),
        ExactResume(ExactResume.Config(), name="exact_resume"),
        ResumeCheckpoint(ResumeCheckpoint.Config(every_n_train_steps=4), path=path),
    ]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *([interrupt] if interrupt else [])],
        **{"max_epochs": EPOCHS, **arguments},
    )
    data = Points(Points.Config(batch_size=8, seed=3, num_workers=workers, drop_last=False))
    stored = {"ckpt_path": path, "weights_only": True} if resume else {}
    try:
        trainer.fit(module, datamodule=data, **stored)
    except (ZeroDivisionError, SystemExit):
        assert interrupt is not None
    return module


def assert_same_weights(module: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


CASES = {
    "epochs": {},
    "steps": {"max_epochs": -1, "max_steps": 25},
    "no validation": {"max_epochs": -1, "max_steps": 20, "limit_val_batches": 0},
    "validation inside epochs": {"val_check_interval": 4},
    "validation across epochs": {"max_steps": 20, "val_check_interval": 6, "check_val_every_n_epoch": None},
    "accumulation": {"accumulate_grad_batches": 2},
    "steps estimated": {"estimate_steps": True},
    "part of an epoch": {"limit_train_batches": 5},
}


@pytest.mark.parametrize("how", ["error", "sigterm"])
@pytest.mark.parametrize("case", CASES)
def test_resume_equals_uninterrupted_run(tmp_path: Path, case: str, how: str) -> None:
    arguments = CASES[case]
    reference = train(tmp_path / "reference", **arguments)
    resumed = 0
    for batch in (5, 9, 10, 14):  # inside epochs, their last and first batches
        folder = tmp_path / str(batch)
        interrupted = train(folder, interrupt=InterruptAt(batch, how), **arguments)
        if (folder / "last.ckpt").is_file():
            module = train(folder, resume=True, **arguments)
            assert_same_weights(module, reference)
            assert {*interrupted.validated_at, *module.validated_at} == set(reference.validated_at)
            resumed += 1
    assert resumed >= 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_process_resumes_with_two_workers(tmp_path: Path, how: signal.Signals) -> None:
    batch = 14
    command = [sys.executable, __file__, str(tmp_path), str(batch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(how)
        child.stdin.write("go on\n")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored["global_step"] == (batch if how is signal.SIGTERM else 12)
    module = train(tmp_path, resume=True, workers=2)
    assert_same_weights(module, train(tmp_path / "reference", workers=0))


def test_other_random_states_give_other_weights(tmp_path: Path) -> None:
    """The tests above could fail: without the stored random states the resumed run ends elsewhere."""
    reference = train(tmp_path / "reference")
    train(tmp_path, interrupt=InterruptAt(13, "error"))
    path = tmp_path / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    del stored["callbacks"]["exact_resume"]
    torch.save(stored, path)
    with pytest.raises(AssertionError):
        assert_same_weights(train(tmp_path, resume=True), reference)


def test_checkpoint_of_a_finished_run_gives_its_weights(tmp_path: Path) -> None:
    reference = train(tmp_path)
    assert_same_weights(train(tmp_path, resume=True), reference)


def test_checkpoint_is_replaced_by_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, interrupt=InterruptAt(6, "error"))
    before = (tmp_path / "last.ckpt").read_bytes()

    def killed(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(os, "replace", killed)
    train(tmp_path, interrupt=InterruptAt(100, "error"))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert (tmp_path / "last.ckpt.new").is_file()


def test_checkpoint_folder_is_replaced(tmp_path: Path) -> None:
    from pangu_modules.engine.resume_checkpoint import _replace

    for name in ("last.ckpt", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    shutil.copytree(tmp_path / "last.ckpt", tmp_path / "last.ckpt.old")  # left by a kill
    _replace(tmp_path / "new", tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert [path.name for path in (tmp_path / "last.ckpt").iterdir()] == ["new"]


def test_random_state_round_trip(tmp_path: Path) -> None:
    def draw() -> tuple:
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    random.gauss(0, 1), np.random.randn()  # each leaves a second value for the next call
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


def test_state_of_another_number_of_processes_warns() -> None:
    callback = ExactResume(ExactResume.Config(), name="exact_resume")
    callback.load_state_dict({"processes": [random_state(), random_state()], "loader": None})
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"resuming on 1 process\(es\) a run of 2"):
        callback.on_train_start(SimpleNamespace(world_size=1, global_rank=0, train_dataloader=None), None)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_key_is_the_name() -> None:
    assert ExactResume(ExactResume.Config(), name="mine").state_key == "mine"


def test_two_processes_resume_each_with_its_own_random_state(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "resumed on 2 processes" in child.stdout, child.stderr
    states = torch.load(tmp_path / "interrupted" / "last.ckpt", weights_only=True)["callbacks"]["exact_resume"]
    first, second = (state["torch"] for state in states["processes"])
    assert not torch.equal(first, second)


def resume_on_two_processes(folder: Path) -> None:
    """Lightning starts this file a second time; both processes run these three trainings together."""
    arguments = {"devices": 2, "strategy": "ddp"}
    reference = train(folder / "reference", **arguments)
    loader = reference.trainer.train_dataloader
    assert (loader.batch_sampler.rank, loader.batch_sampler.world_size) == (reference.global_rank, 2)
    train(folder / "interrupted", interrupt=InterruptAt(8, "error"), **arguments)
    module = train(folder / "interrupted", resume=True, **arguments)
    assert_same_weights(module, reference)
    print("resumed on 2 processes", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 2:
        resume_on_two_processes(Path(sys.argv[1]))
    else:
        train(Path(sys.argv[1]), workers=2, interrupt=InterruptAt(int(sys.argv[2]), "parent"))
