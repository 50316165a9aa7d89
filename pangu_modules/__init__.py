"""The importable library: configurations, recipes, LightningModules and the mathematics of the methods.

Public names are imported on first use, so that ``from pangu_modules import ScaleNetConfig`` costs only what it needs.
"""

from pangu_modules.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
