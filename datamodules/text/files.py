"""Reading text files: UTF-8, or UTF-16 and UTF-32 with a byte-order mark; every error names file and line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GZIP = b"\x1f\x8b"


def read_text(path: Path) -> str:
    """Return a file's text without its byte-order mark, line ends as ``\\n``; errors as for `text_lines`."""
    return "".join(text_lines(path))


def text_lines(path: Path) -> Iterator[str]:
    """Yield a file's lines with their ends as ``\\n``, without its byte-order mark.

    Raises:
        ValueError: the file is neither UTF-8 nor marked as UTF-16 or UTF-32, or it holds NUL characters.
    """
    encoding = encoding_of(path)
    with path.open(encoding=encoding) as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise ValueError(
                        f"{path}, line {number} holds a NUL character: the file is damaged, or UTF-16 without a "
                        "byte-order mark; write it anew as UTF-8"
                    )
                yield line
        except UnicodeError as error:  # also UTF-16 that ends within a character
            raise ValueError(_not_text(path, encoding)) from error


def encoding_of(path: Path) -> str:
    """Return the encoding that a file's byte-order mark names, or UTF-8."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(GZIP):
        raise ValueError(f"{path} is compressed with gzip: unpack it (gunzip {path.name})")
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), "utf-8")


def _not_text(path: Path, encoding: str) -> str:
    """Say which line is no text; it is searched only now, since decoding in blocks does not know it."""
    if encoding.startswith("utf-8"):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = f"0x{line[error.start]:02x}"
                    return (
                        f"{path}, line {number} is not UTF-8 (byte {byte} at column {error.start + 1}): convert the "
                        f"file, e.g. iconv -f LATIN1 -t UTF-8 {path.name}"
                    )
    return f"{path} is marked as {encoding[:6].upper()} but is damaged: write it anew as UTF-8"
