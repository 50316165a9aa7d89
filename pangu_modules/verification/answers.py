"""Where the answer of a completion stands: one rule, for every verifier.

1. What stands before the last mark that ends a thought (``</think>``) is not searched, and of a thought that never ends
   nothing is: `after_thinking`.
2. An answer is *stated* by ``<answer>...</answer>`` (the closing tag may be missing, as after a stop string),
   ``\\boxed{...}``, or the words "answer:" or "answer is" (or GSM8K's ``####``) and what follows them on the line, or
   else on the next line that is not empty. Of several statements the last one counts: who corrects
   himself is judged by his last word.
3. Without a statement the last line that is not empty is the answer, and it is marked as not stated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TAG = re.compile(r"<answer>", re.IGNORECASE)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
WORDS = re.compile(r"(?:\banswers?\b[\s*_`\"']{0,5}(?::|=|\bis\b|\bare\b)|####)[:\s*_]{0,5}", re.IGNORECASE)
BETWEEN_BOXES = re.compile(r"[\s$*.,]{0,10}(?:\bor\b|\band\b|,)[\s$*]{0,10}")


@dataclass(frozen=True)
class Answer:
    """What a completion gives as its answer.

    Attributes:
        text: the answer as written, without the words that introduce it.
        stated: whether the completion says that it is the answer.
    """

    text: str
    stated: bool


@dataclass(frozen=True)
class _Statement:
    start: int
    end: int
    text: str


def after_thinking(text: str, marks: Sequence[tuple[str, str]]) -> str | None:
    """Return a completion without its thoughts, or None if it ends inside one.

    Args:
        text: the completion.
        marks: pairs that begin and end a thought; the beginning may be part of the prompt, and missing here.
    """
    for begin, end in marks:
        position = text.rfind(end)
        if position >= 0:
            text = text[position + len(end) :]
        if begin in text:
            return None
    return text


def final_answer(text: str) -> Answer | None:
    """Return the answer of a completion without thoughts, or None if there is none; see the rule above."""
    statements = sorted(_statements(text), key=lambda statement: statement.start)
    if statements:
        last = statements[-1]
        return Answer(last.text, stated=True) if last.text else None
    lines = text.strip().splitlines()
    return Answer(lines[-1].strip(), stated=False) if lines else None


def _statements(text: str) -> Iterator[_Statement]:
    lowered = text.lower()
    for match in TAG.finditer(text):
        end = lowered.find("</answer>", match.end())
        end = len(text) if end < 0 else end
        yield _Statement(match.start(), end, text[match.end() : end].strip())
    yield from _boxes(text)
    for match in WORDS.finditer(text):
        rest = text[match.end() :].lstrip()
        yield _Statement(match.start(), match.end(), rest.partition("\n")[0].strip(" \t*_"))


def _boxes(text: str) -> Iterator[_Statement]:
    """Yield the boxes; two of them joined by "or", "and" or a comma are one statement, "42 or 43"."""
    previous: _Statement | None = None
    for match in BOXED.finditer(text):
        end = closing_brace(text, match.end())
        if end is None:
            continue
        box = _Statement(match.start(), end + 1, text[match.end() : end].strip())
        joint = text[previous.end : box.start] if previous is not None else ""
        if previous is not None and BETWEEN_BOXES.fullmatch(joint):
            word = " or " if "or" in joint else ", "
            box = _Statement(previous.start, box.end, f"{previous.text}{word}{box.text}")
        yield box
        previous = box


def closing_brace(text: str, start: int) -> int | None:
    """Return the position of the brace that closes the one before `start`, or None."""
    depth = 1
    for position in range(start, len(text)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    return None
