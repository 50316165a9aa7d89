import json

import pytest
from datasets import Dataset

from datamodules.text.reading import read_texts
from datamodules.text.rows import BadRows, row_text, shown


@pytest.mark.parametrize(("value", "text"), [("a", "a"), ("None", "None"), (None, ""), (float("nan"), ""), ("", "")])
def test_null_is_no_text(value, text):
    assert row_text({"text": value}, "text", "row 0") == text


@pytest.mark.parametrize(
    ("value", "kind"),
    [(5, "a number: 5"), (0.5, "a number: 0.5"), (True, "a bool: True"), ([], r"a list: \[\]"),
     (["a"], r"a list: \['a'\]"), ({"en": "a"}, "an object: {'en': 'a'}"), ("\ud800", "half of a surrogate pair")],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_row(value, kind):
    with pytest.raises(ValueError, match=rf"^a\.jsonl, line 3: 'text' holds .*{kind}"):
        row_text({"text": value}, "text", "a.jsonl, line 3")


def test_long_values_are_cut_in_messages():
    assert shown("x" * 100) == "a text: '" + "x" * 39 + "..."


def test_null_rows_are_left_out_and_counted(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}, {"text": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match=r"a\.jsonl: 2 of 4 rows hold no text in 'text'"):
        assert read_texts(str(tmp_path / "a.jsonl"), "text") == ["one", "two"]
    Dataset.from_dict({"text": ["one", None]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.warns(UserWarning, match="1 of 2 rows hold no text"):
        assert read_texts(str(tmp_path / "saved"), "text") == ["one"]


def test_bad_rows_stop_or_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": 3}\n{"text": }\n{"body": "y"}\n[1]\n{"text": "z"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: 'text' holds no text but a number: 3.*\(on_bad_row=skip"):
        read_texts(str(path), "text")
    with pytest.warns(UserWarning, match=r"4 of 6 rows left out \(on_bad_row=skip\); the first: .*line 2: 'text'"):
        assert read_texts(str(path), "text", "skip") == ["x", "z"]


def test_nothing_is_said_where_nothing_is_left_out(recwarn):
    BadRows("skip").report("a.jsonl", 4)
    assert not recwarn.list


def test_json_lists_hidden_files_and_splits(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"}]')
    assert read_texts(str(tmp_path / "a.json"), "text") == ["x", "y"]
    (tmp_path / "a.json").write_text('{"text": "x"}')
    with pytest.raises(ValueError, match=r"a\.json holds no list of rows but an object"):
        read_texts(str(tmp_path / "a.json"), "text")
    (tmp_path / "b.txt").write_text("seen")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "b-checkpoint.txt").write_text("seen")
    (tmp_path / "._b.txt").write_bytes(b"\x00\x05")
    assert read_texts(str(tmp_path), "text") == ["seen"]
