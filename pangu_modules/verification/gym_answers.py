"""The verifier "reasoning_gym": what a task's own ``score_answer`` of reasoning-gym says of the answer.

Only full marks count. ``score_answer`` gives parts of a mark to an answer that merely contains the right one, so that
"42 or 43" would be worth a quarter, and to some answers that are wrong; the part is in the reason.

Nine of its tasks evaluate the answer as Python, by ``eval`` or ``sympy.parse_expr``, which calls it. What a model wrote
must not be executed, so such an answer is parsed first, and is wrong if it is anything but numbers, names, arithmetic,
lists, and calls of the functions of arithmetic.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pangu_modules.verification.answers import Answer, final_answer
from pangu_modules.verification.candidates import candidates
from pangu_modules.verification.numerals import numeral, plain_characters
from pangu_modules.verification.scores import Score

MAX_CHARACTERS = 20_000  # of an answer; the largest puzzles have some thousands
LITERALS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Tasks that pass the answer to ``eval``, to read a list."""
FORMULAS = (
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
)
"""Tasks that pass the answer to ``sympy.parse_expr``."""
FUNCTIONS = frozenset(("Abs", "acos", "asin", "atan", "cos", "cosh", "exp", "ln", "log", "sin", "sinh", "sqrt", "tan"))
ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Name, ast.Load)


def prepare() -> None:
    """Import reasoning-gym, before any deadline runs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as error:
        raise ImportError("tasks of reasoning-gym need it: pip install 'pangu-recipes[rl]'") from error


def verify(text: str, reference: Mapping[str, Any]) -> Score:
    """Return 1 for an answer with full marks, and 0 for any other.

    Args:
        text: the completion, without thoughts.
        reference: ``task``, a name of reasoning-gym; ``arguments`` of its generator, with seed and size; ``index`` of
            the item; ``answer``, the item's own.

    Raises:
        ValueError: the installed reasoning-gym makes another item of it.
    """
    task, index = reference["task"], reference["index"]
    dataset = dataset_of(task, json.dumps(reference["arguments"], sort_keys=True))
    entry = dataset[index]
    if str(entry["answer"]) != str(reference["answer"]):
        raise ValueError(
            f"reasoning-gym makes another item {index} of {task} than when the data were written: install the version "
            "they were written with, or leave this generator out if it makes others in every process"
        )
    answer = final_answer(text)
    if answer is None:
        return Score(0.0, reason="no answer found")
    if len(answer.text) > MAX_CHARACTERS:
        return Score(0.0, reason=f"the answer has {len(answer.text)} characters, more than {MAX_CHARACTERS}")
    return _best(dataset, entry, answer, task)


def _best(dataset: Any, entry: Mapping[str, Any], answer: Answer, task: str) -> Score:
    """Return full marks if a reading of the answer has them."""
    part, refused = 0.0, False
    for reading in readings(answer, str(entry["answer"])):
        if not harmless(reading, task):
            refused = True
            continue
        mark = float(dataset.score_answer(reading, entry))
        if mark >= 1:
            return Score(1.0, reason=f"{_shown(reading)} has full marks")
        part = max(part, mark)
    if refused:
        return Score(0.0, reason=f"{_shown(answer.text)} is not only numbers and arithmetic, and was not evaluated")
    return Score(0.0, reason=f"{_shown(answer.text)} has {part:g} of a mark")


def readings(answer: Answer, right: str) -> Iterator[str]:
    """Yield an answer as written, without markup, and, where the right one is a number, the number among words."""
    yield answer.text
    bare = answer.text.strip("*`\"' ").strip()
    if bare != answer.text:
        yield bare
    if bare.endswith("."):
        yield bare.rstrip(".")
    if numeral(plain_characters(right)) is not None:
        found = candidates(answer, several=False)
        value = found[0].text.rpartition("=")[2].strip() if len(found) == 1 else ""
        if numeral(value) is not None:
            yield value


def harmless(text: str, task: str) -> bool:
    """Whether a task's ``score_answer`` may have an answer: it does not evaluate it, or that cannot call anything."""
    if task not in LITERALS + FORMULAS:
        return True
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # eval fails as well; parse_expr rewrites a text before it evaluates it, and may make something of it
        return task in LITERALS
    if task in LITERALS:
        allowed = (ast.Expression, ast.UnaryOp, ast.unaryop, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Constant)
        return all(isinstance(node, allowed) for node in nodes)
    return all(isinstance(node, ARITHMETIC) or _is_number(node) or _is_function(node) for node in nodes)


def _is_number(node: ast.AST) -> bool:
    # no text: sympy's functions evaluate a text that they are called with
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _is_function(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) and not node.keywords else None
    return isinstance(called, ast.Name) and called.id in FUNCTIONS


@lru_cache(maxsize=64)
def dataset_of(task: str, arguments: str) -> Any:
    """Return a generator of reasoning-gym.

    Args:
        task: its name.
        arguments: of its configuration, as JSON.
    """
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **json.loads(arguments))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
