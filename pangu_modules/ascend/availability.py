"""Whether this process can use an NPU, and if not, why and what mends it.

The five ways in which it fails most: torch_npu is not there, is made for another torch, stands beside a torch of
another accelerator, misses CANN's libraries, or is broken in some other way.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from functools import cache
from typing import Any

import torch

SET_ENV = "source /usr/local/Ascend/cann/set_env.sh (older: /usr/local/Ascend/ascend-toolkit/set_env.sh)"
CPU_BUILD = "pip install torch=={minor}.* --index-url https://download.pytorch.org/whl/cpu"


def npu() -> Any:
    """Return ``torch.npu``, which exists once torch_npu is loaded."""
    return torch.get_device_module("npu")


def is_available() -> bool:
    """Whether there is an NPU; never raises."""
    return problem() is None


def problem() -> str | None:
    """Return why there is no NPU to use, as a sentence with the remedy; None where there is one."""
    if importlib.util.find_spec("torch_npu") is None:
        return (
            f"torch_npu is not installed: install torch_npu matching torch {minor(torch.__version__)} "
            f"(pip install torch_npu=={minor(torch.__version__)}.*), on a machine with CANN; elsewhere use "
            'accelerator="cpu"'
        )
    error = load_torch_npu()
    if error is not None:
        return error
    try:
        if npu().device_count() > 0 and npu().is_available():
            return None
        reason = "torch_npu is loaded and finds no device"
    except (ImportError, RuntimeError, OSError) as raised:
        reason = f"torch_npu is loaded and cannot use a device ({_first_line(raised)})"
    return (
        f"{reason}: npu-smi info must list one, ASCEND_RT_VISIBLE_DEVICES must not hide it, and you must be allowed to "
        "use /dev/davinci*"
    )


@cache
def load_torch_npu() -> str | None:
    """Import torch_npu if it is installed and fits this torch; return what is wrong with it, or None."""
    if importlib.util.find_spec("torch_npu") is None or hasattr(torch, "npu"):
        return None
    ours, theirs = minor(torch.__version__), minor(installed_version("torch_npu") or "")
    if theirs and theirs != ours:
        return (
            f"torch_npu {installed_version('torch_npu')} is made for torch {theirs}, and this is torch "
            f"{torch.__version__}: pip install torch_npu=={ours}.* , or pip install torch=={theirs}.*"
        )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return explain(error)
    return None


def explain(error: BaseException) -> str:
    """Return what an error of ``import torch_npu`` means, with the remedy."""
    text = _first_line(error)
    if "Two accelerators" in text:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "another accelerator"
        return (
            f"torch {torch.__version__} is built for {built}, and torch_npu works beside no other accelerator ({text}): "
            f"install the CPU build of torch, {CPU_BUILD.format(minor=minor(torch.__version__))}"
        )
    if "cannot open shared object file" in text:
        return (
            f"torch_npu does not find CANN's libraries ({text}): install CANN, then {SET_ENV}; on a machine without an "
            "NPU, pip uninstall torch_npu, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 so that import torch works"
        )
    return (
        f"torch_npu is installed but broken ({type(error).__name__}: {text}): install torch_npu matching torch "
        f"{minor(torch.__version__)} again; on a machine without an NPU, pip uninstall torch_npu, or set "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0 so that import torch works"
    )


def installed_version(package: str) -> str | None:
    """Return a package's version by its metadata, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def minor(version: str) -> str:
    """Return the first two numbers of a version, ``2.14`` of ``2.14.1+cpu``."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _first_line(error: BaseException) -> str:
    """Return an error's first line, of the error that caused it where there is one."""
    cause = error.__cause__ or error
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
