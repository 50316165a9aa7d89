"""The parser of a recipe's command line: an option for every field of every part of every stage."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.lightning_callback import LightningCallback
from pangu_modules.engine.request import OPTIONS, Program
from pangu_modules.engine.spec import RecipeSpec
from pangu_modules.engine.stages import BaseStage, Stage

OWN_FIELDS = ("module", "data", "engine", "callbacks", "trainer")  # the other fields of a stage become plain options


def build_parser(recipe: RecipeSpec, command: str, removed: set[str], program: Program) -> Any:
    """Build the parser of a command: a group per stage and part, defaults from the recipe."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(
        prog=f"{program.call} {command}",
        usage="%(prog)s [options]",  # the generated one lists every option a second time
        description=program.title,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of overrides; may be given repeatedly.")
    for option, keywords in OPTIONS[command].items():
        parser.add_argument(option, **keywords)
    if not recipe.single:
        parser.add_argument("--stage", type=str, help=f"Run one stage: {', '.join(recipe.stages)}.")
        parser.add_argument("--seed", type=NonNegativeInt, help="Seed of all stages, instead of their own.")
    for prefix, stage in prefixed(recipe):
        _add_stage(parser, prefix, stage, removed)
    return parser


def _add_stage(parser: Any, prefix: str, stage: BaseStage, removed: set[str]) -> None:
    from lightning.pytorch import Trainer

    for part in stage.parts:
        parser.add_class_arguments(type(getattr(stage, part)), f"{prefix}{part}", fail_untyped=False)
    for name, config in stage.callbacks.items():
        dotted = f"{prefix}callbacks.{name}"
        if config is None or dotted in removed:
            parser.add_argument(f"--{dotted}", type=str, help="Removed (null).")
        elif isinstance(config, LightningCallback):
            # Not as a class: the parser reserves `class_path` for subclasses of a class it knows.
            for field, info in LightningCallback.model_fields.items():
                parser.add_argument(f"--{dotted}.{field}", type=info.annotation, help=info.description)
        else:
            parser.add_class_arguments(type(config), dotted, fail_untyped=False)
    if isinstance(stage, Stage):
        parser.add_class_arguments(Trainer, f"{prefix}trainer", skip={"callbacks"}, fail_untyped=False)
    for name, info in type(stage).model_fields.items():
        if name not in OWN_FIELDS:
            parser.add_argument(f"--{prefix}{name}", type=info.annotation, help=info.description)
    _set_defaults(parser, prefix, stage, removed)


def _set_defaults(parser: Any, prefix: str, stage: BaseStage, removed: set[str]) -> None:
    plain = stage.plain()
    defaults = {f"{prefix}{part}.{key}": value for part in stage.parts for key, value in plain[part].items()}
    for name, config in plain.get("callbacks", {}).items():
        if config is not None and f"{prefix}callbacks.{name}" not in removed:
            defaults |= {f"{prefix}callbacks.{name}.{key}": value for key, value in config.items()}
    defaults |= {f"{prefix}trainer.{key}": value for key, value in stage.trainer.items()}
    defaults |= {f"{prefix}{key}": plain[key] for key in plain if key not in OWN_FIELDS}
    try:
        parser.set_defaults(defaults)
    except Exception as error:
        raise UsageError(f"the recipe's own values do not fit: {error}") from error


def known_options(parser: Any) -> list[str]:
    """Return every option string of the parser."""
    return [option for action in parser._actions for option in action.option_strings]


def prefixed(recipe: RecipeSpec) -> list[tuple[str, BaseStage]]:
    """Return the stages with the prefix of their options: the stage's name and a dot, or nothing."""
    return [(f"{name}." if name else "", stage) for name, stage in recipe.stages.items()]
