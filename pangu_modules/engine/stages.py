"""Stages of a recipe, as data: what all kinds have in common, and `Stage`, one training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, SerializeAsAny, field_validator

from pangu_modules.common.config import Config
from pangu_modules.common.names import nearest
from pangu_modules.common.values import check_value
from pangu_modules.engine.lightning_callback import as_config

SMALLEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
"""Arguments of the Trainer that it takes at any value, and divides by or ignores later."""


class BaseStage(Config):
    """What every kind of stage has: a module, a seed, and the earlier stages that it takes something from.

    A subclass declares the fields, so that each ``config.yaml`` has them in a telling order.
    """

    parts: ClassVar[tuple[str, ...]]  # the fields that hold a configuration with fields of its own

    if TYPE_CHECKING:  # defaults where a kind of stage is without the field
        module: Config
        data: Config = Config()
        seed: int
        start_from: str | None
        data_from: str | tuple[str, ...] | None
        callbacks: dict[str, Config | None] = {}
        trainer: dict[str, Any] = {}

    @property
    def data_sources(self) -> dict[str, str | None]:
        """The earlier stages that make this one's data, each with the field it goes to where `data_from` says one."""
        given = self.data_from
        names = () if given is None else (given,) if isinstance(given, str) else given
        pairs = [name.rpartition("=") for name in names]
        return {stage: field or None for field, _, stage in pairs}

    @property
    def active_callbacks(self) -> dict[str, Config]:
        """The callbacks that have not been removed, by name."""
        return {name: config for name, config in self.callbacks.items() if config is not None}

    @field_validator("module", "data", "engine", mode="before", check_fields=False)
    @classmethod
    def _take_configurations(cls, part: Any) -> Any:
        """Say what to write in place of an object, or of a configuration that builds nothing."""
        if isinstance(part, Config) and part.owner is None:
            raise ValueError(f"{type(part).__qualname__} builds nothing: nest it as `Config` in a Configurable class")
        if not isinstance(part, Config | Mapping):
            name = part.__name__ if isinstance(part, type) else type(part).__name__
            raise ValueError(f"give {name}.Config(...), a Config nested in {name}(Configurable, ...)")
        return part


class Stage(BaseStage):
    """One training run: what `Recipe` holds once, or by name for a pipeline."""

    parts = ("module", "data")

    module: SerializeAsAny[Config] = Field(description="Configuration of the LightningModule.")
    data: SerializeAsAny[Config] = Field(description="Configuration of the datamodule.")
    callbacks: dict[str, SerializeAsAny[Config] | None] = Field(
        {},
        description="Configurations of the callbacks, by name; null removes one. A Lightning callback may be an "
        "object, or a class_path with init_args.",
    )
    trainer: dict[str, Any] = Field({}, description="Arguments of lightning.Trainer.")
    seed: NonNegativeInt = Field(0, description="Seed of weights, data order and augmentation.")
    start_from: str | None = Field(None, description="Earlier stage whose last checkpoint this stage starts from.")
    data_from: str | tuple[str, ...] | None = Field(
        None,
        description="Earlier stage that makes data, whose folder the data configuration gets, with those of the stages "
        "that its own data are from; or several; field=stage fills another field than the one of its kind.",
    )
    teacher_from: str | None = Field(
        None, description="Earlier stage whose last checkpoint is the `teacher` of all callbacks that have one."
    )
    loggers: list[Literal["csv", "tensorboard", "wandb"]] = Field(
        ["csv"], description="Where metrics go; tensorboard and wandb need their packages."
    )

    @field_validator("callbacks", mode="before")
    @classmethod
    def _describe_callbacks(cls, callbacks: Any) -> Any:
        if isinstance(callbacks, Mapping):
            return {name: as_config(value) for name, value in callbacks.items()}
        if isinstance(callbacks, list | tuple):
            raise ValueError('give callbacks by name, {"stop": ...}, so that they can be overridden')
        return callbacks

    @field_validator("trainer")
    @classmethod
    def _keep_callbacks_apart(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        if "callbacks" in trainer:
            raise ValueError("trainer.callbacks: give callbacks by name in `callbacks`, so that they can be overridden")
        for name, value in trainer.items():
            if isinstance(value, Mapping):  # a class with its own arguments
                continue
            try:
                check_value(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if name in SMALLEST and value is not None and value < SMALLEST[name]:
                raise ValueError(f"{name}: must be at least {SMALLEST[name]}, got {value}")
        return trainer

    def derive(self, **changes: Any) -> Self:
        """Return a validated copy; mappings change single fields of module, data, trainer and each named callback.

        A callback given as None is removed; a Config or a Lightning callback under a new name is added.

        Raises:
            ValueError: fields are given for a callback that the stage does not have.
        """
        if isinstance(changes.get("trainer"), Mapping):
            changes["trainer"] = {**self.trainer, **changes["trainer"]}
        if isinstance(changes.get("callbacks"), Mapping):
            changes["callbacks"] = {**self.callbacks, **self._derived_callbacks(changes["callbacks"])}
        return super().derive(**changes)

    def _derived_callbacks(self, changes: Mapping[str, Any]) -> dict[str, Config | None]:
        derived: dict[str, Config | None] = {}
        for name, change in changes.items():
            change = as_config(change)
            if not isinstance(change, Mapping):
                derived[name] = change
                continue
            current = self.active_callbacks.get(name)
            if current is None:
                known = ", ".join(self.active_callbacks) or "none"
                raise ValueError(f"callbacks: no callback {name!r}.{nearest(name, self.callbacks)} Known: {known}.")
            derived[name] = current.derive(**change)
        return derived
