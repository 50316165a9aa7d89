"""Callbacks that the command line or a ``--config`` file adds to a recipe: ``class_path`` under a new name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

from pydantic import ValidationError

from pangu_modules.common.errors import UsageError, readable
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.lightning_callback import LightningCallback
from pangu_modules.engine.spec import RecipeSpec

NAMED = re.compile(r"--(?:[^.=]+\.)?callbacks\.[^.=]+")  # the option of a whole callback, with or without a stage


def split_callbacks(words: list[str]) -> list[str]:
    """Return the options with ``--callbacks.x '{class_path: ..., init_args: ...}'`` as one option for each field."""
    split: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not NAMED.fullmatch(option):
            split.append(word)
            continue
        given = [] if equals else list(islice(rest, 1))
        content = _mapping(value if equals else "".join(given))
        if content is None:
            split += [word, *given]
        for field, inner in (content or {}).items():
            split += [f"{option}.{field}", inner if isinstance(inner, str) else json.dumps(inner)]
    return split


def _mapping(text: str) -> dict[str, Any] | None:
    """Return what the text holds, if that is a mapping with a ``class_path``."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:  # the parser says what is wrong with it
        return None
    return content if _has_class(content) else None


def with_added_callbacks(recipe: RecipeSpec, words: list[str], contents: Iterable[Any]) -> RecipeSpec:
    """Return the recipe with the callbacks that are given by ``class_path``: new ones, and in place of others.

    The parser is then built with options for them; it reads their values itself.

    Args:
        recipe: the recipe as written.
        words: the options of a command line.
        contents: what its ``--config`` files hold.
    """
    contents = list(contents)
    stages = dict(recipe.stages)
    for stage_name in recipe.stages:
        prefix = f"{stage_name}." if stage_name else ""
        asked = [*_in_files(contents, stage_name), *_on_line(words, f"--{prefix}callbacks.")]
        for name, class_path in asked:
            current = stages[stage_name].callbacks.get(name)
            if not (isinstance(current, LightningCallback) and current.class_path == class_path):
                added = _added(f"{prefix}callbacks.{name}", class_path)
                stages[stage_name] = stages[stage_name].derive(callbacks={name: added})
    return recipe.with_stages(stages)


def check_lightning_callbacks(recipe: RecipeSpec) -> None:
    """Refuse what cannot be built, before the first stage trains.

    Raises:
        UsageError: a class is unknown or does not take its arguments, or Lightning cannot tell two states apart.
    """
    for stage_name, stage in recipe.stages.items():
        prefix = f"{stage_name}." if stage_name else ""
        seen: dict[str, str] = {}
        for name, config in stage.active_callbacks.items():
            if not isinstance(config, LightningCallback):
                continue
            with usage_errors(f"{prefix}callbacks.{name}"):
                key = config.build(name=name).state_key
            if key in seen:
                raise UsageError(
                    f"{prefix}callbacks.{name}: Lightning keeps its state under {key!r}, as that of "
                    f"{prefix}callbacks.{seen[key]}: remove one of them, or give it other arguments"
                )
            seen[key] = name


def _added(dotted: str, class_path: Any) -> LightningCallback:
    try:
        return LightningCallback(class_path=class_path)
    except ValidationError as error:
        raise UsageError(readable(error, dotted)) from error


def _in_files(contents: Iterable[Any], stage_name: str) -> Iterator[tuple[str, Any]]:
    for content in contents:
        of_stage = content.get(stage_name) if stage_name and isinstance(content, dict) else content
        callbacks = of_stage.get("callbacks") if isinstance(of_stage, dict) else None
        if isinstance(callbacks, dict):
            yield from ((str(name), value["class_path"]) for name, value in callbacks.items() if _has_class(value))


def _on_line(words: list[str], start: str) -> Iterator[tuple[str, Any]]:
    """Yield name and class of each ``--callbacks.x.class_path``."""
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        name, _, field = option.removeprefix(start).rpartition(".")
        if option.startswith(start) and field == "class_path":
            yield name, value if equals else following


def _has_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value
