"""A Trainer's arguments completed for NPUs: Lightning's own "auto" chooses the CPU, and its names mean CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pangu_modules.ascend import availability
from pangu_modules.ascend.accelerator import NPUAccelerator
from pangu_modules.ascend.precision import NPUMixedPrecision, check_name

SAME = {
    "ddp": "ddp_npu",
    "ddp_find_unused_parameters_true": "ddp_npu_find_unused_parameters_true",
    "ddp_find_unused_parameters_false": "ddp_npu",
}
"""Lightning's strategies and what they are on NPUs."""
FORKED = ("fork", "spawn", "notebook")


def trainer_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a Trainer as they must be for NPUs; unchanged where it trains elsewhere.

    ``Trainer(**trainer_arguments({"devices": 8, "precision": "bf16-mixed"}))`` trains on NPUs where there are some.

    Args:
        given: the arguments; ``accelerator`` "npu" asks for NPUs, "auto" or none takes them if there are any.

    Raises:
        MisconfigurationException: a value is not for NPUs, or they were asked for and there are none.
    """
    arguments = dict(given)
    asked = arguments.get("accelerator", "auto")
    if asked == "auto" and availability.is_available():
        asked = "npu"
    if not (asked == "npu" or isinstance(asked, NPUAccelerator)):
        return arguments
    arguments["accelerator"] = NPUAccelerator() if asked == "npu" else asked
    if arguments.get("precision") is not None:
        arguments["precision"] = check_name(arguments["precision"])
    arguments["strategy"] = _strategy(arguments)
    if "mixed" in str(arguments.get("precision")) and not _of_ours(arguments["strategy"]):
        mixed = NPUMixedPrecision(arguments.pop("precision"))  # Lightning's would be for CUDA
        plugins = arguments.get("plugins") or []
        arguments["plugins"] = [*(plugins if isinstance(plugins, Sequence) else [plugins]), mixed]
    return arguments


def _of_ours(strategy: Any) -> bool:
    """Whether a strategy takes care of precision itself, as those for NPUs do."""
    return isinstance(strategy, str) or getattr(strategy, "for_npu", False)


def _strategy(arguments: Mapping[str, Any]) -> Any:
    """Return the strategy that is meant."""
    given = arguments.get("strategy", "auto")
    if not isinstance(given, str):
        return given
    name = given.lower()
    if name == "auto":
        devices = arguments.get("devices", "auto")
        count = len(NPUAccelerator.parse_devices(devices))
        return "single_npu" if count == 1 and arguments.get("num_nodes", 1) == 1 else "ddp_npu"
    if any(word in name for word in FORKED):
        raise MisconfigurationException(
            f"strategy={given!r}: a process forked or spawned from another hangs on an NPU: give "
            'strategy="ddp_npu" and run a script, or one device in a notebook with "single_npu"'
        )
    if "fsdp" in name and name != "fsdp_npu":
        raise MisconfigurationException(
            f'strategy={given!r} is for CUDA: give strategy="model_parallel_npu" (FSDP2) or "fsdp_npu"'
        )
    if "deepspeed" in name:
        raise MisconfigurationException(f'strategy={given!r} is for CUDA: give strategy="model_parallel_npu" (FSDP2)')
    return SAME.get(name, given)
