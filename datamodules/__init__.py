"""Datamodules: images, text and tasks, and the embedded samples that need no network."""

from pangu_modules.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
