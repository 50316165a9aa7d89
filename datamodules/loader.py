"""The training loader: order from (seed, epoch), sharded by process, resumable at any batch.

torchdata's StatefulDataLoader stores the position too, but as a snapshot of sampler and workers that has to be resumed
with the same number of workers, and augmentation still draws from each worker's own generators. Here order and
augmentation are functions of (seed, epoch, sample), hence the state is two numbers, equal on all processes and for any
number of workers.

Lightning saves and restores a loader that has ``state_dict`` and ``load_state_dict``, and sets the epoch through
``loader.batch_sampler.sampler.set_epoch``. It calls ``iter`` before it sets the epoch, so that the loader must not
start before the first ``next``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

Collate = Callable[[Any], Any]
Order = Callable[[int], Tensor]
"""Gives an epoch's order of the samples, a permutation of their indices, int64."""
Key = tuple[int, list[int]]
"""One batch of one process: the epoch, and the indices of its samples."""


class ResumableLoader:
    """Batches of a map-style dataset; continues bit for bit after `load_state_dict`, with any number of workers.

    A dataset may have ``set_epoch(epoch)``, called in the process that loads a batch (its augmentation should be a
    function of seed, epoch and sample index), and torch's ``__getitems__(indices)``, which may return a whole batch
    as a dictionary instead of a list of samples.

    Args:
        dataset: map-style dataset.
        batch_size: samples per batch of this process.
        seed: of the order; an order is a function of (seed, epoch).
        shuffle: False keeps the dataset's order in every epoch.
        drop_last: leave the last, smaller batch out.
        num_workers: worker processes; they live as long as the loader.
        rank: this process, from 0.
        world_size: number of processes that share the data.
        collate_fn: joins a list of samples into a batch.
        pin_memory: copy batches to page-locked memory.
        order: of an epoch's samples, in place of a shuffled one.

    Raises:
        ValueError: an epoch would have no batch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
        order: Order | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate_fn: Collate = collate_fn or collate
        self.batch_sampler = EpochBatches(
            len(cast(Sized, dataset)),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            order=order,
        )
        self._loader: DataLoader[Any] = DataLoader(
            _FetchByKey(dataset),
            batch_sampler=cast(Any, self.batch_sampler),
            num_workers=num_workers,
            collate_fn=self.collate_fn,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # its own: starting the loader must not move the training's random numbers
        )

    def __len__(self) -> int:
        """Return the batches of a whole epoch on this process, also after a resume in its middle."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Yield the current epoch's batches (after a resume, those that remain); then the next epoch is current."""
        self.batch_sampler.begin()
        for batch in self._loader:
            self.batch_sampler.delivered += 1
            yield batch
        self.batch_sampler.set_epoch(self.batch_sampler.epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the batches delivered in it (not those that workers prepared), and what fixes its order."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at a stored position.

        Raises:
            ValueError: the position is inside an epoch, and the data, seed or global batch size have changed.
        """
        self.batch_sampler.load_state_dict(state_dict)


class EpochBatches:
    """The batches of one process in the current epoch, as keys, and how many of them were delivered."""

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        order: Order | None = None,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.order = order
        self.epoch = 0
        self.delivered = 0
        self._loaded = False
        if len(self) == 0:
            raise ValueError(
                f"{size} training samples give no batch of batch_size={batch_size} on {world_size} process(es) with "
                f"drop_last={drop_last}: lower batch_size, set drop_last=False, or give more samples"
            )

    @property
    def sampler(self) -> EpochBatches:
        """The object whose `set_epoch` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is read next; a position loaded for another epoch is dropped."""
        if epoch != self.epoch:
            self.epoch, self.delivered, self._loaded = epoch, 0, False

    def begin(self) -> None:
        """Start the current epoch: at the loaded position, otherwise from its first batch."""
        self.delivered = self.delivered if self._loaded else 0
        self._loaded = False

    def indices(self) -> Tensor:
        """Return the epoch's sample indices of this process, int64."""
        if self.order is not None:
            order = self.order(self.epoch)
        else:
            order = epoch_order(self.size, self.seed, self.epoch) if self.shuffle else torch.arange(self.size)
        return shard(order, self.rank, self.world_size, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Key]:
        epoch, indices = self.epoch, self.indices()
        for batch in range(self.delivered, len(self)):
            yield epoch, indices[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        samples = _divide(self.size, self.world_size, self.drop_last)
        return _divide(samples, self.batch_size, self.drop_last)

    def state_dict(self) -> dict[str, int]:
        """Return position and fingerprint of the epoch."""
        return {**self._fingerprint(), "epoch": self.epoch, "delivered": self.delivered}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over a position; see `ResumableLoader.load_state_dict`."""
        for name, value in self._fingerprint().items():
            stored = state_dict.get(name, 0)
            if 0 < state_dict["delivered"] < state_dict["batches"] and value != stored:
                raise ValueError(
                    f"the checkpoint lies inside an epoch that was read with {name}={stored}, now it is "
                    f"{value}: resume with the same data configuration and number of processes"
                )
        self.epoch, self.delivered, self._loaded = state_dict["epoch"], state_dict["delivered"], True

    def _fingerprint(self) -> dict[str, int]:
        global_batch_size = self.batch_size * self.world_size
        return {
            "samples": self.size,
            "seed": self.seed,
            "global_batch_size": global_batch_size,
            "batches": len(self),
            "own_order": int(self.order is not None),
        }


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of `size` samples for (seed, epoch), `(size,)` int64."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))


def shard(order: Tensor, rank: int, world_size: int, *, drop_last: bool) -> Tensor:
    """Return every `world_size`-th index from `rank` on; all processes get equally many.

    Batch b of all processes together holds the samples that batch b of a single process with `world_size` times the
    batch size would hold. The order's end is left out (drop_last), or its start is repeated, to make it divisible.
    """
    if drop_last:
        order = order[: len(order) // world_size * world_size]
    else:  # with fewer samples than processes, one repetition of the order would not reach
        order = order.repeat(world_size)[: -(-len(order) // world_size) * world_size]
    return order[rank::world_size]


def collate(samples: Any) -> Any:
    """Join a list of samples into a batch; what is a batch already (a dictionary) passes."""
    return samples if isinstance(samples, dict) else default_collate(samples)


def fetch(dataset: Dataset[Any], indices: Sequence[int]) -> Any:
    """Return the samples at `indices`, by torch's ``__getitems__`` where the dataset has it."""
    many = getattr(dataset, "__getitems__", None)
    return many(list(indices)) if many is not None else [dataset[index] for index in indices]


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators within the block, and restore them after it.

    For augmentations that only know global generators: ``with seeded(seed, epoch, index): transform(image)``.
    """
    words = np.random.SeedSequence(entropy).generate_state(3).tolist()
    with isolate_rng(include_cuda=False):
        random.seed(words[0])
        np.random.seed(words[1])
        torch.random.default_generator.manual_seed(words[2])
        yield


class _FetchByKey(Dataset[Any]):
    """Reads the samples of a key, in the process that loads the batch."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, key: Key) -> Any:
        epoch, indices = key
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        return fetch(self.dataset, indices)


def _divide(total: int, parts: int, floor: bool) -> int:
    return total // parts if floor else -(-total // parts)
