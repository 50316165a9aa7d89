"""Whether this process can use an NPU, and if not, why and what mends it.

The five ways in which it fails most: torch_npu is not there, is made for another torch, stands beside a torch of
another accelerator, misses CANN's libraries, or is broken in some other way.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

SET_ENV = "source /usr/local/Ascend/cann/set_env.sh (older: /usr/local/Ascend/ascend-toolkit/set_env.sh)"
SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
"""torch's variable; "0" keeps it from loading what is installed for other devices."""


@dataclass(frozen=True)
class Problem:
    """Why there is no NPU to use, and what mends it, each a clause of a sentence."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def npu() -> Any:
    """Return ``torch.npu``, which exists once torch_npu is loaded."""
    return torch.get_device_module("npu")


def is_available() -> bool:
    """Whether there is an NPU; never raises."""
    return problem() is None


def problem() -> Problem | None:
    """Return why there is no NPU to use; None where there is one."""
    if importlib.util.find_spec("torch_npu") is None:
        return Problem(
            "torch_npu is not installed", f"on a machine with CANN, {_matching()}; elsewhere train on the CPU"
        )
    error = load_torch_npu()
    if error is not None:
        return error
    what = "torch_npu is loaded and finds no device"
    try:
        if npu().is_available() and npu().device_count() > 0:
            return None
    except (ImportError, RuntimeError, OSError) as raised:
        what = f"torch_npu is loaded and cannot use a device ({_first_line(raised)})"
    return Problem(
        what,
        "see that npu-smi info lists one, that ASCEND_RT_VISIBLE_DEVICES does not hide it, and that you may use "
        "/dev/davinci*",
    )


@cache
def load_torch_npu() -> Problem | None:
    """Import torch_npu if it is installed and made for this torch; return what is wrong with it, or None."""
    if importlib.util.find_spec("torch_npu") is None or hasattr(torch, "npu"):
        return None
    installed, switch = installed_version("torch_npu"), os.environ.get(SWITCH)
    if installed is not None and minor(installed) != minor(torch.__version__):
        return Problem(
            f"torch_npu {installed} is made for torch {minor(installed)}, and this is torch {torch.__version__}",
            f"{_matching()}, or pip install 'torch=={minor(installed)}.*'",
        )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return explain(error)
    finally:  # it switches off what has loaded it, and where it fails leaves it off for the processes started from here
        os.environ.pop(SWITCH, None)
        if switch is not None:
            os.environ[SWITCH] = switch
    return None


def explain(error: BaseException) -> Problem:
    """Return what an error of ``import torch_npu`` means."""
    text = _first_line(error)
    if "Two accelerators" in text:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "another accelerator"
        return Problem(
            f"torch {torch.__version__} is built for {built}, beside which torch_npu does not work ({text})",
            f"install torch {minor(torch.__version__)} again, as the CPU build that pytorch.org offers",
        )
    without = f"on a machine without an NPU pip uninstall torch_npu, or set {SWITCH}=0 so that import torch works"
    if "cannot open shared object file" in text:
        return Problem(f"torch_npu does not find CANN's libraries ({text})", f"install CANN, then {SET_ENV}; {without}")
    return Problem(
        f"torch_npu is installed but broken ({type(error).__name__}: {text})", f"{_matching()} again; {without}"
    )


def _matching() -> str:
    ours = minor(torch.__version__)
    return f"install torch_npu matching torch {ours} (pip install 'torch_npu=={ours}.*')"


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
