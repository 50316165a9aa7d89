"""Which NPUs are meant by ``devices=``: a number, a list, or a text as on a command line."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException


def parse(devices: int | str | Sequence[int], count: int) -> list[int]:
    """Return the indices of the devices.

    Args:
        devices: a number of devices, -1 or "auto" for all; a list of indices; or text, "4" a number, "0,2" a list.
        count: devices that this process sees.

    Raises:
        MisconfigurationException: there are not so many, an index is not one of them, or occurs twice.
    """
    wanted = _from_text(devices) if isinstance(devices, str) else devices
    if wanted == -1:
        return list(range(count))
    if isinstance(wanted, bool) or not isinstance(wanted, int | Sequence):
        raise MisconfigurationException(f'devices={devices!r}: give a number, a list of indices, or "auto"')
    if isinstance(wanted, int):
        if not 0 < wanted <= count:
            raise MisconfigurationException(f"devices={devices!r}: {_shown(count)}; give 1 to {count}, or -1 for all")
        return list(range(wanted))
    return _checked(list(wanted), devices, count)


def _from_text(text: str) -> int | list[int]:
    try:
        if text.strip() == "auto":
            return -1
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise MisconfigurationException(
            f'devices={text!r}: give a number, indices with commas ("0,2"), or "auto"'
        ) from None


def _checked(indices: list[int], devices: object, count: int) -> list[int]:
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise MisconfigurationException(f"devices={devices!r}: {index!r} is no index; give whole numbers")
        if index < 0:
            raise MisconfigurationException(f"devices={devices!r}: {index} is negative; give -1 alone for all devices")
        if index >= count:
            raise MisconfigurationException(
                f"devices={devices!r}: there is no npu:{index}, {_shown(count)}; ASCEND_RT_VISIBLE_DEVICES may hide it"
            )
        if indices.count(index) > 1:
            raise MisconfigurationException(f"devices={devices!r}: {index} occurs twice; name each device once")
    if not indices:
        raise MisconfigurationException(f"devices={devices!r} names no device; leave it out for all")
    return indices


def _shown(count: int) -> str:
    return f"this process sees {count} NPU{'s' if count != 1 else ''}"
