"""Ascend's races compare like with like, and predictions are called so."""

import pytest
import torch

from benchmarks.methods.ascend import prediction, speed


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_sides_are_equal_bit_by_bit():
    for contest in (speed.dispatch_contest("rms_norm"), speed.decision_contest("rms_norm"), *speed.module_contests()):
        error, bound = contest.check()
        assert error == bound == 0, contest.name


def test_the_targets_are_those_of_the_issue():
    races = {race.id: race.target for contest in speed.module_contests() for race in contest.races}
    assert set(races.values()) == {1 / 1.05}
    assert speed.ALLOWED_SECONDS == 5e-6


def test_predictions_of_a_norm_follow_from_the_data_sheet():
    """4096 x 5120 entries of 2 bytes, read and written at 80 % of 1600 GB/s, and 5 us to start."""
    row = next(row for row in prediction.rows() if row["operator"] == "rms_norm")
    assert float(row["predicted fused, us"]) == pytest.approx(4096 * 5120 * 4 / (0.8 * 1600e9) * 1e6 + 5, abs=0.5)
    assert all(name.startswith(("operator", "sizes", "predicted")) for name in row)
