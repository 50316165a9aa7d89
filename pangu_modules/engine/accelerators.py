"""Devices that Lightning does not know: what completes a Trainer's arguments for each is named in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pangu_modules.common import registry
from pangu_modules.engine.errors import usage_errors


def completed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Trainer's arguments with strategy and devices of the accelerator that was asked for, or is there.

    Raises:
        UsageError: a value is not for this accelerator, or there is none.
    """
    asked = arguments.get("accelerator", "auto")
    for name in registry.names("accelerator"):
        if asked in (name, "auto"):
            with usage_errors("trainer"):
                arguments = registry.load("accelerator", name)(arguments)
    return dict(arguments)
