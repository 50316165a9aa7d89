"""A trained tokenizer: what its settings do, and one folder of the cache for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from datamodules.text.byte_pairs import END_OF_TEXT, train_tokenizer, trained_tokenizer

TEXTS = ["the cat\n\nthe hat\n\nthe bat über ☂\n", "a second text, a second time\n\n" * 3]


def test_by_line_equals_the_librarys_own_byte_level_trainer(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, tmp_path, 300, min_count=2, by_line=True)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    reference = ByteLevelBPETokenizer()
    lines = [line for text in TEXTS for line in text.splitlines(keepends=True)]
    reference.train_from_iterator(lines, 300, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False)
    assert ours.get_vocab() == reference.get_vocab()
    for text in TEXTS:
        assert ours(text)["input_ids"] == reference.encode(text).ids


def test_lines_and_counts_change_what_is_merged(tmp_path: Path) -> None:
    whole, lines, frequent = tmp_path / "whole", tmp_path / "lines", tmp_path / "frequent"
    train_tokenizer(TEXTS, whole, 290)
    train_tokenizer(TEXTS, lines, 290, by_line=True)
    train_tokenizer(TEXTS, frequent, 290, min_count=4)
    vocabularies = [set(AutoTokenizer.from_pretrained(folder).get_vocab()) for folder in (whole, lines, frequent)]
    assert "ĊĊ" in vocabularies[0] - vocabularies[1]  # two line ends
    assert vocabularies[2] < vocabularies[0]


def test_each_setting_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path))
    folders = [
        trained_tokenizer(TEXTS, 270),
        trained_tokenizer(TEXTS, 271),
        trained_tokenizer(TEXTS, 270, min_count=2),
        trained_tokenizer(TEXTS, 270, by_line=True),
        trained_tokenizer(TEXTS, 270, min_count=2, by_line=True),
        trained_tokenizer(["".join(TEXTS)], 270),
    ]
    assert len(set(folders)) == 6
    assert trained_tokenizer(TEXTS, 270) == folders[0]
    assert all(folder.parent == tmp_path for folder in folders)
