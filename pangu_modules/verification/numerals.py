"""Numerals as people and models write them, read exactly: 1,234 and 1 234, 0.5, .5, 1/2, \\frac12, 1 1/2, 1e3, 50%."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 400  # powers of ten that are written out; larger ones are left to the parser of formulas
DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\ | )\d{3})+(?!\d)|\d+)"
UNSIGNED = rf"(?:{DIGITS}(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{{1,4}})?"
INTEGER = r"\d{1,30}"
FRACTION = (
    rf"\\[dt]?frac\s*\{{\s*(?P<a>-?{INTEGER})\s*\}}\s*\{{\s*(?P<b>{INTEGER})\s*\}}"
    rf"|\\[dt]?frac\s*(?P<c>\d)\s*(?P<d>\d)|(?P<e>{INTEGER})\s*/\s*(?P<f>{INTEGER})"
)
NUMERAL = re.compile(
    rf"(?:(?P<sign>[+-])\s*)?(?:(?:(?P<whole>{INTEGER})\s*)??(?:{FRACTION})|(?P<plain>{UNSIGNED}))\s*(?P<percent>\\?%)?"
)
INSIDE_A_WORD = re.compile(r"(?:[^\W\d]|\w[._])$")
A_VALUE = re.compile(r"(?:[\d)}]|\b[a-z])\s*$")  # before a minus: it takes away, and is no sign
SYMBOLS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{FRACTION SLASH}": "/",  # NFKC makes it of one half and its like
        "\N{DIVISION SIGN}": "/",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{DOT OPERATOR}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{UNION}": r"\cup ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{SUPERSCRIPT TWO}": "^{2}",
        "\N{SUPERSCRIPT THREE}": "^{3}",
        "\N{MASCULINE ORDINAL INDICATOR}": "°",
        "\N{VULGAR FRACTION ONE HALF}": " 1/2",
        "\N{VULGAR FRACTION ONE THIRD}": " 1/3",
        "\N{VULGAR FRACTION TWO THIRDS}": " 2/3",
        "\N{VULGAR FRACTION ONE QUARTER}": " 1/4",
        "\N{VULGAR FRACTION THREE QUARTERS}": " 3/4",
    }
)


@dataclass(frozen=True)
class Numeral:
    """A rational number as it was written.

    Attributes:
        value: the number; a percentage counts hundredths.
        percent: whether it was written with a per cent sign.
        decimal: whether it was written with digits and a point alone, and says its value exactly.
    """

    value: Fraction
    percent: bool
    decimal: bool


def plain_characters(text: str) -> str:
    """Return a text with digits of all scripts as 0 to 9, and signs outside ASCII as LaTeX or ASCII writes them."""
    text = unicodedata.normalize("NFKC", text.translate(SYMBOLS)).translate(SYMBOLS)
    return "".join(str(unicodedata.decimal(each)) if each.isdecimal() else each for each in text)


def numeral(text: str) -> Numeral | None:
    """Return the number that a text is, all of it, or None if it is anything else."""
    match = NUMERAL.fullmatch(text.strip())
    return None if match is None else _of(match)


def numerals(text: str) -> list[str]:
    """Return the numerals inside a text, as they are written; digits inside a word (XDY2K) are none."""
    found = []
    for match in NUMERAL.finditer(text):
        before = text[: match.start()]
        if match["sign"] is None and INSIDE_A_WORD.search(before):
            continue
        if _of(match) is not None:
            difference = match["sign"] is not None and A_VALUE.search(before)
            found.append(match[0].lstrip("+- ").strip() if difference else match[0].strip())
    return found


def _of(match: re.Match[str]) -> Numeral | None:
    if match["plain"] is not None:
        digits = re.sub(r",|\{,\}|\\,|\\ | ", "", match["plain"])
        exponent = re.search(r"[eE]([+-]?\d+)$", digits)
        if exponent is not None and abs(int(exponent[1])) > MAX_EXPONENT:
            return None
        value = Fraction(digits.rstrip(".") if exponent is None else digits)
    else:
        above = int(match["a"] or match["c"] or match["e"])
        below = int(match["b"] or match["d"] or match["f"])
        if below == 0:
            return None
        value = Fraction(above, below)
        if match["whole"] is not None:
            value = int(match["whole"]) + value
    percent = match["percent"] is not None
    value = (-value if match["sign"] == "-" else value) * (Fraction(1, 100) if percent else 1)
    return Numeral(value, percent, decimal=match["plain"] is not None)
