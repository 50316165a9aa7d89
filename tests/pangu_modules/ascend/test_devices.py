"""Which devices are meant, and what is refused."""

from __future__ import annotations

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pangu_modules.ascend.devices import parse


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        ("3", [0, 1, 2]),  # a number, as Lightning reads it on other devices
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("auto", [0, 1, 2, 3]),
        ([3, 1], [3, 1]),
        ((2,), [2]),
        ("0,2", [0, 2]),
        ("2,", [2]),
    ],
)
def test_devices_by_number_list_and_text(devices, indices):
    assert parse(devices, 4) == indices


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (5, "this process sees 4 NPUs; give 1 to 4, or -1 for all"),
        (0, "give 1 to 4"),
        (-2, "give 1 to 4"),
        ([0, 4], "no npu:4, this process sees 4 NPUs; ASCEND_RT_VISIBLE_DEVICES may hide it"),
        ([0, 1, 0], "0 occurs twice; name each device once"),
        ([1, -1], "-1 is negative; give -1 alone for all devices"),
        ("0,x", "indices with commas"),
        ([], "names no device"),
        (True, "give a number"),
        ([True], "True is no index"),
        (None, "give a number"),
        ([0.0], "0.0 is no index"),
    ],
)
def test_other_devices_are_refused_in_a_sentence(devices, message):
    with pytest.raises(MisconfigurationException) as caught:
        parse(devices, 4)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"devices={devices!r}")
