"""The command line of a recipe: one parser made from the recipe object. jsonargparse stays behind this module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pangu_modules.common.config import Config
from pangu_modules.common.errors import UsageError, readable
from pangu_modules.common.masking import mask_secrets
from pangu_modules.common.names import nearest
from pangu_modules.engine.added_callbacks import check_lightning_callbacks, split_callbacks, with_added_callbacks
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.messages import short_message
from pangu_modules.engine.old_names import with_present_names
from pangu_modules.engine.parser import OWN_FIELDS, build_parser, known_options, prefixed
from pangu_modules.engine.request import COMMANDS, HELP, OPTIONS, Program, Request
from pangu_modules.engine.spec import RecipeSpec
from pangu_modules.engine.stages import BaseStage, Stage

PRINT_CONFIG = "--print_config"


def main(recipe: RecipeSpec, arguments: list[str] | None = None) -> None:
    """Parse the command line of the running script, run the command; exit with code 2 on a bad value."""
    answer(lambda: recipe, sys.argv[1:] if arguments is None else arguments, Program.of_script())


def answer(load: Callable[[], RecipeSpec], words: list[str], program: Program) -> None:
    """Do what `words` ask of a recipe; exit with code 2 and a short message on a bad value.

    Args:
        load: returns the recipe; called once the command is known, so that the bare help does not wait for its imports.
        words: the command and its options.
        program: how the recipe was started.
    """
    try:
        check_command(words)
        if words[0] in HELP:
            print(program.bare_help())
            return
        request = parse(load(), words, program)
        if request is not None:
            from pangu_modules.engine.commands import run

            run(request)
    except (UsageError, ValidationError) as error:
        message = mask_secrets(readable(error) if isinstance(error, ValidationError) else str(error))
        command = f" {words[0]}" if words and words[0] in COMMANDS else ""
        print(f"error: {message}\nSee: {program.call}{command} --help", file=sys.stderr)
        raise SystemExit(2) from None


def check_command(words: list[str]) -> None:
    """Raise a UsageError unless the first word is a command, or asks for help."""
    if not words:
        raise UsageError(f"no command given; commands: {', '.join(COMMANDS)}")
    if words[0] not in (*COMMANDS, *HELP):
        hint = nearest(words[0], COMMANDS)
        raise UsageError(f"unknown command {words[0]!r}.{hint} Commands: {', '.join(COMMANDS)}")


def parse(recipe: RecipeSpec, words: list[str], program: Program) -> Request | None:
    """Return the request, or None where printing the configuration was all that was asked.

    Args:
        recipe: the recipe as written.
        words: a command (see `check_command`) and its options.
        program: how the recipe was started.

    Raises:
        UsageError: an unknown option or stage, or a value that does not validate.
    """
    command, rest = words[0], split_callbacks(words[1:])
    recipe = with_added_callbacks(recipe, rest, _config_files(rest))
    removed = removed_callbacks(recipe, rest)
    parser = build_parser(recipe, command, removed, program)
    # jsonargparse's own --print_config (it stays in the help) prints before later words are read and drops nulls.
    values = _parse(parser, with_present_names(recipe, [word for word in rest if word != PRINT_CONFIG]))
    changed = overridden(recipe, values, removed)
    check_lightning_callbacks(changed)
    if PRINT_CONFIG in rest:
        from pangu_modules.engine.folder import to_yaml

        print(to_yaml(changed.plain()), end="")
        return None
    check_stage(recipe, values.get("stage"))
    options = {key: values[key] for key in ("stage", *map(_option_key, OPTIONS[command])) if key in values}
    return Request(command=command, recipe=changed, program=program, options=options, given=given_names(rest))


def given_names(words: list[str]) -> frozenset[str]:
    """Return the dotted names that the user has written: as options, or as keys of a ``--config`` file."""
    on_line = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    return frozenset(on_line.union(*(_dotted(content) for content in _config_files(words))))


def _dotted(content: Any, prefix: str = "") -> set[str]:
    if not isinstance(content, dict) or not content:
        return {prefix.removesuffix(".")} if prefix else set()
    return set().union(*(_dotted(value, f"{prefix}{name}.") for name, value in content.items()))


def check_stage(recipe: RecipeSpec, chosen: str | None) -> None:
    """Raise a UsageError unless the stage chosen is one of the recipe's, or none is chosen."""
    if chosen is not None and chosen not in recipe.stages:
        known = ", ".join(recipe.stages)
        raise UsageError(f"--stage: no stage {chosen!r}.{nearest(chosen, recipe.stages)} Stages: {known}")


