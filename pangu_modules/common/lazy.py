"""Lazy exports: a package's public names, imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pangu_modules.common import registry
from pangu_modules.common.names import nearest
from pangu_modules.common.threads import running_a_recipe, spin_briefly


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose public names are in the registry.

    Args:
        package: the package's ``__name__``, a kind of the registry.
    """
    exports = registry.names(package)

    def getattribute(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{nearest(name, exports)}")
        if running_a_recipe():  # the first name that it asks of us loads torch: this is the last moment before
            spin_briefly()
        value = registry.load(package, name)
        setattr(sys.modules[package], name, value)
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return getattribute, directory, sorted(exports)
