"""Names: the nearest to a mistyped one, and which may be asked of a hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_source(name: str, what: str, own: Iterable[str] = ()) -> None:
    """Refuse a name that is none of ours, nothing here, and no hub id, before any network is asked.

    A hub's older names without a slash are refused too: a stranger can register the misspelt ones.

    Args:
        name: as given by the user.
        what: it is, with its field's name, e.g. ``model``.
        own: the names that stand for something of ours.

    Raises:
        ValueError: it names what is nearest.
    """
    own = list(own)
    if name in own or Path(name).expanduser().exists() or HUB_ID.fullmatch(name):
        return
    if re.search(r"[/\\]|^[.~]", name):
        raise ValueError(f"{what}={name!r}: nothing at {Path(name).expanduser().absolute()}; give a path or a hub id")
    known = "".join(f"{word!r}, " for word in own)
    raise ValueError(
        f"{what}={name!r} is no name known here and nothing in this folder.{nearest(name, own)} Give {known}a path, or "
        "a hub id, which has a slash (owner/name)"
    )
