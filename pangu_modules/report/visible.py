"""Characters that a terminal or a browser obeys instead of showing them, written so that a reader sees them."""

from __future__ import annotations

import unicodedata

# Control characters (NUL, ANSI's escape), format characters (marks that turn the direction of writing, zero widths) and
# halves of surrogate pairs, which no UTF-8 file can hold.
HIDDEN = ("Cc", "Cf", "Cs")
# Layout, and the joiners that are part of the spelling of Persian, of Indian scripts and of emoji.
KEPT = "\n\t\u200c\u200d"


def visible(text: str) -> str:
    r"""Return `text` with every character that acts instead of being seen as its escape, e.g. ``\u001b`` or ``\u202e``.

    Line ends of other systems (``\r\n``) become ``\n``; line ends, tabs and the joiners of words stay.
    """
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
