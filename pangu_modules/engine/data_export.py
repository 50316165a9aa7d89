"""The `export` command for a stage that makes data."""

from __future__ import annotations

from pangu_modules.common import registry
from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import check_new
from pangu_modules.engine.data_stages import DataStage
from pangu_modules.engine.folder import RunFolder, versions
from pangu_modules.engine.making import usage_errors_of_making
from pangu_modules.engine.request import Request


def export_data(request: Request, name: str, stage: DataStage) -> None:
    """Write what the newest run's stage `name` has made to a new Parquet folder with a data card.

    Raises:
        UsageError: there is no such run, it is unfinished, or an option does not go with data.
    """
    for option in ("dtype", "layout"):
        if request.options.get(option) is not None:
            raise UsageError(f"--{option}: a stage of kind {stage.kind} makes data, no weights; leave it out")
    given = request.options["ckpt_path"]
    if given != "last":
        raise UsageError(f"--ckpt_path {given}: a stage of kind {stage.kind} has no checkpoint; leave it out")
    runs = versions(request.program.name)
    if not runs:
        raise UsageError(f"export: there is no run of {request.program.name}; run fit first")
    folder = RunFolder(runs[-1] / name)
    if folder.read_result() is None:
        raise UsageError(f"export: {folder.path} is unfinished; end it with fit first, it goes on where it stopped")
    output = request.options.get("output") or folder.path / "export" / (request.options.get("format") or stage.artefact)
    chosen = {key: request.options.get(key) for key in ("format", "min_reward")}
    with usage_errors_of_making():
        try:
            target = check_new(output, "--output")
        except OSError as error:
            raise UsageError(str(error)) from error
        write = registry.load("data export", stage.kind)
        rows = write(folder.path / stage.artefact, target, **{k: v for k, v in chosen.items() if v is not None})
    print(f"export ({rows} rows): {target}")
