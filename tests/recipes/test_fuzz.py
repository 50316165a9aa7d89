"""Odd command lines of every recipe: one line of error and exit code 2, or a configuration that can be meant.

No recipe trains here: lines end in ``--print_config``, or in a `plan` of a tiny recipe.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_llm import TINY_LLAMA

from datamodules import DigitsData, TextData
from pangu_modules import CausalLM, ImageClassifier, Recipe
from pangu_modules.common.values import LARGEST
from pangu_modules.engine import cli
from pangu_modules.engine.catalogue import catalogue
from pangu_modules.engine.request import Program

NAMES = [entry.name for entry in catalogue(Path(__file__).parents[2] / "recipes")]
PROGRAM = Program(name="x", call="python x.py", title="A recipe.")
TINY = {
    "text": Recipe(
        module=CausalLM.Config(architecture="llama", model_args=TINY_LLAMA),
        data=TextData.Config(),
        trainer={"accelerator": "cpu"},
    ),
    "images": Recipe(
        module=ImageClassifier.Config(
            backbone="vit_tiny_patch16_224",
            model_args={"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2},
        ),
        data=DigitsData.Config(),
        trainer={"accelerator": "cpu"},
    ),
}
ODD = (
    *("inf", "-inf", "nan", "1e30", "1e400", "-1", "0", "-0.0", "1.5", "2", "0x10", "1_000", "1" * 30, "-" + "1" * 30),
    *("", " ", "null", "None", "true", "x", "smollm", "python_topic", "../../x", "~", "ü☃", "a" * 400, "\0", "@x"),
    *("[]", "[1]", "[-1, -1]", "[.nan, 0.9]", "{}", "{a: 1}", "{a: {b: [1]}}", "{'': 1}", "[", "{", "}", "'", "%"),
    *("*a", "&a", "&a [*a]", "!!python/object/apply:os.system [x]", "- ", ": ", "? ", "https://me:secret@host/v1", "="),
    *("{class_path: os.system, init_args: {command: x}}", "{kind: lora}", "18446744073709551616", "2026-01-01", "--"),
)
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(ODD),
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
EXAMPLES = [30, pytest.param(300, marks=pytest.mark.slow)]
QUICK = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def one_parser_for_all_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a parser takes longer than all the rest, so equal ones are built once."""
    monkeypatch.chdir(tmp_path)
    build, built = cli.build_parser, {}

    def remembered(recipe: Recipe, command: str, removed: set[str], program: Program) -> Any:
        key = (id(recipe), command, frozenset(removed))
        if key not in built:
            built[key] = build(recipe, command, removed, program)
        return built[key]

    monkeypatch.setattr(cli, "build_parser", remembered)


@functools.cache
def load(name: str) -> Recipe:
    """Return a recipe, or one stage of it: ``name/stage``."""
    name, slash, stage = name.partition("/")
    recipe: Recipe = TINY[name] if name in TINY else importlib.import_module(f"recipes.{name}").recipe
    return recipe.stage(stage) if slash else recipe


@functools.cache
def options(name: str) -> tuple[str, ...]:
    known = cli.known_options(cli.build_parser(load(name), "fit", set(), PROGRAM))
    asking = ("--help", "--print_config", "--config")
    return tuple(flag for flag in known if flag[:2] == "--" and flag not in asking and not flag.endswith(".help"))


def answered(name: str, words: list[str]) -> str | None:
    """Return what a line prints; None where it is refused, and then in one line with exit code 2."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.answer(lambda: load(name), words, PROGRAM)
        except SystemExit as error:
            code = error.code
    if code == 0:
        return out.getvalue()
    said = err.getvalue()
    assert code == 2, words
    assert said.startswith("error: "), (words, said)
    assert "secret@" not in said, words
    assert said.count("\n") <= 2 + 3 * len(words), (words, said)  # a line for each wrong field, and where to read on
    return None


def odd_values(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for key, value in content.items():
            if not str(key).strip():
                yield key
            yield from odd_values(value)
    elif isinstance(content, list):
        for value in content:
            yield from odd_values(value)
    elif isinstance(content, str):
        yield from [content] if "secret@" in content else []
    elif isinstance(content, int | float) and not abs(content) <= (LARGEST if isinstance(content, int) else 1e30):
        yield content


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_refused_or_can_be_meant(name: str, examples: int) -> None:
    """Of a pipeline its last stage alone, whose parser is quicker; the files below are those of whole pipelines."""
    name = f"{name}/{list(load(name).stages)[-1]}"
    pairs = st.tuples(st.sampled_from(options(name)), VALUES, st.booleans())

    @settings(max_examples=examples, **QUICK)
    @given(st.lists(pairs, min_size=1, max_size=3))
    def check(given_pairs: list[tuple[str, str, bool]]) -> None:
        words = ["fit"]
        for flag, value, joined in given_pairs:
            words += [f"{flag}={value}"] if joined else [flag, value]
        printed = answered(name, [*words, "--print_config"])
        if printed is not None:
            assert not list(odd_values(yaml.safe_load(printed))), words

    check()


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", ["scalenet_digits", "drafter_smollm2", "dwm_text"])
def test_a_file_is_refused_or_can_be_meant(name: str, examples: int) -> None:
    """Any part of a file, at any depth, may be anything that YAML can say."""
    parts = st.sampled_from([flag.removeprefix("--") for flag in options(name)])
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(ODD))
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(ODD), inner, max_size=2)
    )

    @settings(max_examples=examples, **QUICK)
    @given(parts, st.integers(1, 4), values)
    def check(dotted: str, depth: int, value: Any) -> None:
        content = value
        for part in reversed(dotted.split(".")[:depth]):
            content = {part: content}
        Path("odd.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        printed = answered(name, ["fit", "--config", "odd.yaml", "--print_config"])
        if printed is not None:
            assert not list(odd_values(yaml.safe_load(printed))), content

    check()


@pytest.mark.parametrize("content", [*ODD, "trainer: 3", "module: null", "callbacks: []", "1: 2", "config: x", "\t"])
def test_a_file_may_hold_anything(content: str) -> None:
    Path("odd.yaml").write_text(content, encoding="utf-8")
    assert answered("scalenet_deit_t", ["fit", "--config", "odd.yaml", "--print_config"]) in (None, answered_plain())


def answered_plain() -> str | None:
    return answered("scalenet_deit_t", ["fit", "--print_config"])


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", TINY)
def test_a_plan_is_refused_or_made(name: str, examples: int) -> None:
    flags = [flag for flag in options(name) if flag.startswith("--module.")]
    fields = TINY[name].stages[""].module.model_args
    flags += [f"--module.model_args.{field}" for field in fields] * 2

    @settings(max_examples=examples, **QUICK)
    @given(st.sampled_from(flags), st.sampled_from(ODD))
    def check(flag: str, value: str) -> None:
        answered(name, ["plan", "--json", f"{flag}={value}"])

    check()
