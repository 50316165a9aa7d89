"""``--config`` files with the old names of fields: read here, and passed on to the parser under the present ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_modules.common.config import Config
from pangu_modules.engine.spec import RecipeSpec
from pangu_modules.engine.stages import BaseStage

FLAG = "--config"


def with_present_names(recipe: RecipeSpec, words: list[str]) -> list[str]:
    """Return the words of a command line with each ``--config`` file that holds an old name replaced by its content."""
    changed = list(words)
    for position, word in enumerate(words):
        if word.startswith(f"{FLAG}="):
            changed[position] = f"{FLAG}={_present(recipe, word.removeprefix(f'{FLAG}='))}"
        elif position and words[position - 1] == FLAG:
            changed[position] = _present(recipe, word)
    return changed


def _present(recipe: RecipeSpec, path: str) -> str:
    """Return the path of a file without old names, or the content with present names, as YAML."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):  # the parser says what is wrong with the file
        return path
    if not isinstance(content, dict):
        return path
    present = dict(content)
    for name, stage in recipe.stages.items():
        part = content.get(name) if name else content
        if isinstance(part, dict):
            own = _stage(stage, part)
            present = {**present, name: own} if name else own
    return path if present == content else str(yaml.safe_dump(present, sort_keys=False))


def _stage(stage: BaseStage, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's content with present names in its parts and callbacks."""
    changed = dict(content)
    for part in stage.parts:
        if isinstance(changed.get(part), dict):
            changed[part] = _renamed(type(getattr(stage, part)), changed[part])
    if isinstance(changed.get("callbacks"), dict):
        changed["callbacks"] = {
            name: _renamed(type(stage.callbacks.get(name)), values) for name, values in changed["callbacks"].items()
        }
    return changed


def _renamed(config: type, values: Any) -> Any:
    if not (isinstance(values, dict) and issubclass(config, Config)):
        return values
    present = config.current_names(values)
    for name, field in config.model_fields.items():
        if name in present and isinstance(field.annotation, type):
            present[name] = _renamed(field.annotation, present[name])
    return present
