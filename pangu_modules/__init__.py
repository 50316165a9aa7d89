"""The importable library: configurations, recipes, LightningModules and the mathematics of the methods.

Public names are imported on first use, so that ``from pangu_modules import ScaleNetConfig`` costs only what it needs.
"""

from pangu_modules import bare_help
from pangu_modules.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Config": "pangu_modules.config",
        "Configurable": "pangu_modules.config",
        "Objective": "pangu_modules.objectives",
        "OptimizerConfig": "pangu_modules.optim",
        "PanguModule": "pangu_modules.module",
        "Plan": "pangu_modules.structure",
        "Recipe": "pangu_modules.recipe",
        "Stage": "pangu_modules.recipe",
    },
)

bare_help.answer_if_asked()
