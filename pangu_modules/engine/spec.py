"""What a recipe says, as data: its stages in order, what the paper states, and what a run costs; nothing here runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pangu_modules.common.names import nearest
from pangu_modules.engine.data_stages import DATA_STAGES
from pangu_modules.engine.stages import BaseStage, Stage


class RecipeSpec:
    """The data of a recipe: its stages in order, what the paper states, and what a run costs.

    Args:
        stages: stages by name, in the order of their work.
        cost: what a run costs, for ``make list``: minutes on two cores, or "paper scale".
        reference: figures the model must have, stated by the paper or derived from its formulas (e.g.
            ``{"parameters": 89_002_216}``); ``plan`` compares them.
        **single: the fields of `Stage`, for a recipe of one stage; with ``kind="generate"`` or ``kind="score"`` those
            of `GenerateStage` or `ScoreStage`.

    Raises:
        ValueError: both or neither form is given, or `start_from`, `data_from` or `teacher_from` names none
            before it.
    """

    def __init__(
        self,
        *,
        stages: Mapping[str, BaseStage] | None = None,
        cost: str = "",
        reference: Mapping[str, float] | None = None,
        **single: Any,
    ) -> None:
        if bool(single) == bool(stages):
            raise ValueError("give a recipe either `stages` or the fields of a single stage (module, data, ...)")
        self.stages: dict[str, BaseStage] = dict(stages) if stages else {"": _stage_of(single)}
        self.cost = cost
        self.reference = dict(reference or {})
        self._check_order()

    def _check_order(self) -> None:
        training: list[str] = []
        making: list[str] = []
        for name, stage in self.stages.items():
            where = f"stage {name!r}: " if name else ""
            if stage.start_from is not None and stage.start_from not in training:
                raise ValueError(
                    f"{where}start_from={stage.start_from!r} names no earlier stage; "
                    f"earlier stages: {', '.join(training) or 'none'}"
                )
            for source in stage.data_sources:
                if source not in making:
                    raise ValueError(
                        f"{where}data_from={source!r} names no earlier stage that makes data; "
                        f"those before it: {', '.join(making) or 'none'}"
                    )
            teacher = getattr(stage, "teacher_from", None)
            if teacher is not None and teacher not in training:
                raise ValueError(
                    f"{where}teacher_from={teacher!r} names no earlier stage that trains; "
                    f"those before it: {', '.join(training) or 'none'}"
                )
            (training if isinstance(stage, Stage) else making).append(name)

    @property
    def single(self) -> bool:
        """Whether the recipe is one stage without a name (then options have no prefix)."""
        return list(self.stages) == [""]

    def stage(self, name: str) -> Self:
        """Return one stage as a recipe of its own, e.g. to derive an arm of a comparison from it."""
        if name not in self.stages:
            raise ValueError(f"no stage {name!r}.{nearest(name, self.stages)} Stages: {', '.join(self.stages)}")
        fields = {field: getattr(self.stages[name], field) for field in type(self.stages[name]).model_fields}
        fields |= {name: None for name in ("start_from", "data_from", "teacher_from") if name in fields}
        return type(self)(cost=self.cost, reference=self.reference, **fields)

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

    def with_stages(self, stages: Mapping[str, BaseStage]) -> Self:
        """Return the recipe with other stages under the same names, e.g. those that a command line has changed."""
        return type(self)(stages=stages, cost=self.cost, reference=self.reference)

    def plain(self) -> dict[str, Any]:
        """Return the whole configuration as plain data: the content of ``config.yaml``."""
        plain = {name: stage.plain() for name, stage in self.stages.items()}
        return plain[""] if self.single else plain


def _stage_of(fields: Mapping[str, Any]) -> BaseStage:
    """Return the stage of a recipe that is written flat."""
    kind = fields.get("kind")
    if kind is None:
        return Stage(**fields)
    if kind not in DATA_STAGES:
        raise ValueError(f"kind={kind!r}: leave it out for a training run; others: {', '.join(DATA_STAGES)}")
    return DATA_STAGES[kind](**fields)
