"""RecipeCallback: what our callbacks share, a configuration and the name they have in the recipe."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from pangu_modules.config import Config as BaseConfig
from pangu_modules.config import Configurable


class RecipeCallback(Configurable, Callback):
    """A callback built from its `Config`; its state is stored under its name, so that a class may occur twice.

    Args:
        config: the configuration.
        name: the callback's name in the recipe.
        **lightning_arguments: arguments of the Lightning callback that a subclass also inherits from.
    """

    def __init__(self, config: BaseConfig, *, name: str, **lightning_arguments: Any) -> None:
        super().__init__(**lightning_arguments)
        self.config = config
        self.name = name

    @property
    def state_key(self) -> str:
        """The name in the recipe: Lightning's default is the class name, of which it accepts only one."""
        return self.name
