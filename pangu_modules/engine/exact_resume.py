"""ExactResume: random states in the checkpoint, so that a resumed run equals the uninterrupted one bit for bit."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from pangu_modules.training.callback import RecipeCallback


class ExactResume(RecipeCallback):
    """Store the random states of Python, numpy, torch and the accelerator, of every process, and restore them.

    They are restored in `on_train_start`, the last hook before training continues: put this callback after all that
    draw random numbers there. The loader's position (`datamodules.loader`) is stored here as well: Lightning 2.6 does
    not restore it where `configure_optimizers` asks for the number of steps, which builds the loaders before the
    checkpoint is read.
    """

    _trainer: Trainer | None = None
    _loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the trainer: `state_dict` is called without it."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all processes, in order of their ranks, and the loader's position."""
        loader = _stateful_loader(self._trainer)
        return {"processes": _gather(random_state()), "loader": None if loader is None else loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep stored states until training starts: what is set up in between may draw random numbers."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's state, if one was loaded."""
        if self._loaded is None:
            return
        loader, position, processes = _stateful_loader(trainer), self._loaded["loader"], self._loaded["processes"]
        if loader is not None and position is not None:
            loader.load_state_dict(position)
        if len(processes) == trainer.world_size:
            restore_random_state(processes[trainer.global_rank])
        else:
            rank_zero_warn(
                f"resuming on {trainer.world_size} process(es) a run of {len(processes)}: random numbers (dropout) "
                "will differ from the uninterrupted run"
            )
        self._loaded = None


def random_state() -> dict[str, Any]:
    """Return the global random states as tensors and numbers, which ``torch.load(weights_only=True)`` reads."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    state = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    device = _device_module()
    return state if device is None else {**state, "device": device.get_rng_state()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global random states to what `random_state` returned."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = legacy["keys"].numpy().astype(np.uint32)
    np.random.set_state((legacy["name"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    device = _device_module()
    if device is not None and "device" in state:
        device.set_rng_state(state["device"].cpu())


def _device_module() -> Any:
    """Return ``torch.cuda``, ``torch.npu`` or the like, or None without an accelerator or before it is used."""
    if not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())


def _stateful_loader(trainer: Trainer | None) -> Any:
    """Return the training loader if it has a state to store."""
    loader = None if trainer is None else trainer.train_dataloader
    return loader if hasattr(loader, "load_state_dict") else None


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of all processes; every process must call it, as Lightning does when it saves."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
