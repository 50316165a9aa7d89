"""SmallVocabularyData: a tokenizer of the size asked for, made once, that loses no text."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")

from datamodules import SmallVocabularyData
from datamodules.text.small_vocabulary import CHUNK, split_chunks

TEXT = "In the beginning was the word, and the word was with the reader.\nÜber 10 % more.\n" * 40


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def config(source: Path, **fields: object) -> SmallVocabularyData.Config:
    values = {"sequence_length": 8, "vocab_size": 280, "split_by": "block", "overlap_ngram": 0, **fields}
    return SmallVocabularyData.Config(source=str(source), **values)


def test_the_tokenizer_has_the_size_and_keeps_the_text(source: Path) -> None:
    data = config(source).build()
    assert len(data.tokenizer) == 280
    tokens = data.tokenizer.encode("the word ☂ über\n")
    assert data.tokenizer.decode(tokens) == "the word ☂ über\n"
    assert data.tokenizer.eos_token_id is not None
    data.setup()
    assert int(data.train_dataset.tokens.max()) < 280


def test_it_is_made_once_for_a_text_and_a_size(source: Path) -> None:
    one, same, other = (config(source, vocab_size=size).build().tokenizer_folder for size in (280, 280, 290))
    assert one == same != other
    source.write_text(TEXT + "More.")
    assert config(source).build().tokenizer_folder not in (one, other)


def test_the_module_is_told_where_it_is(source: Path) -> None:
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    arguments = config(source).build().module_arguments()
    assert len(load_tokenizer(arguments["tokenizer"])) == 280


def test_fewer_tokens_than_bytes_are_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        config(source, vocab_size=200)


def test_chunks_are_disjoint_and_the_same_for_all_seeds(source: Path) -> None:
    windows = torch.arange(100 * 16 + 5).view(-1, 1)
    parts = split_chunks(windows, {"test": 0.1, "val": 0.05})
    assert [len(part) for part in (parts["test"], parts["val"])] == [160, 80]
    assert torch.equal(torch.cat(list(parts.values())).sort(0).values, windows)
    starts = parts["test"].view(-1, CHUNK)
    assert torch.equal(starts - starts[:, :1], torch.arange(CHUNK).expand(10, -1))  # windows in a row
    assert (parts["test"] > 800).any()  # from all over the text
    assert (parts["test"] < 800).any()
    sets = []
    for seed in (0, 1):
        data = config(source, seed=seed, split_by="chunk", test_share=0.3).build()
        data.setup()
        sets.append(data.test_dataset.tokens)
    assert torch.equal(*sets)
