"""DWM's stages as a function of the optimizer step, batches as a function of their number, and the report's rows."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, default_collate

from callbacks.weighting.batches import DrawnBatches
from callbacks.weighting.report import Record, domain_weights, stage_summaries
from callbacks.weighting.schedule import StageSchedule


class Numbers(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        torch.rand(1)  # an augmentation
        return {"number": torch.tensor(index)}


def test_stages_are_equally_long():
    schedule = StageSchedule(n_stages=5)
    assert [schedule.stage(step, 10) for step in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [schedule.stage(step, 3) for step in range(3)] == [0, 1, 3]  # fewer steps than stages


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"warmup_stages": 0}, [0, 1, 2, 3, 4]),
        ({"warmup_stages": 5}, []),
        ({"freeze_after_stage": 1}, [1]),
        ({"warmup_stages": 2, "freeze_after_stage": 3}, [2, 3]),
    ],
)
def test_stages_with_updates(fields, expected):
    schedule = StageSchedule(**fields)
    assert [stage for stage in range(5) if schedule.learns_in(stage)] == expected


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
        "stage 0": None,
        "± stage 0": None,
        "stage 1": 3.0,
        "± stage 1": None,
    }
    weights = torch.tensor([0.0, 0.5, 0.5, 1.0])  # sums to 2, squares to 1.5
    assert rows[1]["± stage 1"] == pytest.approx(float(weights.std() / 2), abs=1e-4)
    assert (rows[1]["domain"], rows[1]["tokens"], rows[1]["stage 1"]) == ("1", 60, 0.5)
    record = Record("dwm")
    record.begin(0)
    record.validated(0, 5.0)
    record.validated(0, 4.0)
    record.begin(1)
    record.validated(1, 3.5)
    rows = [each.row() for each in stage_summaries(record.stages)]
    assert [(row["validation loss, start"], row["validation loss, end"], row["change"]) for row in rows] == [
        (5.0, 4.0, -1.0),
        (4.0, 3.5, -0.5),
    ]
