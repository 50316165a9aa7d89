"""Length buckets: batches of sequences of about one length, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.loader import epoch_order

POOL = 64  # batches that are sorted together: lengths come close, and who meets whom still changes by epoch


class LengthBuckets:
    """The order of an epoch in which every batch holds sequences of similar lengths.

    The shuffled order is cut into pools of `POOL` batches; each pool is sorted by length and cut into batches, and all
    batches are shuffled. What fills no whole batch comes last, as it was drawn: a loader that leaves it out leaves out
    no length more often than others.

    Args:
        lengths: tokens of each sequence.
        global_batch_size: sequences in a batch of all processes together, which share it as `shard` says.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.size = global_batch_size
        self.seed = seed

    def __call__(self, epoch: int) -> Tensor:
        """Return the epoch's order, `(sequences,)` int64."""
        order = epoch_order(len(self.lengths), self.seed, epoch)
        whole = len(order) // self.size * self.size
        pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in order[:whole].split(POOL * self.size)]
        batches = torch.cat([*pools, order[:0]]).view(-1, self.size)
        shuffled = np.random.default_rng([self.seed, epoch, 1]).permutation(len(batches))
        return torch.cat([batches[torch.from_numpy(shuffled)].flatten(), order[whole:]])
