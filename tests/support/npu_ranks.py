"""Processes that have fake NPUs: torch takes a device once and for good, so each test gets a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Imported once, by the server that all processes are forked from: importing torch takes longer than what the tests do.
PRELOAD = [
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "lightning.fabric",
    "lightning.pytorch",
    "pangu_modules.training.module",
    "pangu_modules.engine.trainer",
]


def with_npus(function: Callable[..., Any], folder: Path, *arguments: Any, ranks: int = 1, npus: int = 2) -> Any:
    """Return what `function(*arguments)` returns in a process with `npus` NPUs; of several ranks, a list.

    Args:
        function: of a module; it returns tensors and plain data.
        folder: a new folder for what the processes exchange.
        *arguments: of the function.
        ranks: processes; they are connected if there are several, by hccl if there are NPUs.
        npus: how many NPUs each sees; 0: the process is an ordinary one, with the CPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(parents=True)
    start = (folder, ranks, npus, function, arguments)
    processes = [context.Process(target=_rank, args=(rank, *start)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, errors[0]
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    return results if ranks > 1 else results[0]


def _rank(
    rank: int, folder: Path, ranks: int, npus: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        if npus:
            import fake_npu

            fake_npu.install(npus)
        if ranks > 1:
            os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes are there
            store = f"file://{folder}/store"
            backend = "hccl" if npus else "gloo"
            torch.distributed.init_process_group(backend, init_method=store, rank=rank, world_size=ranks)
        torch.save(function(*arguments), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
