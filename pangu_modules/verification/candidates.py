"""From an answer as a model writes it to the value that is compared: without words around, units, "x =", markup."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pangu_modules.verification.answers import Answer, closing_brace
from pangu_modules.verification.numerals import numeral, numerals, plain_characters

CORRECTION = re.compile(
    r"(?:^|[\s,.;:(-])(?:no|wait|sorry|actually|rather|correction|i mean|i meant)\b[\s,.:;!]*", re.IGNORECASE
)
ALTERNATIVE = re.compile(r"(?:\s|\$|\}|^)(?:or|\\text\s*\{\s*or\s*\}|\\lor|\\vee)(?=\s|\$|\\|$)", re.IGNORECASE)
EXPLANATION = re.compile(
    r"(?:(?<=[\w)}\]$%])[.;!?](?:\s|$)"  # the end of a sentence
    r"|,?\s(?:because|since|which|where|so that|as (?=\w))"
    r"|\s\((?=[a-z]{2,}|\d+\s*[-+*/=])).*",
    re.IGNORECASE | re.DOTALL,
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\d])\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
INTRODUCTION = re.compile(
    r"^.*\b(?:is|are|equals|equal to|be|gives|get|becomes|approximately|about)\b[\s:]*", re.IGNORECASE
)
EQUALS = re.compile(r"(?<![<>!\\=])=(?!=)|\\approx|≈")
WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|boxed|displaystyle|left|right|quad|,|;|!|:)\b\s*")
WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{2,}")
FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "sqrt sin cos tan cot sec csc log ln exp pi arcsin arccos arctan sinh cosh tanh frac oo inf "
        "matrix pmatrix bmatrix vmatrix array cases",
    )
)
"""Words that are part of formulas."""
QUOTES = "\"'\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
UNITS = {
    name: short
    for short, names in {
        "km": "km kilometer kilometers kilometre kilometres",
        "m": "m meter meters metre metres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "mile": "mile miles mi",
        "ft": "ft foot feet",
        "in": "in inch inches",
        "kg": "kg kilogram kilograms",
        "g": "g gram grams",
        "lb": "lb lbs pound pounds",
        "s": "s sec second seconds",
        "min": "min minute minutes",
        "h": "h hr hour hours",
        "day": "day days",
        "l": "l liter liters litre litres",
        "ml": "ml milliliter milliliters millilitre millilitres",
        "$": "$ dollar dollars usd",
        "cent": "cent cents",
        "deg": "° degree degrees deg",
        "rad": "rad radian radians",
    }.items()
    for name in names.split()
}
"""Known units by their spellings: where answer and reference name different ones, the answer is wrong."""


@dataclass(frozen=True)
class Candidate:
    """A value to compare: its text, and the short name of a known unit, or an empty string."""

    text: str
    unit: str = ""


def candidates(answer: Answer, several: bool) -> list[Candidate]:
    """Return the values that an answer names: one, or one for each side of an "or"; none if it names no single value.

    Args:
        answer: as found in the completion.
        several: whether the reference itself is of several values ("x = 1 or x = 2"): then they are one set.
    """
    text = CORRECTION.split(_clean(plain_characters(answer.text)))
    last = next((part for part in reversed(text) if part.strip()), "")
    parts = [part for part in ALTERNATIVE.split(last) if part.strip(" ,$}")]
    found = [_candidate(part, answer.stated) for part in parts]
    values = [each for each in found if each is not None]
    if len(values) < len(found):
        return []
    if several and len(values) > 1:
        return [Candidate(f"\\{{{', '.join(value.text for value in values)}\\}}")]
    return values


def is_words(text: str) -> bool:
    """Whether a text is words and no formula: then it is compared letter by letter."""
    words = WORD.findall(text)
    return bool(words) and not re.search(r"[\d\\=+*/^_{}()\[\]|<>]", text) and not FUNCTIONS.issuperset(words)


def _candidate(text: str, stated: bool) -> Candidate | None:
    text = _unwrapped(text)
    if (found := _value(text)) is not None:
        return found
    formulas = [next(group for group in match.groups() if group) for match in FORMULA.finditer(text)]
    if formulas and (len(formulas) == 1 or not stated):
        return _value(_unwrapped(formulas[-1])) or Candidate(_unwrapped(formulas[-1]))
    text = _unwrapped(EXPLANATION.sub("", text))
    for shorter in (text, EQUALS.split(text)[-1], INTRODUCTION.sub("", text)):
        if (found := _value(_unwrapped(shorter))) is not None:
            return found
    return _only_number(text, stated)


def _value(text: str) -> Candidate | None:
    """Return a text that is a value with nothing around it but a unit and "x =", or None."""
    text = re.sub(r"^\\?\$\s*(?=[\d.-])", "", dollars := text)
    money = "$" if text != dollars else ""
    if numeral(text) is not None:
        return Candidate(text.strip(), money)
    match = re.fullmatch(r"(.*[\d)}])\s*(?:\^\s*\{?\s*)?(°|\\circ|\\degree|[A-Za-z]+\.?)\s*\}?(?:\^\{?\d\}?)?", text)
    if match is not None and numeral(match[1].rstrip("^{ ")) is not None:
        unit = match[2].replace("\\circ", "°").replace("\\degree", "°").rstrip(".")
        spaced = text[len(match[1])] == " "  # 42 m is a length, and 2m a product
        if len(unit) > 1 or (unit in UNITS and (spaced or not unit.isalpha())):
            return Candidate(match[1].rstrip("^{ ").strip(), UNITS.get(unit.lower(), ""))
    if set(WORD.findall(text)) - FUNCTIONS:
        return Candidate(text) if is_words(text) else None
    return Candidate(_as_latex(text)) if text else None


def _only_number(text: str, stated: bool) -> Candidate | None:
    """Return the number among words: the only one, or in an answer that is not stated the last one."""
    found = numerals(text)
    distinct = {numeral(each) for each in found}
    if not found or (len(distinct) > 1 and (stated or re.search(r"\b(?:between|either)\b", text, re.IGNORECASE))):
        return None
    after = text[text.rfind(found[-1]) + len(found[-1]) :]
    unit = re.match(r"\s*(°|[A-Za-z]+)", after)
    return Candidate(found[-1], UNITS.get(unit[1].lower(), "") if unit else "")


def _clean(text: str) -> str:
    return re.sub(r"(?<![\w)}])\*\*|\*\*(?![\w({\\])|__|`|</?[a-z]+>", "", text).strip()


def _unwrapped(text: str) -> str:
    """Return a text without the markup and the punctuation that stands around all of it."""
    while True:
        shorter = text.strip().strip(QUOTES).rstrip(".,;:!? ").strip()
        match = FORMULA.fullmatch(shorter)
        if match is not None:
            shorter = next(group for group in match.groups() if group)
        shorter = _without_wrappers(shorter)
        if shorter == text:
            return text
        text = shorter


def _without_wrappers(text: str) -> str:
    r"""Take \text{...} and its like off, leaving what is inside, and spaces of LaTeX."""
    while (match := WRAPPER.search(text)) is not None:
        start, end = match.span()
        if text[end : end + 1] == "{" and (close := closing_brace(text, end + 1)) is not None:
            text = f"{text[:start]} {text[end + 1 : close]} {text[close + 1 :]}"
        else:
            text = text[:start] + text[end:]
    return text.strip()


def _as_latex(text: str) -> str:
    """Return a formula in the spellings that a LaTeX grammar reads."""
    text = re.sub(r"\*\*\s*(-?\w+|\()", lambda power: "^" + (power[1] if power[1] == "(" else f"{{{power[1]}}}"), text)
    return re.sub(r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])", r"\\\1", text)
