"""Parquet files and folders as sources: the same conversations as from JSON lines, and damaged ones named."""

import json

import pyarrow
import pytest
from pyarrow import parquet
from tiny_llm import byte_tokenizer

from datamodules.text.chat import ChatData
from datamodules.text.reading import located_rows, read_texts

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
OTHER = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [OTHER]}]},
]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def texts(source, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path / "tokenizer"))
    tokenizer.chat_template = TEMPLATE
    shares = {"val_share": 0.0, "test_share": 0.0, "calibration_share": 0.0, "overlap_ngram": 0}
    data = ChatData.Config(source=str(source), **shares).build(tokenizer=tokenizer)
    data.prepare_data()
    data.setup()
    return [tokenizer.decode(sample["input_ids"]) for sample in data.train_dataset.samples]


def test_a_file_and_a_folder_hold_what_json_lines_hold(tmp_path, monkeypatch):
    """Catches calls with null arguments: a table gives every call the arguments of all the others."""
    lines = tmp_path / "chat.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wanted = texts(lines, tmp_path)
    assert texts(write(tmp_path / "chat.parquet", ROWS), tmp_path) == wanted
    assert "null" not in "".join(wanted)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "folder" / "data" / "train-00000-of-00001.parquet", ROWS)
    write(tmp_path / "folder" / "data" / "test-00000-of-00001.parquet", ROWS[:1])  # another split: not trained on
    (tmp_path / "folder" / "README.md").write_text("A set of conversations.\n")
    assert texts(tmp_path / "folder", tmp_path) == wanted


def test_texts_of_a_table(tmp_path):
    path = write(tmp_path / "texts.parquet", [{"text": "one"}, {"text": None}, {"text": "two"}])
    with pytest.warns(UserWarning, match="1 of 3 rows hold no text"):
        assert read_texts(str(path), "text") == ["one", "two"]


def test_damaged_files_and_mixed_folders_are_named(tmp_path, monkeypatch):
    path = write(tmp_path / "folder" / "chat.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"chat\.parquet is no whole Parquet file"):
        list(located_rows(str(path), "text"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="the folder's split 'train' cannot be read"):
        list(located_rows(str(path.parent), "text"))
    (path.parent / "more.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"holds tables \(chat\.parquet\) and texts \(more\.jsonl\)"):
        list(located_rows(str(path.parent), "text"))
    with pytest.raises(FileNotFoundError, match=r"missing\.parquet.*nothing there"):
        list(located_rows("missing.parquet", "text"))
