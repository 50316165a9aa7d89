"""Importing torch where torch_npu may be broken: torch loads it by itself, and fails with it."""

from __future__ import annotations

import os
import sys

SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # as in `availability`, which imports torch


def import_torch() -> None:
    """Import torch without its loading of torch_npu, and leave that to `availability`, which knows what to say.

    Where torch is there already, it has loaded torch_npu, or somebody has told it not to.
    """
    if "torch" in sys.modules:
        return
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        import torch  # noqa: F401
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
    if before != "0":
        from pangu_modules.ascend.availability import load_torch_npu

        load_torch_npu()
