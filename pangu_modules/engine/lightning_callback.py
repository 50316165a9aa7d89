"""LightningCallback: a callback of Lightning's, or of the user's own, in a recipe as data: its class and arguments.

A recipe runs many times, with other seeds and in other processes, so it holds no living callback: what is given as an
object is described by its class and arguments, and built anew for each run.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from pangu_modules.common.config import Config
from pangu_modules.common.errors import readable
from pangu_modules.common.names import nearest


class LightningCallback(Config):
    """A subclass of ``lightning.pytorch.Callback`` by name, with its arguments: what YAML and the command line give."""

    class_path: str = Field(
        description="Importable name: lightning.pytorch.callbacks.EarlyStopping, my_file.MyCallback."
    )
    init_args: dict[str, Any] = Field({}, description="Arguments of the class, by name; plain data.")

    def build(self, **runtime: Any) -> Any:
        """Return the callback; one of ours is built from its own configuration, under the ``name`` given.

        Raises:
            ValueError: there is no such class, it is no callback of Lightning's, or it does not take the arguments.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        kind = import_callback(self.class_path)
        own_config = getattr(kind, "Config", None)
        if isinstance(own_config, type) and issubclass(own_config, Config):
            try:
                return own_config.model_validate(self.init_args).build(**runtime)
            except ValidationError as error:
                raise ValueError(f"{self.class_path}: {readable(error)}") from error
        known = inspect.signature(kind).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        for argument in self.init_args:
            if argument not in known and not takes_all:
                allowed = f"It takes {', '.join(known) or 'none'}."
                raise ValueError(f"{self.class_path} has no argument {argument!r}.{nearest(argument, known)} {allowed}")
        try:
            return kind(**self.init_args)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise ValueError(f"{self.class_path} does not take {self.init_args}: {error}") from error


def import_callback(class_path: str) -> Any:
    """Return the class of this name.

    Raises:
        ValueError: there is none, or it is no subclass of ``lightning.pytorch.Callback``.
    """
    from lightning.pytorch import Callback

    module_name, _, class_name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ImportError as error:
        raise ValueError(f"class_path={class_path!r}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        known = [name for name, value in vars(module).items() if isinstance(value, type)] if module else []
        example = "give module and class, e.g. lightning.pytorch.callbacks.EarlyStopping"
        raise ValueError(f"class_path={class_path!r}: no such class.{nearest(class_name, known)} {example}")
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ValueError(
            f"class_path={class_path!r} is no subclass of lightning.pytorch.Callback{_other_package(found)}"
        )
    return found


def as_config(value: Any) -> Any:
    """Return what a recipe holds for a callback: a mapping with a ``class_path`` and objects as `LightningCallback`.

    Anything else is returned as it is.

    Raises:
        ValueError: an object cannot be described by plain data; the message says how to write it.
    """
    if value is None or isinstance(value, Config):
        return value
    if isinstance(value, Mapping):
        return LightningCallback.model_validate(value) if "class_path" in value else value
    from lightning.pytorch import Callback

    if isinstance(value, Callback):
        config = getattr(value, "config", None)
        return config if isinstance(config, Config) and config.owner is type(value) else describe(value)
    if isinstance(value, type):
        raise ValueError(f"{value.__name__} is a class: give an object, {value.__name__}(...)")
    if hasattr(value, "on_train_batch_end"):
        raise ValueError(f"{type(value).__qualname__} is no lightning.pytorch.Callback{_other_package(type(value))}")
    return value


def describe(callback: Any) -> LightningCallback:
    """Return class and arguments of a callback, the latter read from its attributes of the same names.

    What is read is tried: a callback built from it must have equal attributes.

    Raises:
        ValueError: the class cannot be imported by name, or the arguments cannot be read back.
    """
    kind = type(callback)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if "." in kind.__qualname__:
        raise ValueError(f"{path} is defined inside a function or class: move it to the top of its file")
    arguments, unreadable = _read_arguments(callback)
    differing = _differences(path, arguments, callback) or set()
    # A number may change its sign on the way in, as EarlyStopping's min_delta does.
    numbers = [name for name, value in arguments.items() if name in differing and type(value) in (int, float)]
    for tried in (arguments, arguments | {name: -arguments[name] for name in numbers}):
        if _differences(path, tried, callback) == set():
            return LightningCallback(class_path=path, init_args=tried)
    which = f" ({', '.join(unreadable)})" if unreadable else ""
    remedy = f"LightningCallback(class_path={path!r}, init_args={{...}})"
    raise ValueError(f"{path}: its arguments{which} cannot be read back from the object; write {remedy}")


def _read_arguments(callback: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that differ from their defaults, and the names of those that cannot be read."""
    arguments, unreadable = {}, []
    for name, parameter in inspect.signature(type(callback)).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = getattr(callback, name, getattr(callback, f"_{name}", inspect.Parameter.empty))
        as_default = _alike(value, parameter.default) or (parameter.default is None and value == {})
        if value is inspect.Parameter.empty or not (_plain(value) or as_default):
            unreadable.append(name)
        elif not as_default:
            arguments[name] = list(value) if isinstance(value, tuple) else value
    return arguments, unreadable


def _differences(path: str, arguments: dict[str, Any], callback: Any) -> set[str] | None:
    """Return the attributes in which a callback built from `arguments` differs, or None if it cannot be built."""
    try:
        again = vars(LightningCallback(class_path=path, init_args=arguments).build(name="again"))
    except ValueError:
        return None
    own = vars(callback)
    return {name for name in own.keys() | again.keys() if not _alike(own.get(name), again.get(name))}


def _alike(one: Any, other: Any) -> bool:
    """Whether two attributes are equal; of what is no plain data and no tensor, only the types are compared."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if _plain(one) or _plain(other):
        return type(one) is type(other) and bool(one == other)
    return type(one) is type(other)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _other_package(kind: Any) -> str:
    if str(getattr(kind, "__module__", "")).startswith("pytorch_lightning"):
        return ": import it from lightning.pytorch in place of pytorch_lightning"
    return ""
