"""The progress bar: where the whole run stands, how long it still takes, and no "-2" of Lightning's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from toys import ToyData, ToyModule

from pangu_modules.engine.progress import Pace, RunProgressBar, RunTime, position, share_done


def data() -> Any:
    return ToyData.Config(batch_size=16, size=64).build()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_steps": 200, "max_epochs": -1}, "Step 40/200"),
        ({"max_steps": 200, "max_epochs": 9}, "Step 40/200"),
        ({"max_steps": -1, "max_epochs": 9}, "Epoch 3/9"),
        ({"max_steps": -1, "max_epochs": -1}, "Epoch 3"),
        ({"max_steps": -1, "max_epochs": None}, "Epoch 3"),
    ],
)
def test_position(arguments: dict[str, Any], text: str) -> None:
    assert position(SimpleNamespace(global_step=40, current_epoch=2, **arguments)) == text  # type: ignore[arg-type]


def test_the_pace_is_that_of_this_process() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    pace.update(0.3)  # resumed
    assert pace.seconds_left is None  # nothing to go by yet
    now[0] += 5
    pace.update(0.4)
    assert pace.seconds_left == pytest.approx(30)  # a tenth in 5 s, six tenths to go
    pace.update(1.0)
    assert pace.seconds_left == 0.0
    pace.update(None)
    assert pace.seconds_left is None


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ({"max_steps": 80, "max_epochs": -1}, 0.5),
        ({"max_steps": -1, "max_epochs": 4}, (2 + 0.25) / 4),
        ({"max_steps": 80, "max_epochs": 4}, (2 + 0.25) / 4),
        ({"max_steps": 41, "max_epochs": 4}, 40 / 41),
        ({"max_steps": -1, "max_epochs": -1}, None),
        ({"max_steps": -1, "max_epochs": 4, "num_training_batches": float("inf")}, None),
    ],
)
def test_the_share_that_is_done(arguments: dict[str, Any], share: float | None) -> None:
    trainer = SimpleNamespace(**{"global_step": 40, "current_epoch": 2, "num_training_batches": 20, **arguments})
    assert share_done(trainer, 5) == (share if share is None else pytest.approx(share))  # type: ignore[arg-type]


def test_a_run_by_steps_and_one_by_epochs_show_their_own_end(tmp_path: Any) -> None:
    seen: list[str] = []

    class Watched(RunProgressBar):
        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            left = RunTime(self).render(self.train_progress_bar)
            seen.append(f"{self.train_progress_bar.description}|{left.plain.partition(' • ')[2]}")

    ticks = iter(range(1000))
    for arguments in ({"max_steps": 12}, {"max_epochs": 2, "accumulate_grad_batches": 3}):
        bar = Watched(clock=lambda: float(next(ticks)))
        trainer = lightning.Trainer(
            callbacks=[bar],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            limit_val_batches=0,
            **arguments,  # type: ignore[arg-type]
        )
        trainer.fit(ToyModule.Config().build(), datamodule=data())
    # 4 steps an epoch; the clock ticks once a batch
    assert seen[:3] == ["Step 1/12|-:--:-- left", "Step 2/12|0:00:10 left", "Step 3/12|0:00:09 left"]
    assert seen[11] == "Step 12/12|0:00:00 left"
    assert seen[13] == "Epoch 1/2|0:00:06 left"
    assert seen[-1] == "Epoch 2/2|0:00:00 left"
