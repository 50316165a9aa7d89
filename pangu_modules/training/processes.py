"""The processes that train together, as the few collective operations that weighting needs; one process is no group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among `world_size`; all of them call the same methods in the same order."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return the default group, or a single process without one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum_(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Replace each tensor by its sum over the processes, in place, and return them."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
        return tensors

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the rows (batch, ...) of all processes, (world_size * batch, ...); gradients reach this one's own.

        Raises:
            ValueError: the processes have different numbers of rows.
        """
        if self.world_size == 1:
            return tensor
        counts = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
        if len({int(count) for count in counts}) > 1:
            raise ValueError(
                f"the processes have {[int(count) for count in counts]} sequences: sync_weights=True needs batches of "
                "one size; set drop_last=True"
            )
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        parts[self.rank] = tensor
        return torch.cat(parts)

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's rows of what `rows` returned."""
        return rows.chunk(self.world_size)[self.rank] if self.world_size > 1 else rows
