"""What a worker accepts from an arm."""

import pytest

from benchmarks.harness.worker import checked


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.9", None])
def test_numbers_must_be_finite(value):
    with pytest.raises(ValueError, match="the arm returned accuracy="):
        checked({"accuracy": value})
