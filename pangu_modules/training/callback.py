"""RecipeCallback: what our callbacks share, a configuration and the name they have in the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable
from pangu_modules.training.composition import refuse_conflicts


class RecipeCallback(Configurable, Callback):
    """A callback built from its `Config`; its state is stored under its name, so that a class may occur twice.

    What it needs of training beyond the ordinary, and what it provides, are the class attributes `needs` and
    `provides`, words of `composition.WORDS`; by these, callbacks that cannot work together are refused in `setup`,
    which a subclass that has its own calls first.

    Args:
        config: the configuration.
        name: the callback's name in the recipe.
        **lightning_arguments: arguments of the Lightning callback that a subclass also inherits from.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self, config: BaseConfig, *, name: str, **lightning_arguments: Any) -> None:
        super().__init__(**lightning_arguments)
        self.config = config
        self.name = name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse other callbacks, and strategies, that do not go with this one; only for training.

        Raises:
            UsageError: there is one; the message names both.
        """
        if stage == "fit":
            refuse_conflicts(self, trainer.callbacks, trainer.strategy)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """The name in the recipe: Lightning's default is the class name, of which it accepts only one."""
        return self.name


RECIPE_FOLDER = "recipe_folder"
"""Attribute by which a recipe's Trainer knows the run's folder; the engine sets it."""
_SAID = "said_no_run_folder"


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder that callbacks write to: a recipe's run, or what a plain Trainer logs to.

    Without a logger that is ``default_root_dir``, if it was given. Lightning's default for it is the current folder,
    which is the user's: None is returned then, nothing is written, and that is said once.
    """
    recipe = getattr(trainer, RECIPE_FOLDER, None)
    if recipe is not None:
        return Path(recipe)
    for logger in trainer.loggers:  # not trainer.log_dir, a message among processes that one alone must not send
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if isinstance(folder, (str, Path)):  # the logger of fast_dev_run answers everything with a function
            return Path(folder)
    root = Path(trainer.default_root_dir)
    if root.absolute() != Path.cwd():
        return root
    if not getattr(trainer, _SAID, False):
        setattr(trainer, _SAID, True)
        rank_zero_info(
            "the Trainer has no logger and no default_root_dir: callbacks write no report, no weighting model and no "
            "teacher; give one of the two to keep them"
        )
    return None
