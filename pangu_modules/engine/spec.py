"""What a recipe says, as data: stages in order, each with module, data, callbacks and trainer; nothing here runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

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


class Stage(Config):
    """One training run: what `Recipe` holds once, or by name for a pipeline."""

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
    loggers: list[Literal["csv", "tensorboard", "wandb"]] = Field(
        ["csv"], description="Where metrics go; tensorboard and wandb need their packages."
    )

    @property
    def active_callbacks(self) -> dict[str, Config]:
        """The callbacks that have not been removed, by name."""
        return {name: config for name, config in self.callbacks.items() if config is not None}

    @field_validator("module", "data", mode="before")
    @classmethod
    def _take_configurations(cls, part: Any) -> Any:
        """Say what to write in place of an object, or of a configuration that builds nothing."""
        if isinstance(part, Config) and part.owner is None:
            raise ValueError(f"{type(part).__qualname__} builds nothing: nest it as `Config` in a Configurable class")
        if not isinstance(part, Config | Mapping):
            name = part.__name__ if isinstance(part, type) else type(part).__name__
            raise ValueError(f"give {name}.Config(...), a Config nested in {name}(Configurable, ...)")
        return part

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


class RecipeSpec:
    """The data of a recipe: its stages in order, what the paper states, and what a run costs.

    Args:
        stages: stages by name, in the order of their work.
        cost: what a run costs, for ``make list``: minutes on two cores, or "paper scale".
        reference: figures the model must have, stated by the paper or derived from its formulas (e.g.
            ``{"parameters": 89_002_216}``); ``plan`` compares them.
        **single: the fields of `Stage`, for a recipe of one stage.

    Raises:
        ValueError: both or neither form is given, or `start_from` names no earlier stage.
    """

    def __init__(
        self,
        *,
        stages: Mapping[str, Stage] | None = None,
        cost: str = "",
        reference: Mapping[str, float] | None = None,
        **single: Any,
    ) -> None:
        if bool(single) == bool(stages):
            raise ValueError("give a recipe either `stages` or the fields of a single stage (module, data, ...)")
        self.stages: dict[str, Stage] = dict(stages) if stages else {"": Stage(**single)}
        self.cost = cost
        self.reference = dict(reference or {})
        self._check_order()

    def _check_order(self) -> None:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            if stage.start_from is not None and stage.start_from not in earlier:
                where = f"stage {name!r}: " if name else ""
                raise ValueError(
                    f"{where}start_from={stage.start_from!r} names no earlier stage; "
                    f"earlier stages: {', '.join(earlier) or 'none'}"
                )
            earlier.append(name)

    @property
    def single(self) -> bool:
        """Whether the recipe is one stage without a name (then options have no prefix)."""
        return list(self.stages) == [""]

    def stage(self, name: str) -> Self:
        """Return one stage as a recipe of its own, e.g. to derive an arm of a comparison from it."""
        if name not in self.stages:
            raise ValueError(f"no stage {name!r}.{nearest(name, self.stages)} Stages: {', '.join(self.stages)}")
        fields = {field: getattr(self.stages[name], field) for field in Stage.model_fields}
        return type(self)(cost=self.cost, reference=self.reference, **{**fields, "start_from": None})

    def derive(
        self,
        *,
        cost: str | None = None,
        reference: Mapping[str, float] | None = None,
        **changes: Mapping[str, Any] | Any,
    ) -> Self:
        """Return a variant, validated like the constructor; unchanged values are kept.

        Of a recipe of one stage: ``base.derive(module={"backbone": "vit_tiny"}, trainer={"max_epochs": 1})``;
        of a pipeline the changes come by stage: ``base.derive(expand={"module": {"depth_factor": 3}})``.
        """
        given = {"": changes} if self.single else changes
        for name in given:
            if name not in self.stages:
                known = ", ".join(self.stages)
                raise ValueError(f"no stage {name!r} to derive.{nearest(name, self.stages)} Stages: {known}")
        stages = {name: stage.derive(**given.get(name, {})) for name, stage in self.stages.items()}
        return type(self)(
            stages=stages,
            cost=self.cost if cost is None else cost,
            reference=self.reference if reference is None else reference,
        )

    def with_stages(self, stages: Mapping[str, Stage]) -> Self:
        """Return the recipe with other stages under the same names, e.g. those that a command line has changed."""
        return type(self)(stages=stages, cost=self.cost, reference=self.reference)

    def plain(self) -> dict[str, Any]:
        """Return the whole configuration as plain data: the content of ``config.yaml``."""
        plain = {name: stage.plain() for name, stage in self.stages.items()}
        return plain[""] if self.single else plain
