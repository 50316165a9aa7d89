"""What each command of a recipe does once its command line is parsed."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import check_new, write_atomically
from pangu_modules.engine.checkpoint_io import read_checkpoint
from pangu_modules.engine.data_export import export_data
from pangu_modules.engine.data_stages import DataStage
from pangu_modules.engine.earlier import recorded, with_earlier
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.evaluating import EVALUATIONS, next_file, prepared, write_results
from pangu_modules.engine.folder import RunFolder, to_yaml, versions
from pangu_modules.engine.launch import leads
from pangu_modules.engine.making import DataResult, make_data
from pangu_modules.engine.own_modules import check_predicts
from pangu_modules.engine.place import Place, taken
from pangu_modules.engine.predicting import PredictionRows, check_format, continue_prompts, write_predictions
from pangu_modules.engine.request import Request
from pangu_modules.engine.resuming import Given, check_given, resumed_stage
from pangu_modules.engine.run import StageResult, build_data, fit_stage, load_module
from pangu_modules.engine.stages import BaseStage, Stage
from pangu_modules.engine.starting import usage_errors_until_start
from pangu_modules.engine.trainer import StageRun, build_trainer
from pangu_modules.engine.writer import OWNER
from pangu_modules.training.module import load_weights

INTERRUPTED = 130  # exit code of a run that was stopped from outside


def run(request: Request) -> None:
    """Run the request's command."""
    commands: dict[str, Callable[[Request], None]] = {
        "fit": fit,
        "validate": run_loop,
        "test": run_loop,
        "predict": predict,
        "export": export,
        "evaluate": evaluate,
        "plan": plan,
    }
    commands[request.command](request)


def fit(request: Request) -> None:
    """Run the stages in order, each unless it is finished; write and print the result."""
    with taken(request) as place:
        again = f"{request.program.call} fit{' --ckpt_path last' if request.recipe.single else ''}"
        try:
            _fit(request, place)
        except SystemExit:  # how Lightning ends after SIGTERM (with code 0) and after Ctrl-C
            print(f"stopped before the end; to go on: {again}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except UsageError:
            if leads() and not place.resumes and not place.holds_work:
                shutil.rmtree(place.folder, ignore_errors=True)
            raise
        except OSError as error:
            raise _of_the_disk(error, place.folder, again) from error


def _fit(request: Request, place: Place) -> None:
    from pangu_modules.engine.summary import finish

    results: dict[str, StageResult | DataResult] = {}
    stages = dict(request.recipe.stages)  # as they run: a resumed one has its checkpoint's module

    def write_config() -> None:
        write_atomically(place.folder / "config.yaml", to_yaml(request.recipe.with_stages(stages).plain()))

    if leads() and not place.resumes:
        write_config()
    for name, stage in request.recipe.stages.items():
        kind = DataResult if isinstance(stage, DataStage) else StageResult
        finished: StageResult | DataResult | None = kind.read(RunFolder(place.folder / name))
        if finished is not None and not _runs_again(request, name, place):
            results[name] = finished
        elif request.options.get("stage") in (None, name):
            started = with_earlier(stage, request.recipe.stages, place)
            if isinstance(started, DataStage):
                results[name] = _made(started, name, place, write_config)
                continue
            assert isinstance(started, Stage)
            ckpt_path = _resumed_from(request, name, place)
            if ckpt_path is not None:
                given = Given(request.given, f"{name}." if name else "")
                started = resumed_stage(started, ckpt_path, given)
                stages[name] = recorded(started, stage)
            _announce(name, f"resumes from {ckpt_path}" if ckpt_path else "starts")
            results[name] = fit_stage(started, place.folder / name, ckpt_path=ckpt_path, begin=write_config)
    if leads():
        finish(replace(request, recipe=request.recipe.with_stages(stages)), place.folder, results)


def _made(stage: DataStage, name: str, place: Place, write_config: Callable[[], None]) -> DataResult:
    begun = (place.folder / name / stage.artefact).is_dir()
    _announce(name, "goes on" if begun else "starts")
    try:
        return make_data(stage, place.folder / name, begin=write_config)
    except KeyboardInterrupt:  # Lightning's way of ending a training
        raise SystemExit(INTERRUPTED) from None


def _announce(name: str, what: str) -> None:
    if name:
        print(f"stage {name}: {what}", flush=True)


def _runs_again(request: Request, name: str, place: Place) -> bool:
    """Whether a finished stage runs once more: one that was chosen, or a run that the user resumes to train longer."""
    return request.options.get("stage") == name or (request.recipe.single and place.resumes)


def _resumed_from(request: Request, name: str, place: Place) -> Path | None:
    """Return the checkpoint that a stage goes on from: the one given, or the last of a run that was interrupted."""
    given = request.options.get("ckpt_path")
    if given not in (None, "last"):
        return Path(given)
    if place.earlier is None:
        return None
    earlier = RunFolder(place.earlier / name)
    wanted = given or (place.resumes and not earlier.result.is_file())
    return earlier.last if wanted and earlier.last.is_file() else None


def _of_the_disk(error: OSError, folder: Path, again: str) -> Exception:
    """Return the error as a sentence if the disk or the run's folder is at fault, else unchanged."""
    if not (folder / OWNER).is_file():
        return UsageError(f"{folder} was removed or renamed while the run wrote there; nothing more can be kept of it")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UsageError(f"{folder}: {error.strerror}; its last checkpoint is whole: free space, then: {again}")
    ours = error.filename is not None and folder.resolve() in Path(str(error.filename)).resolve().parents
    if ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"{error.filename}: {error.strerror}; allow writing there, then: {again}")
    return error


