"""Config: the frozen pydantic base of every configuration, and the link from a configuration to what it builds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from pangu_modules.common.names import nearest
from pangu_modules.common.values import check_free_value, check_value


def caller_only(instead: Any = None) -> dict[str, Any]:
    """Return ``json_schema_extra`` of a field that opens a file, asks a network or runs code.

    A checkpoint may come from anybody: what it says of such a field gives way to `instead`, see `Config.from_stored`.
    """
    return {"caller_only": True, "instead": instead}


PLAIN_NAME: dict[str, Any] = {"plain_name": True}
"""``json_schema_extra`` of a field that may name a place beside a known thing: stored data names known things alone."""

FREE_TEXT: dict[str, Any] = {"free_text": True}
"""``json_schema_extra`` of a field whose texts are no names: they may be blank, such as two line ends."""


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown fields, builds the class it is nested in.

    A class that can be configured inherits `Configurable` and nests its configuration::

        class Dense(Configurable, nn.Module):
            class Config(pangu_modules.Config):
                width: PositiveInt = Field(64, description="Output features.")

            def __init__(self, config: Config): ...

        Dense.Config(width=32).build()
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
    owner: ClassVar[type | None] = None
    measured: ClassVar[bool] = False  # whether the fields hold what a run has measured, which may be any number
    renamed: ClassVar[dict[str, str]] = {}
    """Old names of fields and their present ones, dotted where a field moved into another; stored data may hold either.

    An old name that is the first part of the present one (``method`` -> ``method.kind``) is old where its value is
    plain, no mapping.
    """

    @model_validator(mode="before")
    @classmethod
    def _take_known_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = cls.current_names(values)
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields) or "none"
                    hint = nearest(str(key), cls.model_fields)
                    raise ValueError(f"unknown field {key!r} of {cls.__qualname__}.{hint} Known fields: {known}.")
        return values

    @classmethod
    def current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mapping with renamed fields under their present names; each old one is warned of.

        Raises:
            ValueError: a field is given under its old and its present name.
        """
        current = dict(values)
        # First those whose old name the others move into.
        for old, new in sorted(cls.renamed.items(), key=lambda names: not _is_inside(*names)):
            if old not in current or (_is_inside(old, new) and isinstance(current[old], (Mapping, Config))):
                continue
            value = current.pop(old)
            _put(current, new.split("."), value, f"{cls.__qualname__}: {old!r} is the old name of {new!r}")
            warnings.warn(f"{cls.__qualname__}: field {old!r} is now {new!r}; write the new name", stacklevel=2)
        return current

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse, in every field of every configuration, what no field can mean."""
        field = cls.model_fields[str(info.field_name)]
        mark = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if _is_free(field.annotation) or "free_text" in mark:
            check_free_value(value)
        elif not cls.measured:
            check_value(value, may_be_empty=field.default == "")
        return value

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain data of a checkpoint or exported folder as far as they may count.

        What they say is computed with; which files are opened, which servers are asked and whose code runs is for the
        caller to say: fields marked `caller_only` take the value written there, those marked `PLAIN_NAME` are checked.

        Raises:
            ValueError: a field that names a known thing holds a path or an address.
        """
        kept = cls.current_names(stored)
        for name, field in cls.model_fields.items():
            mark = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            inner = _config_of(field.annotation)
            if "caller_only" in mark:
                kept[name] = mark["instead"]
            elif "plain_name" in mark and re.search(r"[/\\:]|^[.~]", str(kept.get(name, ""))):
                raise ValueError(f"{name}={kept[name]!r} is a place, and only the caller may say what is opened or run")
            elif inner is not None and isinstance(kept.get(name), Mapping):
                kept[name] = inner.from_stored(kept[name])
        return kept

    def build(self, **runtime: Any) -> Any:
        """Build the object this configuration describes.

        Args:
            **runtime: what is known only at run time (class count, tokenizer, ...), passed to the constructor.

        Raises:
            TypeError: the configuration is not nested in a `Configurable` class.
        """
        if self.owner is None:
            raise TypeError(f"{type(self).__qualname__} builds nothing: nest it as `Config` in a Configurable class")
        return self.owner(self, **runtime)

    def derive(self, **changes: Any) -> Self:
        """Return a validated copy with `changes`; a mapping given for a nested configuration changes it in turn."""
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        for name, change in self.current_names(changes).items():
            current = values.get(name)
            nested = isinstance(current, Config) and isinstance(change, Mapping)
            if isinstance(current, Config) and nested:
                with _inside(name, type(self).__qualname__):
                    change = current.derive(**change)
            values[name] = change
        return type(self).model_validate(values)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain JSON data, the form stored in checkpoints and `config.yaml`."""
        return self.model_dump(mode="json")


@contextmanager
def _inside(name: str, title: str) -> Iterator[None]:
    """Let the errors of a nested configuration name the field that holds it, too."""
    try:
        yield
    except ValidationError as error:
        problems: list[Any] = [
            {**problem, "loc": (name, *problem["loc"])} for problem in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data(title, problems) from error


def _is_free(annotation: Any) -> bool:
    """Whether a field holds another library's arguments, ``dict[str, Any]``."""
    return get_origin(annotation) is dict and get_args(annotation)[1] is Any


def _config_of(annotation: Any) -> type[Config] | None:
    """Return the configuration class of a field that holds one, or one or nothing."""
    candidates = (annotation, *get_args(annotation))
    return next((type_ for type_ in candidates if isinstance(type_, type) and issubclass(type_, Config)), None)


def _is_inside(old: str, new: str) -> bool:
    """Whether a field moved into one that has its old name."""
    return new.startswith(f"{old}.")


def _put(values: dict[str, Any], path: list[str], value: Any, what: str) -> None:
    """Put a value at a path of nested mappings, which are copied; refuse one that is there already."""
    *outer, last = path
    for name in outer:
        inner = values.get(name, {})
        if not isinstance(inner, Mapping):  # a whole configuration, which holds the field
            raise ValueError(f"{what}, and both are given: leave the old one out")
        values[name] = dict(inner)
        values = values[name]
    if last in values:
        raise ValueError(f"{what}, and both are given: leave the old one out")
    values[last] = value


class Configurable:
    """Mixin of classes built from a nested `Config`; a subclass without its own inherits a copy bound to itself."""

    Config: ClassVar[type[Config]] = Config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("Config")
        if own is None:
            names = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config"}
            own = type("Config", (cls.Config,), names)
            cls.Config = own
        if not (isinstance(own, type) and issubclass(own, Config)):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of pangu_modules.Config, got {own!r}")
        own.owner = cls
