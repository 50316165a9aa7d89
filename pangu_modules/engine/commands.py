"""What each command of a recipe does once its command line is parsed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pangu_modules.common.errors import UsageError, usage_errors
from pangu_modules.common.files import atomic_file, write_atomically
from pangu_modules.common.names import nearest
from pangu_modules.engine.folder import RunFolder, new_version, to_yaml, versions
from pangu_modules.engine.request import Request
from pangu_modules.engine.run import StageResult, build_data, build_trainer, fit_stage, load_module
from pangu_modules.engine.spec import Stage
from pangu_modules.engine.starting import usage_errors_until_start

INTERRUPTED = 130  # exit code of a run that was stopped from outside


def run(request: Request) -> None:
    """Run the request's command."""
    commands: dict[str, Callable[[Request], None]] = {
        "fit": fit,
        "validate": evaluate,
        "test": evaluate,
        "predict": predict,
        "export": export,
        "plan": plan,
    }
    commands[request.command](request)


def fit(request: Request) -> None:
    """Run the stages in order, each unless it is finished; write and print the result."""
    from pangu_modules.engine.summary import finish

    folder, resume = _run_folder(request)
    write_atomically(folder / "config.yaml", to_yaml(request.recipe.plain()))
    try:
        results = _fit_stages(request, folder, resume)
    except SystemExit:  # how Lightning ends after SIGTERM (with code 0) and after Ctrl-C
        again = "fit --ckpt_path last" if request.recipe.single else "fit"
        print(f"stopped before the end; to go on: {request.program.call} {again}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except UsageError:
        if not resume and not list(folder.rglob("*.ckpt")):  # nothing was trained
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        finish(request, folder, results)


def _fit_stages(request: Request, folder: Path, resume: bool) -> dict[str, StageResult]:
    """Run what is left: all unfinished stages, or the one chosen; a run resumed by the user goes on in any case."""
    chosen = request.options.get("stage")
    wanted = chosen or ("" if request.recipe.single and resume else None)
    results: dict[str, StageResult] = {}
    for name, stage in request.recipe.stages.items():
        stage_folder = RunFolder(folder / name)
        finished = StageResult.read(stage_folder)
        if finished is not None and wanted != name:
            results[name] = finished
        elif chosen in (None, name):
            results[name] = _fit_one(request, name, _started(stage, folder), stage_folder, resume)
    return results


def _fit_one(request: Request, name: str, stage: Stage, folder: RunFolder, resume: bool) -> StageResult:
    given = request.options.get("ckpt_path")
    ckpt_path = None
    if given not in (None, "last"):
        ckpt_path = Path(given)
    elif resume and folder.last.is_file() and (given or not folder.result.is_file()):
        ckpt_path = folder.last
    if name:
        print(f"stage {name}: {'resumes from ' + str(ckpt_path) if ckpt_path else 'starts'}", flush=True)
    return fit_stage(stage, folder.path, ckpt_path=ckpt_path)


def _run_folder(request: Request) -> tuple[Path, bool]:
    """Return the run's folder and whether it continues an earlier run.

    ``--ckpt_path last`` continues the newest run; a pipeline whose newest run is unfinished and has this very
    configuration is continued without asking; a single stage of a pipeline runs inside the newest run.
    """
    recipe = request.program.name
    existing = versions(recipe)
    given = request.options.get("ckpt_path")
    if given == "last":
        if not existing:
            raise UsageError(f"--ckpt_path last: there is no run of {recipe} to resume; start with fit alone")
        if request.recipe.single and not RunFolder(existing[-1]).last.is_file():
            raise UsageError(f"--ckpt_path last: {RunFolder(existing[-1]).last} does not exist; start with fit alone")
        return existing[-1], True
    if given is not None and not Path(given).is_file():
        raise UsageError(f"--ckpt_path: no file {given!r}; give a checkpoint's path, or 'last'")
    chosen = request.options.get("stage")
    if chosen is not None and chosen not in request.recipe.stages:
        known = ", ".join(request.recipe.stages)
        raise UsageError(f"--stage: no stage {chosen!r}.{nearest(chosen, request.recipe.stages)} Stages: {known}")
    if existing and not request.recipe.single and (chosen or _unfinished(existing[-1], request)):
        return existing[-1], True
    return new_version(recipe), False


def _unfinished(folder: Path, request: Request) -> bool:
    config = folder / "config.yaml"
    same = config.is_file() and config.read_text(encoding="utf-8") == to_yaml(request.recipe.plain())
    return same and not all(RunFolder(folder / name).result.is_file() for name in request.recipe.stages)


def _started(stage: Stage, folder: Path) -> Stage:
    """Return the stage with the checkpoint of the stage it starts from."""
    if stage.start_from is None:
        return stage
    checkpoint = RunFolder(folder / stage.start_from).last
    if not checkpoint.is_file():
        raise UsageError(f"start_from: stage {stage.start_from!r} has no checkpoint {checkpoint}; run it first")
    return stage.derive(module={"init_checkpoint": str(checkpoint)})


def _checkpoint(request: Request) -> tuple[Stage, Path, RunFolder]:
    """Return the stage (of a pipeline the last, or --stage), its checkpoint, and the folder the outputs go to."""
    given = request.options["ckpt_path"]
    name = request.options.get("stage") or list(request.recipe.stages)[-1]
    if name not in request.recipe.stages:
        raise UsageError(f"--stage: no stage {name!r}; stages: {', '.join(request.recipe.stages)}")
    stage = request.recipe.stages[name]
    if given in ("last", "best"):
        recipe = request.program.name
        existing = versions(recipe)
        if not existing:
            raise UsageError(f"--ckpt_path {given}: there is no run of {recipe}; run fit first, or give a path")
        folder = RunFolder(existing[-1] / name)
        path = folder.checkpoints / f"{given}.ckpt"
    else:
        path = Path(given)
        folder = RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path.parent)
    if not path.is_file():
        raise UsageError(f"--ckpt_path: no checkpoint {path}")
    return stage, path, folder


