"""Callbacks: the methods' schedules over training, and what every recipe has (exact resume)."""

from pangu_modules.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
