"""DWM's rounds as a function of the optimizer step, batches as a function of their number, and the report's rows."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, default_collate

from callbacks.weighting.batches import DrawnBatches
from callbacks.weighting.report import Record, domain_weights, round_summaries
from callbacks.weighting.schedule import RoundSchedule


class Numbers(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        torch.rand(1)  # an augmentation
        return {"number": torch.tensor(index)}


def test_rounds_are_equally_long():
    schedule = RoundSchedule(num_rounds=5)
    assert [schedule.round_of(step, 10) for step in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [schedule.round_of(step, 3) for step in range(3)] == [0, 1, 3]  # fewer steps than rounds


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"warmup_rounds": 0}, [0, 1, 2, 3, 4]),
        ({"warmup_rounds": 5}, []),
        ({"freeze_after_round": 1}, [1]),
        ({"warmup_rounds": 2, "freeze_after_round": 3}, [2, 3]),
    ],
)
def test_rounds_with_updates(fields, expected):
    schedule = RoundSchedule(**fields)
    assert [number for number in range(5) if schedule.learns_in(number)] == expected


def test_batches_are_a_function_of_their_number():
    batches = DrawnBatches(Numbers(), 4, default_collate, (0, 1))
    state = torch.get_rng_state()
    third = batches[3]["number"]
    assert torch.equal(batches[3]["number"], third)
    assert torch.equal(torch.get_rng_state(), state)
    epoch = [index for n in range(2) for index in batches.indices(n)]
    assert len(set(epoch)) == 8  # no sample twice in an epoch
    assert epoch != [index for n in (2, 3) for index in batches.indices(n)]
    assert DrawnBatches(Numbers(), 4, default_collate, (1, 1)).indices(0) != batches.indices(0)
    assert sorted(DrawnBatches(Numbers(), 99, default_collate, (0, 1)).indices(5)) == list(range(10))


def test_processes_share_a_batch():
    whole = DrawnBatches(Numbers(), 6, default_collate, (0, 1)).indices(1)
    parts = [DrawnBatches(Numbers(), 6, default_collate, (0, 1), rank=r, world_size=4).indices(1) for r in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert sorted(index for part in parts for index in part) == sorted(whole)


def test_rows_of_the_report():
    total = {"0/1": [2.0, 20.0, 2.0, 2.0], "1/1": [4.0, 40.0, 2.0, 1.5], "1/0": [1.0, 7.0, 3.0, 9.0]}
    rows = [each.row() for each in domain_weights(total, ["clean"])]
    assert rows[0] == {
        "domain": "clean",
        "tokens": 7,
        "round 0": None,
        "± round 0": None,
        "round 1": 3.0,
        "± round 1": None,
    }
    weights = torch.tensor([0.0, 0.5, 0.5, 1.0])  # sums to 2, squares to 1.5
    assert rows[1]["± round 1"] == pytest.approx(float(weights.std() / 2), abs=1e-4)
    assert (rows[1]["domain"], rows[1]["tokens"], rows[1]["round 1"]) == ("1", 60, 0.5)
    record = Record("dwm")
    record.begin(0)
    record.validated(0, 5.0)
    record.validated(0, 4.0)
    record.begin(1)
    record.validated(1, 3.5)
    rows = [each.row() for each in round_summaries(record.rounds)]
    assert [(row["validation loss, start"], row["validation loss, end"], row["change"]) for row in rows] == [
        (5.0, 4.0, -1.0),
        (4.0, 3.5, -0.5),
    ]
