"""What a stage takes from an earlier one: its last checkpoint (`start_from`), or the data it made (`data_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.data_stages import DATA_STAGES, DataStage
from pangu_modules.engine.folder import RunFolder
from pangu_modules.engine.own_modules import started_from
from pangu_modules.engine.place import Place
from pangu_modules.engine.stages import BaseStage

StageT = TypeVar("StageT", bound=BaseStage)


def with_earlier(stage: StageT, stages: Mapping[str, BaseStage], place: Place) -> StageT:
    """Return a stage with the paths of what it takes from earlier ones.

    Raises:
        UsageError: an earlier stage has left nothing yet, or the stage has no field for it.
    """
    if stage.start_from is not None:
        checkpoint = _found(place, RunFolder(Path(stage.start_from)).last, "start_from", "checkpoint")
        stage = started_from(stage, checkpoint)
    if stage.data_from is not None:
        made_by = stages[stage.data_from]
        assert isinstance(made_by, DataStage)  # RecipeSpec has looked
        # The result is written last: without it the folder is not all that the stage makes.
        result = _found(place, RunFolder(Path(stage.data_from)).result, "data_from", "result")
        stage = _with_data(stage, made_by.artefact, result.parent / made_by.artefact)
    return stage


def recorded(stage: StageT, written: StageT) -> StageT:
    """Return a stage as a run's ``config.yaml`` keeps it: the places of earlier stages are this run's own.

    Args:
        stage: as it ran.
        written: as the recipe and the command line say it.
    """
    if stage.start_from is not None:
        stage = stage.derive(module={"init_checkpoint": None})
    return stage.derive(data=written.data) if stage.data_from is not None else stage


def _found(place: Place, inside: Path, field: str, what: str) -> Path:
    path = place.folder / inside
    if place.earlier is not None and not path.is_file():
        path = place.earlier / inside
    if not path.is_file():
        raise UsageError(f"{field}: stage {inside.parts[0]!r} has no {what} {path}; run it first")
    return path


def _with_data(stage: StageT, field: str, folder: Path) -> StageT:
    """Return a stage whose field, or whose data configuration's field, of that name is the folder."""
    if "data" in stage.parts:
        if field not in type(stage.data).model_fields:
            reading = getattr(stage.data.owner, "__name__", "the datamodule")
            raise UsageError(f"data_from: {reading}.Config has no field {field!r} that takes the folder of {field}")
        return stage.derive(data={field: str(folder)})
    if field not in type(stage).model_fields:
        kinds = ", ".join(kind for kind, made in DATA_STAGES.items() if made.artefact in type(stage).model_fields)
        raise UsageError(f"data_from: the stage reads no {field}; name a stage of kind {kinds or 'generate'}")
    return stage.derive(**{field: str(folder)})