def _chosen(request: Request) -> tuple[str, BaseStage]:
    """Return the stage that a command is about: of a pipeline the last, or --stage."""
    name = request.options.get("stage") or list(request.recipe.stages)[-1]
    if name not in request.recipe.stages:
        raise UsageError(f"--stage: no stage {name!r}; stages: {', '.join(request.recipe.stages)}")
    return name, request.recipe.stages[name]


def _checkpoint(request: Request) -> tuple[Stage, Path, RunFolder]:
    """Return the stage (of a pipeline the last, or --stage), its checkpoint, and the folder the outputs go to."""
    given = request.options["ckpt_path"]
    name, stage = _chosen(request)
    if not isinstance(stage, Stage):
        training = ", ".join(name for name, one in request.recipe.stages.items() if isinstance(one, Stage))
        instead = f"; choose one that does with --stage: {training}" if training else "; its data: export"
        kind = getattr(stage, "kind", "")
        raise UsageError(f"{request.command}: a stage of kind {kind} makes data and has no checkpoint{instead}")
    if given in ("last", "best"):
        recipe = request.program.name
        existing = versions(recipe)
        if not existing:
            raise UsageError(f"--ckpt_path {given}: there is no run of {recipe}; run fit first, or give a path")
        folder = RunFolder(existing[-1] / name)
        path = folder.checkpoints / f"{given}.ckpt"
    else:
        path = Path(given)
        folder = RunFolder.of_checkpoint(path)
    if not path.is_file():
        raise UsageError(f"--ckpt_path: no checkpoint {path}")
    return stage, path, folder


def _module_of(request: Request, stage: Stage, path: Path) -> Any:
    """Build the module of a checkpoint, unless the user wants of it what cannot change."""
    name = next(name for name, candidate in request.recipe.stages.items() if candidate is stage)
    check_given(stage, path, Given(request.given, f"{name}." if name else ""))
    return load_module(stage, path)


def _new_output(request: Request, default: Path) -> Path:
    """Return the place to write to; it is looked at before the work, and nothing that is there is overwritten."""
    try:
        return check_new(request.options.get("output") or default, "--output")
    except OSError as error:
        raise UsageError(str(error)) from error


def _load_weights(module: Any, path: Path) -> None:
    with usage_errors("ckpt_path"):
        load_weights(module, read_checkpoint(path)["state_dict"], source=str(path))


def run_loop(request: Request) -> None:
    """Evaluate a checkpoint on the validation or test set and print the metrics as a table."""
    stage, path, folder = _checkpoint(request)
    module = _module_of(request, stage, path)
    data = build_data(stage)
    trainer = build_trainer(stage.derive(trainer={"logger": False}), StageRun(folder), module)
    loop = trainer.validate if request.command == "validate" else trainer.test
    with usage_errors_until_start(trainer, data):
        loop(module, datamodule=data, ckpt_path=path, weights_only=True)