def _rebuilt(request: Request) -> tuple[Stage, Path, RunFolder, Any]:
    stage, path, folder = _checkpoint(request)
    return stage, path, folder, load_module(stage, path)


def evaluate(request: Request) -> None:
    """Evaluate a checkpoint on the validation or test set and print the metrics as a table."""
    stage, path, folder, module = _rebuilt(request)
    data = build_data(stage)
    trainer = build_trainer(stage.derive(trainer={"logger": False}), folder, module)
    run_loop = trainer.validate if request.command == "validate" else trainer.test
    with usage_errors_until_start(trainer, data):
        run_loop(module, datamodule=data, ckpt_path=path, weights_only=True)


def predict(request: Request) -> None:
    """Write a checkpoint's predictions, a list with one entry per batch, to a file."""
    stage, path, folder, module = _rebuilt(request)
    data = build_data(stage)
    trainer = build_trainer(stage.derive(trainer={"logger": False}), folder, module)
    with usage_errors_until_start(trainer, data):
        predictions = trainer.predict(module, datamodule=data, ckpt_path=path, weights_only=True)
    output = Path(request.options.get("output") or folder.path / "predictions.pt")
    with atomic_file(output) as temporary:
        torch.save(predictions, temporary)
    print(f"predictions: {output}")


def export(request: Request) -> None:
    """Write a checkpoint in one of the module's export formats."""
    _, path, folder, module = _rebuilt(request)
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    formats = module.export_formats
    kind = request.options.get("format") or (formats[0] if formats else "")
    if kind not in formats:
        offered = ", ".join(formats) or "none"
        raise UsageError(f"--format: unknown format {kind!r}; {type(module).__name__} offers: {offered}")
    given = {name: request.options.get(name) for name in ("dtype", "layout")}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in module.export_options:
            raise UsageError(f"--{name}: exports of {type(module).__name__} have no such choice; leave it out")
    output = Path(request.options.get("output") or folder.path / "export" / kind)
    with usage_errors("export"):
        module.eval().export(output, kind, **chosen)
    print(f"export ({kind}): {output}")


def plan(request: Request) -> None:
    """Print sizes and costs, as a table or one JSON object."""
    from pangu_modules.engine.planning import plan_recipe, plan_rows, throughput_rows

    figures = plan_recipe(request.recipe)
    hardware, layout = request.options.get("hardware"), request.options.get("layout")
    if hardware:
        figures["throughput"] = throughput_rows(request.recipe, hardware, layout or "auto")
    elif layout:
        raise UsageError("--layout: give the card too, with --hardware")
    if request.options.get("json"):
        print(json.dumps(figures))
        return
    from pangu_modules.report.run_report import terminal_table

    terminal_table(plan_rows(figures), title=request.program.title)
    if hardware:
        headings = {key: key.replace("_", " ") for key in figures["throughput"][0]}
        terminal_table(figures["throughput"], headings, title=f"Upper estimate of tokens/s per card: {hardware}")
