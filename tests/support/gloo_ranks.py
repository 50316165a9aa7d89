"""Processes that talk through gloo, for the tests of expert parallelism."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, by the server that all ranks are forked from: importing torch takes longer than what the tests do.
PRELOAD = [
    "torch.distributed.tensor.debug",
    "torch.distributed.fsdp",
    "lightning.pytorch",
    "pangu_modules.llm.causal_lm",
    "pangu_modules.llm.moge.modeling",
    "pangu_modules.llm.moge.parallel.strategy",
]


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return what `function(*arguments)` returns on each of `world` ranks; tensors and plain data."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    folder.mkdir()
    mp.start_processes(_rank, (world, folder, function, arguments), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(world)]


def _rank(index: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(index)  # tells Lightning that the processes are there
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=world)
    torch.save(function(*arguments), folder / f"{index}.pt")
    dist.destroy_process_group()