def predict(request: Request) -> None:
    """Write a checkpoint's predictions of the data to a new file, or print its continuations of the prompts given."""
    stage, path, folder = _checkpoint(request)
    given, prompts = request.options.get("output"), request.options.get("prompt")
    output = check_format(Path(given or folder.path / "predictions.pt"))
    if given or not prompts:  # without --output, continuations are printed alone
        output = _new_output(request, output)
    module = _module_of(request, stage, path)
    if prompts:
        _load_weights(module, path)
        rows = continue_prompts(module, prompts)
        print("\n".join(f"{row['prompt']}{row['text']}" for row in rows))
        if given:
            with usage_errors("output"):
                write_predictions(output, [rows], [rows])
            print(f"predictions: {output}")
        return
    check_predicts(module)
    data = build_data(stage)
    trainer = build_trainer(stage.derive(trainer={"logger": False}), StageRun(folder), module)
    collected, own_rows = PredictionRows(), hasattr(module, "prediction_rows")
    if own_rows or output.suffix != ".pt":
        trainer.callbacks.append(collected)  # type: ignore[attr-defined]
    with usage_errors_until_start(trainer, data):
        batches = trainer.predict(module, datamodule=data, ckpt_path=path, weights_only=True)
    with usage_errors("output"):
        write_predictions(output, collected.rows if own_rows else batches or [], collected.rows)
    print(f"predictions: {output}")


def export(request: Request) -> None:
    """Write a checkpoint in one of the module's export formats, or the data that a stage made, to a new folder."""
    name, chosen_stage = _chosen(request)
    if isinstance(chosen_stage, DataStage):
        export_data(request, name, chosen_stage)
        return
    if request.options.get("min_reward") is not None:
        raise UsageError("--min_reward: chooses rows of a stage that makes data; leave it out for a checkpoint")
    stage, path, folder = _checkpoint(request)
    owner: Any = stage.module.owner
    formats = getattr(owner, "export_formats", ())
    kind = request.options.get("format") or (formats[0] if formats else "")
    if kind not in formats:
        offered = ", ".join(formats) or "none"
        raise UsageError(f"--format: unknown format {kind!r}; {owner.__name__} offers: {offered}")
    given = {name: request.options.get(name) for name in ("dtype", "layout")}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in owner.export_options:
            raise UsageError(f"--{name}: exports of {owner.__name__} have no such choice; leave it out")
    output = _new_output(request, folder.path / "export" / kind)
    module = _module_of(request, stage, path)
    _load_weights(module, path)
    with usage_errors("export"):
        module.eval().export(output, kind, **chosen)
    print(f"export ({kind}): {output}")


def evaluate(request: Request) -> None:
    """Run tasks on a language model's checkpoint; print their results, and write them beside it and into its report."""
    stage, path, folder = _checkpoint(request)
    evaluation = prepared(stage.module.owner, request.options)
    output = _new_output(request, next_file(folder.path / EVALUATIONS))
    module = _module_of(request, stage, path)
    _load_weights(module, path)
    with usage_errors("evaluate"):
        results = evaluation(module)
    step = read_checkpoint(path)["global_step"]
    write_results({"checkpoint": str(path), "global_step": step, **results}, output, folder.path)


def plan(request: Request) -> None:
    """Print sizes and costs, as a table or one JSON object."""
    from pangu_modules.engine.plan_tables import print_plan, print_throughput
    from pangu_modules.engine.planning import plan_recipe, throughput_rows

    figures = plan_recipe(request.recipe)
    hardware, layout = request.options.get("hardware"), request.options.get("layout")
    if hardware:
        figures["throughput"] = throughput_rows(request.recipe, hardware, layout or "auto")
    elif layout:
        raise UsageError("--layout: give the card too, with --hardware")
    if request.options.get("json"):
        print(json.dumps(figures))
        return
    print_plan(figures, request.program.title)
    if hardware:
        print_throughput(figures["throughput"], hardware)
