"""``python -m pangu_modules.ascend doctor``: what there is of torch, torch_npu, CANN, driver and devices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed as dist

from pangu_modules.ascend import availability
from pangu_modules.ascend.availability import SET_ENV, Problem, installed_version, npu

CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")  # set_env.sh sets them
CANN_FOLDERS = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest")
DRIVER = "usr/local/Ascend/driver/version.info"
NONE = "none"


def examine(root: Path = Path("/")) -> tuple[dict[str, str], list[Problem]]:
    """Return what was found, by name, and what is wrong.

    Args:
        root: the folder whose ``usr/local/Ascend`` and ``dev`` are looked at.
    """
    found = {
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})" if torch.version.cuda else torch.__version__,
        "torch_npu": installed_version("torch_npu") or NONE,
        "lightning": installed_version("lightning") or NONE,
        "CANN": _cann(root),
        "driver": _version(root / DRIVER) or NONE,
        "devices": _devices(),
        "visible": os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "all (ASCEND_RT_VISIBLE_DEVICES is not set)"),
        "hccl": "registered with torch.distributed" if "hccl" in dist.Backend.backend_list else NONE,
    }
    return found, list(_problems(root, found))


def _problems(root: Path, found: dict[str, str]) -> Iterator[Problem]:
    """Yield what is wrong, in the order in which it should be mended."""
    if found["driver"] == NONE and not list((root / "dev").glob("davinci[0-9]*")):
        yield Problem(
            f"there is no driver ({root / DRIVER}) and no device (/dev/davinci*)",
            "install driver and firmware for your card; in a container mount both (docs/ascend.md)",
        )
    if not any(name in os.environ for name in CANN_VARIABLES):
        installed = [path for path in (root / folder / "set_env.sh" for folder in CANN_FOLDERS) if path.is_file()]
        remedy = f"source {installed[0]}" if installed else f"install CANN's toolkit and kernels, then {SET_ENV}"
        yield Problem(f"CANN's environment is not set ({', '.join(CANN_VARIABLES)})", remedy)
    problem = availability.problem()
    if problem is not None:
        yield problem
    elif found["hccl"] == NONE:
        yield Problem("hccl is not registered, so that several NPUs cannot train together", "install torch_npu again")


def _cann(root: Path) -> str:
    """Return CANN's version and folder, of what is in use or else installed."""
    in_use = [Path(os.environ[name]) for name in CANN_VARIABLES if name in os.environ]
    for folder in (*in_use, *(root / folder for folder in CANN_FOLDERS)):
        files = [*folder.glob("*-linux/ascend_toolkit_install.info"), folder / "version.cfg"]
        version = next((version for version in map(_version, files) if version), None)
        if version is not None or folder.is_dir():
            return f"{version or 'unknown version'} in {folder}"
    return NONE


def _version(path: Path) -> str | None:
    """Return the version that one of the vendor's files of lines ``version=...`` states."""
    try:
        stated = re.search(r"^\w*version=\[?([\w.:-]+)", path.read_text(errors="replace"), re.IGNORECASE | re.MULTILINE)
    except OSError:
        return None
    return stated[1].split(":")[-1] if stated else None


def _devices() -> str:
    if not availability.is_available():
        return NONE
    count = npu().device_count()
    return f"{count} x {npu().get_device_name(0)}"


def main() -> int:
    """Print one screen; return 0 if an NPU can be used and nothing is wrong, else 2."""
    found, problems = examine()
    for name, value in found.items():
        print(f"{name:<10} {value}")
    print()
    for problem in problems:
        print(f"wrong: {problem.what}\n mend: {problem.remedy}\n")
    if not problems:
        print('all is well: Trainer(accelerator="npu", strategy="single_npu") or "ddp_npu"')
    return 2 if problems else 0
