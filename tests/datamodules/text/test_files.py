import codecs
import gzip

import pytest

from datamodules.text.files import read_text, text_lines
from datamodules.text.reading import read_texts

TEXT = "a café\nis \u2028 open\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
    ],
    ids=["plain", "utf-8 mark", "utf-16 mark", "big-endian mark", "utf-32 mark", "windows line ends"],
)
def test_marks_and_line_ends_are_no_text(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_text(path) == TEXT
    assert list(text_lines(path)) == ["a café\n", "is \u2028 open\n"]
    (tmp_path / "b.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "x"}\n')
    assert read_texts(str(tmp_path), "text") == [TEXT, "x"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a café\n".encode("latin-1"), r"b\.jsonl, line 1 is not UTF-8 \(byte 0xe9 at column 6\): convert .*iconv"),
        (b"x\n\xff\n", r"b\.jsonl, line 2 is not UTF-8 \(byte 0xff at column 1\)"),
        ("xy".encode("utf-16-le"), r"b\.jsonl, line 1 holds a NUL character: .*UTF-16 without a byte-order mark"),
        (codecs.BOM_UTF16_LE + b"x", r"b\.jsonl is marked as UTF-16 but is damaged"),
        (gzip.compress(b"x"), r"b\.jsonl is compressed with gzip: unpack it"),
    ],
    ids=["latin-1", "second line", "nul", "cut off", "gzip"],
)
def test_what_is_no_text_is_named(tmp_path, data, message):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(text_lines(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match=r"b\.jsonl"):  # also in a folder of many files
        read_texts(str(tmp_path), "text")