def removed_callbacks(recipe: RecipeSpec, words: list[str]) -> set[str]:
    """Return the callbacks (with their stage's prefix) set to null on the command line or in a ``--config`` file."""
    removed = set()
    for prefix, stage in prefixed(recipe):
        for name, config in stage.callbacks.items():
            flag = f"--{prefix}callbacks.{name}"
            pairs = pairwise(words)
            on_line = f"{flag}=null" in words or any(pair == (flag, "null") for pair in pairs)
            in_file = any(_is_null(content, f"{prefix}callbacks.{name}") for content in _config_files(words))
            if config is None or on_line or in_file:
                removed.add(f"{prefix}callbacks.{name}")
    return removed


def _config_files(words: list[str]) -> list[Any]:
    """Read the ``--config`` files."""
    import yaml

    paths = [word for flag, word in pairwise(words) if flag == "--config"]
    paths += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    contents = []
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config: cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # bytes that are no text, too
            raise UsageError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            held = "nothing" if content is None else repr(content)[:40]
            raise UsageError(f"--config: {path} holds {held}, not options by name as --print_config prints them")
        if "config" in content:
            raise UsageError(f"--config: {path} names another file in 'config': give both, each with --config")
        contents.append(content)
    return contents


def _is_null(content: Any, dotted: str) -> bool:
    """Whether `content` says null for the callback: so does the ``config.yaml`` of a run without it."""
    for part in dotted.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return content is None


def _parse(parser: Any, words: list[str]) -> dict[str, Any]:
    """Parse, and rewrite the parser's errors as short messages."""
    from argparse import ArgumentError

    try:
        namespace = parser.parse_args(words)
        namespace.pop("config", None)
        values: dict[str, Any] = namespace.as_dict()
        return values
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError, OSError, RecursionError) as error:
        # The parser's own errors, and those that it does not catch: of a file with odd contents, of an odd path.
        reason = "--config: a value holds itself" if isinstance(error, RecursionError) else str(error)
        raise UsageError(short_message(reason, known_options(parser))) from error


def overridden(recipe: RecipeSpec, values: dict[str, Any], removed: set[str]) -> RecipeSpec:
    """Return the recipe with the parsed values, validated by the configurations themselves.

    Raises:
        UsageError: a value or a combination of values does not validate.
    """
    stages = {}
    for prefix, stage in prefixed(recipe):
        name = prefix.removesuffix(".")
        part = fields_of(values[name], name) if name else values
        seed = part["seed"] if values["seed"] is None else values["seed"]
        with usage_errors(name):
            stages[name] = _overridden_stage(stage, {**part, "seed": seed}, prefix, removed)
    try:
        return recipe.with_stages(stages)
    except ValueError as error:  # start_from names no earlier stage
        raise UsageError(str(error)) from error


def _overridden_stage(stage: BaseStage, values: dict[str, Any], prefix: str, removed: set[str]) -> BaseStage:
    def derived(config: Config, given: Any, where: str) -> Config:
        with usage_errors(prefix + where):
            return config.derive(**fields_of(given, prefix + where))

    changes = {part: derived(getattr(stage, part), values.get(part, {}), part) for part in stage.parts}
    changes |= {name: values[name] for name in type(stage).model_fields if name not in OWN_FIELDS}
    if not isinstance(stage, Stage):
        return stage.derive(**changes)
    # Callbacks without any field have no entry.
    callbacks = fields_of(values.get("callbacks", {}), f"{prefix}callbacks")
    return stage.derive(
        **changes,
        callbacks={
            name: None
            if config is None or f"{prefix}callbacks.{name}" in removed
            else derived(config, callbacks.get(name, {}), f"callbacks.{name}")
            for name, config in stage.callbacks.items()
        },
        trainer=_given_trainer_arguments(fields_of(values["trainer"], f"{prefix}trainer"), stage.trainer),
    )


def fields_of(given: Any, part: str) -> dict[str, Any]:
    """Return what is given for a part of the recipe, if it is fields by name; a file may hold anything in its place."""
    if not isinstance(given, dict):
        raise UsageError(f"{part}: expected its fields by name, got {given!r}; leave {part} out to keep the recipe's")
    return given


def _given_trainer_arguments(values: dict[str, Any], recipe_values: dict[str, Any]) -> dict[str, Any]:
    """Keep the Trainer's arguments that differ from its own defaults or that the recipe sets.

    The parser returns all forty: ``config.yaml`` would hold defaults that a later Lightning may change or drop.
    """
    import inspect

    from lightning.pytorch import Trainer

    signature = inspect.signature(Trainer).parameters
    return {key: value for key, value in values.items() if key in recipe_values or value != signature[key].default}


def _option_key(option: str) -> str:
    return option.removeprefix("--")
