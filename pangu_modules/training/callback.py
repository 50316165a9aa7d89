"""RecipeCallback: what our callbacks share, a configuration and the name they have in the recipe."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch import Callback

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable

NEEDS: dict[str, str] = {
    "sample weights": "writes batch['sample_weight'], which one callback alone may do",
    "displaced weights": "moves the weights in place for a moment, so they must be whole on each process",
    "second-order gradients": "differentiates gradients, for which fused attention has no formula",
    "optimizer": "steps the module's optimizer itself",
    "unused parameters": "leaves parameters without a gradient in some steps",
}
"""What a callback may need of training, and what it means for the others."""


class RecipeCallback(Configurable, Callback):
    """A callback built from its `Config`; its state is stored under its name, so that a class may occur twice.

    What it needs of training beyond the ordinary is the class attribute `needs`, words of `NEEDS`; by these, callbacks
    that cannot work together refuse each other in `setup`.

    Args:
        config: the configuration.
        name: the callback's name in the recipe.
        **lightning_arguments: arguments of the Lightning callback that a subclass also inherits from.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: BaseConfig, *, name: str, **lightning_arguments: Any) -> None:
        super().__init__(**lightning_arguments)
        self.config = config
        self.name = name

    @property
    def state_key(self) -> str:
        """The name in the recipe: Lightning's default is the class name, of which it accepts only one."""
        return self.name
