"""Length buckets: little padding, an order that (seed, epoch) alone decide, and no length left out more often."""

import numpy as np
import pytest
import torch

from datamodules.loader import ResumableLoader, epoch_order
from datamodules.text.buckets import LengthBuckets

LENGTHS = np.exp(np.random.default_rng(0).normal(4, 1, 1003)).astype(int).clip(1).tolist()


def padded(order, size=8):
    """The tokens of all batches, padding included."""
    return sum(len(part) * max(LENGTHS[index] for index in part.tolist()) for part in order.split(size))


def test_batches_hold_similar_lengths():
    """Catches batches that are cut across pools, and sorting that the shuffle of batches undoes."""
    order = LengthBuckets(LENGTHS, 8, seed=0)(0)
    assert sorted(order.tolist()) == list(range(len(LENGTHS)))
    assert padded(order) < 1.15 * sum(LENGTHS)  # seen: 1.10; shuffled alone: 3.1
    assert padded(epoch_order(len(LENGTHS), 0, 0)) > 2 * sum(LENGTHS)
    longest = torch.tensor([max(LENGTHS[index] for index in part.tolist()) for part in order[:1000].split(8)])
    assert not torch.equal(longest, longest.sort().values)  # long batches are not all at the end


def test_the_order_is_of_seed_and_epoch():
    first = LengthBuckets(LENGTHS, 8, seed=0)
    assert torch.equal(first(3), LengthBuckets(LENGTHS, 8, seed=0)(3))
    assert not torch.equal(first(3), first(4))
    assert not torch.equal(first(3), LengthBuckets(LENGTHS, 8, seed=1)(3))
    partners = [{frozenset(part.tolist()) for part in first(epoch).split(8)} for epoch in range(2)]
    assert len(partners[0] & partners[1]) < 10  # conversations meet others in the next epoch


def test_what_is_left_over_is_as_it_was_drawn():
    """Catches a rest that always has the longest conversations, which drop_last would never train on."""
    rests = [set(LengthBuckets(LENGTHS, 8, seed=0)(epoch)[1000:].tolist()) for epoch in range(40)]
    median = np.median(LENGTHS)
    share = np.mean([LENGTHS[index] > median for rest in rests for index in rest])
    assert 0.3 < share < 0.7
    few = LengthBuckets([5, 3, 4], 8, seed=0)(0)
    assert sorted(few.tolist()) == [0, 1, 2]


def test_processes_together_read_the_batches_of_one():
    def batches(rank, world_size, size):
        loader = ResumableLoader(
            list(range(len(LENGTHS))), size, rank=rank, world_size=world_size, drop_last=True,
            order=LengthBuckets(LENGTHS, size * world_size, seed=0), collate_fn=list,
        )  # fmt: skip
        return list(loader)

    whole, parts = batches(0, 1, 8), [batches(rank, 2, 4) for rank in range(2)]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*parts, strict=True)]


def test_a_position_is_not_that_of_another_order():
    bucketed = ResumableLoader(list(range(1003)), 8, order=LengthBuckets(LENGTHS, 8, seed=0), collate_fn=list)
    batches = iter(bucketed)
    next(batches)
    state = bucketed.state_dict()
    rest = list(batches)
    resumed = ResumableLoader(list(range(1003)), 8, order=LengthBuckets(LENGTHS, 8, seed=0), collate_fn=list)
    resumed.load_state_dict(state)
    assert list(resumed) == rest
    with pytest.raises(ValueError, match="read with own_order=1, now it is 0"):
        ResumableLoader(list(range(1003)), 8).load_state_dict(state)
    del state["own_order"]  # a checkpoint from before there were other orders
    ResumableLoader(list(range(1003)), 8).load_state_dict(state)
