"""What transformers says while it reads a model: its errors in one sentence with a remedy, and no progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained(name_or_path: str, what: str = "model") -> Iterator[None]:
    """Turn transformers' error about a model it cannot read into one that names the value and the remedy."""
    try:
        yield
    except RuntimeError:  # of weights, which `load_fitting` explains
        raise
    except Exception as error:  # transformers' checks of a configuration raise errors of many kinds
        raise ValueError(
            f"{what}={name_or_path!r} cannot be loaded ({in_one_line(error)}); give a folder with the {what}'s files "
            "(weights in safetensors), a .gguf file, a hub id that is reachable, or 'smollm2'"
        ) from error


def in_one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars, and restore them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
