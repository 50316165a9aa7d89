"""Texts of known quality: what a mixture of domains is made of, from running text and a random generator.

Each corruption takes a text and gives one of about its length, so that a mixture's shares are those of its domains.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.text.files import read_text
from datamodules.text.reading import read_texts
from datamodules.text.rows import OnBad

PYTHON_CODE = "python_code"
SECTION = 4000

Corruption = Literal[
    "none", "shuffled_words", "shuffled_tokens", "boilerplate", "cipher", "random_characters", "records"
]

BOILERPLATE = (
    "All rights reserved.",
    "Click here to subscribe to our newsletter.",
    "By using this site you agree to the terms of service and to the privacy policy.",
    "This page was last updated automatically and may not reflect recent changes.",
    "Share this article with your friends.",
    "We use cookies to give you the best experience on our website.",
    "Sign in to leave a comment.",
    "For more information please contact the customer service.",
)
NAMES = ("Ada", "Boris", "Chen", "Dana", "Emil", "Farah", "Goran", "Hana", "Ivan", "Jun", "Kofi", "Lena")
ITEMS = ("bolts", "cables", "chairs", "lamps", "pumps", "sensors", "tiles", "valves")
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


def domain_texts(source: str, field: str, on_bad_row: OnBad = "error") -> list[str]:
    """Return the documents of a source: ``"python_code"``, or what `datamodules.text.reading.read_texts` knows.

    A source that is one long text becomes its `sections`, since splits are made of whole documents.

    ``"python_code"`` is the source text of the standard library's single-file modules, about 4.5 MB.

    Raises:
        FileNotFoundError: the source is not there.
    """
    if source != PYTHON_CODE:
        texts = read_texts(source, field, on_bad_row)
        return sections(texts[0]) if len(texts) == 1 else texts
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    if not files:
        raise FileNotFoundError(f"source={source!r}: this Python carries no source text; name a folder of your own")
    return [text for file in files if (text := read_text(file)).strip()]


def sections(text: str, characters: int = SECTION) -> list[str]:
    """Return a text cut at line ends into pieces of at least so many characters (the last one may be shorter)."""
    pieces, lines, length = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        length += len(line)
        if length >= characters:
            pieces.append("".join(lines))
            lines, length = [], 0
    return [*pieces, "".join(lines)] if lines else pieces


def corrupt(text: str, corruption: Corruption, generator: np.random.Generator) -> str:
    """Return `text` corrupted as named; ``"none"`` returns it as it is.

    - ``shuffled_words``: the text's own words in random order;
    - ``shuffled_tokens``: unchanged here; `shuffled_tokens` mixes the tokens of each window later;
    - ``boilerplate``: eight fixed sentences of web pages, in random order;
    - ``cipher``: an invented language: every letter exchanged for a fixed other one, vowels for vowels;
    - ``random_characters``: base64 of random bytes, in lines of 76;
    - ``records``: sentences of one form with random names and numbers, an easy text that is no noise.

    Args:
        text: what is corrupted; boilerplate, random characters and records take its length alone.
        corruption: what is done.
        generator: of what is random.
    """
    return CORRUPTIONS[corruption](text, generator)


def shuffled_tokens(windows: Tensor, generator: np.random.Generator) -> Tensor:
    """Return windows (n, tokens), the tokens of each in random order."""
    order = torch.from_numpy(generator.random(tuple(windows.shape))).argsort(dim=1)
    return windows.gather(1, order)


def _shuffled_words(text: str, generator: np.random.Generator) -> str:
    return " ".join(generator.permutation(np.array(text.split(), dtype=object)))


def _boilerplate(text: str, generator: np.random.Generator) -> str:
    return _filled(lambda: BOILERPLATE[generator.integers(len(BOILERPLATE))], len(text))


def _records(text: str, generator: np.random.Generator) -> str:
    def record() -> str:
        name, item = NAMES[generator.integers(len(NAMES))], ITEMS[generator.integers(len(ITEMS))]
        number, count, day = generator.integers((10000, 2, 1), (100000, 1000, 29)).tolist()
        return f"Order {number} of {name}: {count} {item}, due on day {day}."

    return _filled(record, len(text))


def _random_characters(text: str, generator: np.random.Generator) -> str:
    encoded = base64.b64encode(generator.bytes(-(-len(text) * 3 // 4))).decode()[: len(text)]
    return "\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))


def _cipher(text: str, generator: np.random.Generator) -> str:
    return text.translate(_alphabet())


def _alphabet() -> dict[int, str]:
    """Return the cipher: each vowel becomes the next one, each consonant the eighth after it, in upper case too."""
    letters = VOWELS + CONSONANTS
    exchanged = VOWELS[1:] + VOWELS[:1] + CONSONANTS[8:] + CONSONANTS[:8]
    pairs = [*zip(letters, exchanged, strict=True), *zip(letters.upper(), exchanged.upper(), strict=True)]
    return {ord(old): new for old, new in pairs}


def _filled(sentence: Callable[[], str], length: int) -> str:
    """Return sentences up to a number of characters, the last one whole."""
    parts: list[str] = []
    written = 0
    while written < length:
        parts.append(sentence())
        written += len(parts[-1]) + 1
    return " ".join(parts)


CORRUPTIONS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "none": lambda text, generator: text,
    "shuffled_words": _shuffled_words,
    "shuffled_tokens": lambda text, generator: text,
    "boilerplate": _boilerplate,
    "cipher": _cipher,
    "random_characters": _random_characters,
    "records": _records,
}
