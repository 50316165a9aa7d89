"""What a stage takes from earlier ones: a last checkpoint (`start_from`, `teacher_from`), or data (`data_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.data_stages import DATA_STAGES, DataStage
from pangu_modules.engine.folder import RunFolder
from pangu_modules.engine.own_modules import started_from
from pangu_modules.engine.place import Place
from pangu_modules.engine.stages import BaseStage

StageT = TypeVar("StageT", bound=BaseStage)
TEACHER = "teacher"  # field of a callback


def with_earlier(stage: StageT, stages: Mapping[str, BaseStage], place: Place) -> StageT:
    """Return a stage with the paths of what it takes from earlier ones.

    Raises:
        UsageError: an earlier stage has left nothing yet, or the stage has no field for it.
    """
    if stage.start_from is not None:
        checkpoint = _found(place, RunFolder(Path(stage.start_from)).last, "start_from", "checkpoint")
        stage = started_from(stage, checkpoint)
    if stage.data_sources:
        stage = _with_data(stage, _folders(stage, stages, place))
    teacher = getattr(stage, "teacher_from", None)
    if teacher is not None:
        checkpoint = _found(place, RunFolder(Path(teacher)).last, "teacher_from", "checkpoint")
        stage = _taught(stage, checkpoint)
    return stage


def recorded(stage: StageT, written: StageT) -> StageT:
    """Return a stage as a run's ``config.yaml`` keeps it: the places of earlier stages are this run's own.

    Args:
        stage: as it ran.
        written: as the recipe and the command line say it.
    """
    if stage.start_from is not None:
        stage = stage.derive(module={"init_checkpoint": None})
    if getattr(stage, "teacher_from", None) is not None:
        stage = stage.derive(callbacks=written.callbacks)
    return stage.derive(data=written.data) if stage.data_sources else stage


def _found(place: Place, inside: Path, field: str, what: str) -> Path:
    path = place.folder / inside
    if place.earlier is not None and not path.is_file():
        path = place.earlier / inside
    if not path.is_file():
        raise UsageError(f"{field}: stage {inside.parts[0]!r} has no {what} {path}; run it first")
    return path


@dataclass(frozen=True)
class _Folders:
    """Folders by the field that takes them.

    Attributes:
        wanted: of the stages that `data_from` names; the field must be there.
        behind: of the stages that these have their own data from; a field that is not there is left out.
    """

    wanted: Mapping[str, tuple[str, ...]]
    behind: Mapping[str, tuple[str, ...]]


def _folders(stage: BaseStage, stages: Mapping[str, BaseStage], place: Place) -> _Folders:
    wanted: dict[str, list[str]] = {}
    behind: dict[str, list[str]] = {}
    for name, field in stage.data_sources.items():
        made_by, folder = _made(name, stages, place)
        wanted.setdefault(field or made_by.artefact, []).append(folder)
        following = [] if field else list(made_by.data_sources)
        while following:
            further, folder = _made(following.pop(), stages, place)
            behind.setdefault(further.artefact, []).append(folder)
            following += further.data_sources
    unique = {name: tuple(dict.fromkeys(folders)) for name, folders in behind.items() if name not in wanted}
    return _Folders({name: tuple(folders) for name, folders in wanted.items()}, unique)


def _made(name: str, stages: Mapping[str, BaseStage], place: Place) -> tuple[DataStage, str]:
    """Return a stage that makes data, and the folder that it has made."""
    made_by = stages[name]
    assert isinstance(made_by, DataStage)  # RecipeSpec has looked
    # The result is written last: without it the folder is not all that the stage makes.
    result = _found(place, RunFolder(Path(name)).result, "data_from", "result")
    return made_by, str(result.parent / made_by.artefact)


def _with_data(stage: StageT, folders: _Folders) -> StageT:
    """Return a stage in which, or in whose data configuration, the fields are the folders: one, or several in order."""
    in_data = "data" in stage.parts
    known = type(stage.data).model_fields if in_data else type(stage).model_fields
    for field in folders.wanted:
        if field not in known and in_data:
            reading = getattr(stage.data.owner, "__name__", "the datamodule")
            raise UsageError(f"data_from: {reading}.Config has no field {field!r} that takes the folder of {field}")
        if field not in known:
            kinds = ", ".join(kind for kind, made in DATA_STAGES.items() if made.artefact in known)
            raise UsageError(f"data_from: the stage reads no {field}; name a stage of kind {kinds or 'generate'}")
    given = {**{name: found for name, found in folders.behind.items() if name in known and in_data}, **folders.wanted}
    changes = {name: found[0] if len(found) == 1 else found for name, found in given.items()}
    return stage.derive(data=changes) if in_data else stage.derive(**changes)


def _taught(stage: StageT, checkpoint: Path) -> StageT:
    """Return a stage whose callbacks that have a teacher have this one.

    Raises:
        UsageError: none has.
    """
    taught = {name for name, config in stage.active_callbacks.items() if TEACHER in type(config).model_fields}
    if not taught:
        raise UsageError("teacher_from: no callback of the stage has a teacher; add one, e.g. Distillation")
    return stage.derive(callbacks={name: {TEACHER: str(checkpoint)} for name in taught})
