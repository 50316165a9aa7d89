"""The verifier "math": is the answer of a completion the number, expression, set or interval of the reference?

Which part of a completion is its answer is decided in `answers`, and `candidates` strips what is not mathematics from
it: words around, units, "x =". Numbers are compared exactly (`numerals`); everything else by math-verify, of which only
the LaTeX parser is used: a grammar that builds sympy objects. Its other road gives text to `sympy.parse_expr`, which
evaluates it as Python, and is never taken.

Call it through `routing.Verification`: a formula may keep sympy busy for ever, so it belongs into a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pangu_modules.verification.answers import Answer, final_answer
from pangu_modules.verification.candidates import Candidate, candidates, is_words
from pangu_modules.verification.numerals import Numeral, numeral
from pangu_modules.verification.scores import Score

MAX_CHARACTERS = 1000  # of an answer; a longer one is no answer
DECIMALS = 6  # to which a decimal must agree with a fraction that has no end, as math-verify rounds


def prepare() -> None:
    """Import math-verify and sympy, before any deadline runs.

    Raises:
        ImportError: math-verify is not installed.
    """
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ImportError("the verifier 'math' needs math-verify: pip install 'pangu-recipes[rl]'") from error


def verify(text: str, reference: Mapping[str, Any]) -> Score:
    """Return 1 for a right answer and 0 for a wrong one.

    Args:
        text: the completion, without thoughts.
        reference: ``answer``, the right one, as text.

    Raises:
        ValueError: math-verify cannot read the reference.
    """
    answer = final_answer(text)
    if answer is None:
        return Score(0.0, reason="no answer found")
    if len(answer.text) > MAX_CHARACTERS:
        return Score(0.0, reason=f"the answer has {len(answer.text)} characters, more than {MAX_CHARACTERS}")
    right = str(reference["answer"])
    shown = answer.text if len(answer.text) <= 60 else f"{answer.text[:60]}..."
    given = candidates(answer, several=" or " in right)
    if not given:
        return Score(0.0, reason=f"no single value in {shown!r}")
    wanted = reference_of(right)
    if all(equal(candidate, wanted) for candidate in given):
        return Score(1.0, reason=f"{shown!r} equals {right!r}")
    return Score(0.0, reason=f"{shown!r} is not {right!r}" if len(given) == 1 else f"{shown!r} names several values")


def equal(given: Candidate, wanted: Candidate) -> bool:
    """Whether an answer is the wanted one; a unit counts where both name one."""
    if given.unit and wanted.unit and given.unit != wanted.unit:
        return False
    if given.text == wanted.text:
        return True
    if is_words(wanted.text):
        return given.text.casefold() == wanted.text.casefold()
    numbers = numeral(given.text), numeral(wanted.text)
    if numbers[0] is not None and numbers[1] is not None:
        return equal_numbers(numbers[0], numbers[1])
    return equal_formulas(given.text, wanted.text)


def equal_numbers(given: Numeral, wanted: Numeral) -> bool:
    """Whether two numbers are equal; exactly, unless one is a fraction that no decimal says in full."""
    if given.value == wanted.value:
        return True
    if given.percent != wanted.percent and (given.value * wanted.value).denominator in (1, 100):
        # 9 per cent and 9: the sign is left out or added, as a unit would be; whole numbers alone, or 0.5 % were 1/2
        factors = [100 if each.percent else 1 for each in (given, wanted)]
        whole = [each.value * factor for each, factor in zip((given, wanted), factors, strict=True)]
        return whole[0] == whole[1] and whole[0].denominator == 1
    if given.decimal != wanted.decimal:
        return round(given.value, DECIMALS) == round(wanted.value, DECIMALS)
    return False


def equal_formulas(given: str, wanted: str) -> bool:
    """Whether math-verify finds two formulas equal; what it cannot read equals nothing."""
    from math_verify import verify as equal_in_math_verify

    parsed = parse(given)
    return bool(parsed) and bool(equal_in_math_verify(list(parse(wanted)), list(parsed), timeout_seconds=None))


@lru_cache(maxsize=64)
def reference_of(right: str) -> Candidate:
    """Return a reference as a candidate.

    Raises:
        ValueError: it cannot be read.
    """
    stated = final_answer(right)
    text = stated.text if stated is not None and stated.stated else right  # of GSM8K: the solution, and then #### 42
    found = candidates(Answer(text, stated=True), several=True)
    if len(found) != 1 or not (is_words(found[0].text) or numeral(found[0].text) or parse(found[0].text)):
        raise ValueError(f"the reference answer {right!r} is no single value, expression, set or word")
    return found[0]


@lru_cache(maxsize=64)
def parse(formula: str) -> tuple[Any, ...]:
    """Return what math-verify reads in a formula, at most one sympy object."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_in_math_verify

    found = parse_in_math_verify(
        f"${formula}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return tuple(found)
