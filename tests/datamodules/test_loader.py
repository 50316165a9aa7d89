import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.loader import EpochBatches, ResumableLoader, collate, epoch_order, seeded, shard


class Items(Dataset):
    """Each sample tells its index and the epoch it was read in."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return {"index": index, "epoch": self.epoch}


class WholeBatches(Items):
    def __getitems__(self, indices: list[int]) -> dict:
        return {"index": torch.tensor(indices), "epoch": torch.full((len(indices),), self.epoch)}


def read(loader: ResumableLoader, epochs: int) -> list[list[tuple[int, int]]]:
    return [
        list(zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True))
        for _ in range(epochs)
        for batch in loader
    ]


@pytest.mark.parametrize("dataset", [Items, WholeBatches])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_workers(workers: int, dataset: type[Items]) -> None:
    batches = read(ResumableLoader(dataset(23), 5, seed=7, num_workers=workers), epochs=3)
    order = [epoch_order(23, 7, epoch).tolist() for epoch in range(3)]
    assert batches == [
        [(epoch, i) for i in order[epoch][start : start + 5]] for epoch in range(3) for start in range(0, 23, 5)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 10])
def test_resume_after_any_batch(stop: int, workers: int) -> None:
    expected = read(ResumableLoader(Items(23), 5, seed=1), epochs=3)
    first = ResumableLoader(Items(23), 5, seed=1, num_workers=workers)
    batches, states = [], []
    for _ in range(3):
        for batch in first:
            batches.append(batch)
            states.append(first.state_dict())
    second = ResumableLoader(Items(23), 5, seed=1, num_workers=2 - workers)
    second.load_state_dict(states[stop - 1])
    left_epochs = 3 - states[stop - 1]["epoch"]
    assert read(second, left_epochs) == expected[stop:]


def test_epoch_told_between_iter_and_next_counts() -> None:
    loader = ResumableLoader(Items(6), 2)
    batches = iter(loader)  # Lightning starts the iteration, then tells the epoch
    loader.batch_sampler.sampler.set_epoch(4)
    assert next(batches)["epoch"].tolist() == [4, 4]


def test_loaded_position_of_another_epoch_is_dropped() -> None:
    loader = ResumableLoader(Items(6), 2)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "delivered": 2})
    loader.batch_sampler.set_epoch(1)
    assert loader.state_dict()["delivered"] == 0
    assert len(read(loader, 1)) == 3


def test_iteration_left_unfinished_starts_again() -> None:
    loader = ResumableLoader(Items(6), 2, num_workers=1)
    first = next(iter(loader))["index"]
    assert torch.equal(next(iter(loader))["index"], first)


@pytest.mark.parametrize(
    ("name", "changed"), [("samples", (24, 5, 1)), ("seed", (23, 5, 2)), ("global_batch_size", (23, 4, 1))]
)
def test_position_inside_an_epoch_of_other_data_is_refused(name: str, changed: tuple[int, int, int]) -> None:
    loader = ResumableLoader(Items(23), 5, seed=1)
    next(iter(loader))
    size, batch_size, seed = changed
    other = ResumableLoader(Items(size), batch_size, seed=seed)
    with pytest.raises(ValueError, match=f"inside an epoch that was read with {name}="):
        other.load_state_dict(loader.state_dict())
    finished = {**loader.state_dict(), "delivered": len(loader)}
    other.load_state_dict(finished)


def test_same_global_batch_on_more_processes_resumes() -> None:
    one = EpochBatches(24, 6)
    one.delivered = 2
    EpochBatches(24, 3, rank=1, world_size=2).load_state_dict(one.state_dict())


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("size", "world_size"), [(24, 2), (23, 2), (10, 4), (3, 8)])
def test_shards_cover_the_order_evenly(size: int, world_size: int, drop_last: bool) -> None:
    order = epoch_order(size, 0, 0)
    shards = [shard(order, rank, world_size, drop_last=drop_last).tolist() for rank in range(world_size)]
    assert len({len(indices) for indices in shards}) == 1
    seen = [index for indices in shards for index in indices]
    if drop_last:
        assert len(seen) == len(set(seen)) == size // world_size * world_size
    else:
        assert set(seen) == set(range(size))
        assert len(seen) == -(-size // world_size) * world_size


def test_processes_together_read_the_batches_of_one() -> None:
    one = [set(indices) for _, indices in EpochBatches(24, 6, seed=3)]
    ranks = [list(EpochBatches(24, 3, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [{*a, *b} for (_, a), (_, b) in zip(*ranks, strict=True)] == one


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(23, 5, 1), (23, 5, 3), (20, 5, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_length_is_the_number_of_batches(size: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    batches = EpochBatches(size, batch_size, drop_last=drop_last, world_size=world_size)
    keys = list(batches)
    assert len(keys) == len(batches)
    assert all(len(indices) == batch_size for _, indices in keys[: -1 if not drop_last else None])


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"7 training samples give no batch of batch_size=4 on 2 process\(es\)"):
        ResumableLoader(Items(7), 4, drop_last=True, world_size=2)


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert sorted(next(iter(orders))) == list(range(50))


def test_without_shuffling_the_order_is_the_dataset() -> None:
    assert EpochBatches(5, 5, shuffle=False).indices().tolist() == [0, 1, 2, 3, 4]


def test_reading_leaves_global_random_states() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    read(ResumableLoader(Items(10), 2, num_workers=1), 1)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeded_is_a_function_of_its_numbers_and_restores() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    results = []
    for entropy in [(1, 2, 3), (1, 2, 4), (1, 2, 3)]:
        with seeded(*entropy):
            results.append(draws())
    assert results[0] == results[2]
    assert all(a != b for a, b in zip(results[0], results[1], strict=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_loader_can_be_sent_to_a_spawned_process() -> None:
    pickle.loads(pickle.dumps(ResumableLoader(Items(4), 2)._loader.dataset))


def test_collate_keeps_whole_batches() -> None:
    whole = {"x": torch.ones(2)}
    assert collate(whole) is whole
    assert collate([{"x": 1.0}, {"x": 2.0}])["x"].tolist() == [1.0, 2.0]
