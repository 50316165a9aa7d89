"""Plans: small records of what changed a model's shape, kept in the module's configuration and in checkpoints.

A plan holds enough to rebuild the shapes (kept counts, ranks, depths), never data. Loading a checkpoint builds the
base model and applies its plans in order; the weights are then loaded over the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from pangu_modules.common import registry
from pangu_modules.common.config import Config
from pangu_modules.common.names import nearest

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


class Plan(Config):
    """One change of a model's structure; subclasses give `kind` a default and implement `apply`."""

    kinds: ClassVar[dict[str, type[Plan]]] = {}

    kind: str = Field(description="Name of the kind of plan, unique among all plans.")
    source: str = Field("", description="Name (in the recipe) of the callback that made the plan; empty for none.")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        kind = cls.model_fields["kind"].default
        if isinstance(kind, str):
            Plan.kinds[kind] = cls

    def apply(self, module: LightningModule) -> None:
        """Change the shapes of `module` in place.

        Raises:
            ValueError: the plan does not fit the module.
        """
        raise TypeError(f"{type(self).__qualname__} does not define apply(module)")


def plan_from(data: Plan | Mapping[str, Any]) -> Plan:
    """Return `data` as the plan class that its `kind` names.

    Raises:
        ValueError: no plan of this kind is known.
    """
    if isinstance(data, Plan):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f"structure holds {data!r}: a plan is a mapping with its kind and its fields")
    kind = str(data.get("kind"))
    if kind not in Plan.kinds and kind in registry.names("plan"):
        registry.load("plan", kind)  # importing the module that defines it registers it here
    if kind not in Plan.kinds:
        known = sorted({*Plan.kinds, *registry.names("plan")})
        raise ValueError(
            f"structure names a plan of unknown kind {kind!r}.{nearest(kind, known)} Known kinds: {', '.join(known)}; "
            "a plan of your own must be imported before the checkpoint is loaded"
        )
    return Plan.kinds[kind].model_validate(dict(data))


def _plans_from(data: Any) -> Any:
    return tuple(plan_from(item) for item in data) if isinstance(data, Sequence) else data


Structure = Annotated[tuple[SerializeAsAny[Plan], ...], BeforeValidator(_plans_from)]
"""Type of a configuration field that holds plans in the order of their application."""


def find_plan(structure: Sequence[Plan], kind: str, source: str = "") -> Plan | None:
    """Return the plan of this kind and source, or None; a callback that finds its own plan has nothing left to do."""
    return next((plan for plan in structure if plan.kind == kind and plan.source == source), None)


def describe(structure: Sequence[Plan | Mapping[str, Any]]) -> str:
    """Return the kinds in order, e.g. ``base > scalenet > onebit``, for messages."""
    return " > ".join(["base", *(plan_from(plan).kind for plan in structure)])
