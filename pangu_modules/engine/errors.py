"""Errors of building a part of a recipe, turned into those that the command line answers in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from pangu_modules.common.errors import UsageError, readable


@contextmanager
def usage_errors(part: str) -> Iterator[None]:
    """Turn the errors of building a part of the recipe from its configuration into a UsageError that names it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except UsageError:
        raise
    except ValidationError as error:
        raise UsageError(readable(error, part)) from error
    except (ValueError, OSError, MisconfigurationException, ImportError) as error:
        named = not part or str(error).startswith(f"{part}: ")  # the message may name the part itself
        raise UsageError(str(error) if named else f"{part}: {error}") from error
