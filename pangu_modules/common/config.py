"""Config: the frozen pydantic base of every configuration, and the link from a configuration to what it builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from pangu_modules.common.names import nearest


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

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields) or "none"
                    hint = nearest(str(key), cls.model_fields)
                    raise ValueError(f"unknown field {key!r} of {cls.__qualname__}.{hint} Known fields: {known}.")
        return values

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
        for name, change in changes.items():
            current = values.get(name)
            nested = isinstance(current, Config) and isinstance(change, Mapping)
            values[name] = current.derive(**change) if isinstance(current, Config) and nested else change
        return type(self).model_validate(values)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain JSON data, the form stored in checkpoints and `config.yaml`."""
        return self.model_dump(mode="json")


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
