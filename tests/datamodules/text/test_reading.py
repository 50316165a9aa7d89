import json

import pytest
from datasets import Dataset, DatasetDict

from datamodules.text.reading import download, read_rows, read_texts


def test_files_and_folders_are_read_in_a_fixed_order(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n\n{"text": " "}\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt").write_text("third")
    (tmp_path / "notes.md").write_text("not read")
    assert read_texts(str(tmp_path), "text") == ["first", "second", "third"]
    assert read_texts(str(tmp_path / "b.txt"), "text") == ["second"]


def test_rows_keep_all_their_fields(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "x"}], "id": 3}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_rows(str(tmp_path / "chat.jsonl"), "messages") == rows


def test_datasets_saved_to_a_folder(tmp_path):
    Dataset.from_dict({"body": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    assert read_texts(str(tmp_path / "saved"), "body") == ["one", "two"]
    DatasetDict({"train": Dataset.from_dict({"body": ["three"]})}).save_to_disk(str(tmp_path / "splits"))
    assert read_texts(str(tmp_path / "splits"), "body") == ["three"]
    with pytest.raises(ValueError, match=r"row 0 of .* has no field 'text', only: body"):
        read_texts(str(tmp_path / "saved"), "text")


def test_topics_of_python_are_documents():
    texts = read_texts("python_topics", "text")
    assert len(texts) > 50
    assert sum(map(len, texts)) > 300_000
    download("python_topics")  # nothing to do, and no network


def test_missing_files_are_named_with_the_folder_searched(tmp_path):
    (tmp_path / "there.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=rf"searched {tmp_path} \(it holds there.txt"):
        read_texts(str(tmp_path / "missing.txt"), "text")
    with pytest.raises(FileNotFoundError, match="empty or missing"):
        read_texts(str(tmp_path / "no-folder" / "missing.jsonl"), "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .txt, .jsonl or .parquet file below .*empty"):
        read_texts(str(tmp_path / "empty"), "text")


def test_lines_that_are_wrong_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": }\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is no JSON"):
        read_texts(str(path), "text")
    path.write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 has no field 'text', only: body"):
        read_texts(str(path), "text")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a.csv is neither .txt nor .jsonl"):
        read_texts(str(tmp_path / "a.csv"), "text")


def test_unknown_datasets_are_explained(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="source='no-such/text' is no file or folder here, and no dataset"):
        read_texts("no-such/text", "text")


def test_a_misspelt_name_is_not_asked_of_the_hub():
    with pytest.raises(ValueError, match=r"source='python_topic' is no name known here .*'python_topics'"):
        read_texts("python_topic", "text")
