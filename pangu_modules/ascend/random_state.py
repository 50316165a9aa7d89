"""NPURandomState: random numbers in checkpoints, for Trainers without a recipe; recipes have `ExactResume`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed as dist

from pangu_modules.ascend.availability import npu


class NPURandomState(Callback):
    """Stores the random state of the CPU and of each process's NPU, and restores them when training goes on.

    Lightning stores none; without this a resumed run draws other dropout masks than one that was not interrupted.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all processes, in order of their ranks."""
        own = {"cpu": torch.get_rng_state(), "npu": npu().get_rng_state()}
        if not (dist.is_available() and dist.is_initialized()):
            return {"processes": [own]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until training starts: what is set up in between may draw random numbers."""
        self._loaded = state_dict["processes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's state, if one was loaded."""
        if self._loaded is None:
            return
        if len(self._loaded) == trainer.world_size:
            own = self._loaded[trainer.global_rank]
            torch.set_rng_state(own["cpu"].cpu())
            npu().set_rng_state(own["npu"].cpu())
        else:
            rank_zero_warn(
                f"resuming on {trainer.world_size} process(es) a run of {len(self._loaded)}: random numbers (dropout) "
                "will differ from the uninterrupted run"
            )
        self._loaded = None
