"""A configuration field's type in words, from pydantic's JSON schema: ``number at least 0, below 0.95``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
NAMES = {"null": "None", "boolean": "yes or no", "string": "text"}
Schema = Mapping[str, Any]


def field_types(config: type[BaseModel]) -> dict[str, str]:
    """Return each field of a configuration class with its type in words."""
    schema = config.model_json_schema(by_alias=False)
    types = {name: type_words(field) for name, field in schema["properties"].items()}
    for name, field in config.model_fields.items():  # the schema calls every nested class by its last name alone
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            types[name] = field.annotation.__qualname__
    return types


def type_words(schema: Schema) -> str:
    """Return what a JSON schema allows, in words."""
    if "anyOf" in schema:
        choices = [type_words(each) for each in schema["anyOf"]]
        return (", or " if any(" " in choice for choice in choices) else " or ").join(choices)
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        *first, last = (json.dumps(value) for value in schema["enum"])
        return f"{', '.join(first)} or {last}" if first else last
    bounds = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([_kind(schema), ", ".join(bounds)]).strip()


def _kind(schema: Schema) -> str:
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return _list(schema)
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of names to {type_words(values)}" if isinstance(values, Mapping) else "mapping"
    return NAMES.get(kind, kind)


def _list(schema: Schema) -> str:
    entries = [type_words(each) for each in schema.get("prefixItems", [schema.get("items", {})])]
    text = "; ".join(entries)
    text = f"list of ({text})" if " " in text else f"list of {text}"
    return f"{text}, not empty" if schema.get("minItems") == 1 else text
