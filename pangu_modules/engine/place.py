"""Where a fit writes: a new folder, or the one of the run that it goes on with; one process writes there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pangu_modules.common.config import Config
from pangu_modules.common.errors import UsageError
from pangu_modules.common.names import nearest
from pangu_modules.engine.data_stages import DataStage
from pangu_modules.engine.folder import RUNS, RunFolder, new_folder, versions
from pangu_modules.engine.launch import announced, announcement, follow, leads, tell
from pangu_modules.engine.request import Request
from pangu_modules.engine.stages import BaseStage
from pangu_modules.engine.writer import RunningElsewhereError, claimed


@dataclass(frozen=True)
class Place:
    """A run's place.

    Attributes:
        folder: where the run writes.
        earlier: the run whose checkpoints it starts from or goes on with: `folder` itself, another one for a dry run,
            or None.
    """

    folder: Path
    earlier: Path | None = None

    @property
    def resumes(self) -> bool:
        """Whether the run goes on in a folder that was there."""
        return self.folder == self.earlier

    @property
    def holds_work(self) -> bool:
        """Whether something lies there that a resume would go on with."""
        return any(path.suffix in (".ckpt", ".parquet") for path in self.folder.rglob("*"))


@contextmanager
def taken(request: Request) -> Iterator[Place]:
    """Yield the place of a fit, of which this process, or the first one of its launch, is the only writer.

    Raises:
        UsageError: there is nothing to go on with, the folder cannot be made, or another process writes there.
    """
    file = announcement(RUNS / request.program.name)
    if not leads():
        told = follow(file)
        if "refused" in told:
            raise UsageError(told["refused"])
        yield Place(Path(told["folder"]), None if told["earlier"] is None else Path(told["earlier"]))
        return
    with ExitStack() as stack:
        try:
            place = _claimed_place(request, stack)
        except UsageError as error:
            if file is not None and file.parent.is_dir():  # left there: the others may come to read it later
                tell(file, {"refused": str(error)})
            raise
        earlier = None if place.earlier is None else str(place.earlier.resolve())
        stack.enter_context(announced(file, {"folder": str(place.folder.resolve()), "earlier": earlier}))
        yield place


def _claimed_place(request: Request, stack: ExitStack) -> Place:
    place = decide(request)
    try:
        stack.enter_context(claimed(place.folder))
    except RunningElsewhereError as error:
        if request.options.get("ckpt_path") or request.options.get("stage"):
            raise
        place = Place(new_folder(request.program.name))  # nobody asked for that very run
        stack.enter_context(claimed(place.folder))
        print(f"{str(error).partition(':')[0]}: this run gets a folder of its own, {place.folder}", file=sys.stderr)
    return place


def decide(request: Request) -> Place:
    """Return where a fit writes, whoever else does; a new folder is made.

    ``--ckpt_path last`` continues the newest run; a pipeline, or a stage that makes data, whose newest run is
    unfinished and has this very configuration is continued without asking; a single stage of a pipeline runs inside the
    newest run. A dry run (``fast_dev_run``) reads what these would continue, and writes elsewhere.
    """
    recipe = request.program.name
    earlier = _earlier(request, versions(recipe))
    if _is_dry(request):
        return Place(new_folder(recipe, "dry_run"), earlier)
    return Place(new_folder(recipe)) if earlier is None else Place(earlier, earlier)


def _earlier(request: Request, existing: list[Path]) -> Path | None:
    """Return the run to go on with, if any."""
    recipe, given, chosen = request.program.name, request.options.get("ckpt_path"), request.options.get("stage")
    if given == "last":
        if not existing:
            raise UsageError(f"--ckpt_path last: there is no run of {recipe} to resume; start with fit alone")
        if request.recipe.single and not (left := _left_by(request.recipe.stages[""], existing[-1])).exists():
            raise UsageError(f"--ckpt_path last: {left} does not exist; start with fit alone")
        return existing[-1]
    making = [name for name, stage in request.recipe.stages.items() if isinstance(stage, DataStage)]
    if given is not None and (request.recipe.single or chosen) and (chosen or "") in making:
        raise UsageError(f"--ckpt_path {given}: a stage that makes data has no checkpoint; go on with --ckpt_path last")
    if given is not None and not Path(given).is_file():
        raise UsageError(f"--ckpt_path: no file {given!r}; give a checkpoint's path, or 'last'")
    if chosen is not None and chosen not in request.recipe.stages:
        known = ", ".join(request.recipe.stages)
        raise UsageError(f"--stage: no stage {chosen!r}.{nearest(chosen, request.recipe.stages)} Stages: {known}")
    goes_on = existing and (making or not request.recipe.single) and (chosen or _unfinished(existing[-1], request))
    return existing[-1] if goes_on else None


def _left_by(stage: BaseStage, folder: Path) -> Path:
    """Return what a stage goes on with."""
    return folder / stage.artefact if isinstance(stage, DataStage) else RunFolder(folder).last


def _unfinished(folder: Path, request: Request) -> bool:
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # missing or damaged: not known to be the same
        return False
    recipe = request.recipe
    if recipe.single:
        stored = {"": stored}
    if not isinstance(stored, dict) or set(stored) != set(recipe.stages):
        return False
    same = all(with_new_fields(stored[name], stage) == stage.plain() for name, stage in recipe.stages.items())
    return same and not all(RunFolder(folder / name).result.is_file() for name in request.recipe.stages)


def with_new_fields(stored: Any, config: Config) -> Any:
    """Return a stored configuration with those fields that did not exist when it was written, if they have defaults.

    Args:
        stored: what the file says of it.
        config: the present configuration.
    """
    if not isinstance(stored, dict):
        return stored
    filled, plain = dict(stored), config.plain()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        parts = value if isinstance(value, dict) else {}
        if name not in filled:
            if not field.is_required() and value == field.get_default(call_default_factory=True):
                filled[name] = plain[name]
        elif isinstance(value, Config):
            filled[name] = with_new_fields(filled[name], value)
        elif isinstance(filled[name], dict):
            filled[name] = {
                key: with_new_fields(part, parts[key]) if isinstance(parts.get(key), Config) else part
                for key, part in filled[name].items()
            }
    return filled


def _is_dry(request: Request) -> bool:
    """Whether a stage that is to run takes a few batches only: what it leaves is no run to go on with."""
    chosen = request.options.get("stage")
    stages = [stage for name, stage in request.recipe.stages.items() if chosen in (None, name)]
    return any(stage.trainer.get("fast_dev_run") for stage in stages)
