"""Types of configuration fields in words."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from benchmarks.pages.words import field_types


class Outer:
    class Config(BaseModel):
        pass


class Example(BaseModel):
    share: float = Field(0.1, ge=0, lt=0.95)
    count: int = Field(1, gt=0, le=8)
    limit: int | None = Field(None, ge=0)
    kind: Literal["a", "b", "c"] = "a"
    auto: bool | Literal["auto"] = "auto"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field((1,), min_length=1)
    names: list[str] = []
    pair: tuple[int, float] = (1, 2.0)
    sizes: dict[str, int] = {}
    inner: Outer.Config = Outer.Config()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("share", "number at least 0, below 0.95"),
        ("count", "integer above 0, at most 8"),
        ("limit", "integer at least 0, or None"),
        ("kind", '"a", "b" or "c"'),
        ("auto", 'yes or no, or "auto"'),
        ("widths", "list of (integer above 0), not empty"),
        ("names", "list of text"),
        ("pair", "list of (integer; number)"),
        ("sizes", "mapping of names to integer"),
        ("inner", "Outer.Config"),
    ],
)
def test_types_in_words(field, words):
    assert field_types(Example)[field] == words
