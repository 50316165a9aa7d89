import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_llm import byte_tokenizer, tiny_module

from datamodules import DataModule
from datamodules.text.ngrams import shared_ngrams
from datamodules.text.running import TextData
from datamodules.text.tokens import assign_splits
from datamodules.text.windows import Windows, pack, split_blocks, tokenize

SPLITS = ("train", "val", "test", "calibration")


class Letters:
    """A tokenizer of letters: a is 1, b is 2, ...; 0 ends a text, and spaces are nothing."""

    eos_token_id = 0

    def __call__(self, texts):
        return {"input_ids": [[ord(letter) - 96 for letter in text if letter != " "] for text in texts]}


def text_data(source, **fields):
    defaults = {"sequence_length": 4, "overlap_ngram": 0, "batch_size": 2, "drop_last": False}
    return TextData.Config(source=source, **{**defaults, **fields}).build(tokenizer=Letters())


def write_lines(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def random_texts(count, length, letters=26, seed=0):
    generator = np.random.default_rng(seed)
    return ["".join(chr(97 + int(n)) for n in generator.integers(letters, size=length)) for _ in range(count)]


def tokens_of(data, split):
    return getattr(data, f"{split}_dataset").tokens


# Packing.


def test_documents_are_joined_by_the_end_of_text_and_cut_into_windows():
    documents = tokenize(["abc", "d e", "f"], Letters())
    assert [document.tolist() for document in documents] == [[1, 2, 3, 0], [4, 5, 0], [6, 0]]
    assert pack(documents, 3).tolist() == [[1, 2, 3], [0, 4, 5], [0, 6, 0]]
    assert pack(documents, 4).tolist() == [[1, 2, 3, 0], [4, 5, 0, 6]]
    assert pack([], 4).shape == (0, 4)
    without_end = Letters()
    without_end.eos_token_id = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        tokenize(["a"], without_end)


@pytest.mark.parametrize(("template", "first", "last"), [("$A", "", "</s>"), ("<s> $A", "<s>", "</s>"),
                                                         ("<s> $A </s>", "<s>", "</s>")])  # fmt: skip
def test_a_document_is_what_the_tokenizer_makes_of_its_text(tmp_path, template, first, last):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path))
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    for text in (" he said", "\n", "he"):
        (document,) = tokenize([text], tokenizer)
        own = tokenizer(text)["input_ids"]
        assert document.tolist() == (own if own[-1] == tokenizer.eos_token_id else [*own, tokenizer.eos_token_id])
        assert tokenizer.decode(document) == first + text + last


def test_a_batch_has_literal_tokens(tmp_path):
    data = text_data(write_lines(tmp_path / "a.jsonl", ["abc", "efg"]), val_share=0, test_share=0,
                     calibration_share=0)  # fmt: skip
    data.setup("fit")
    batch = data.train_dataset.__getitems__([1, 0])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [1, 2, 3, 0]]
    assert batch["labels"].tolist() == batch["input_ids"].tolist()
    assert batch["input_ids"].dtype == torch.int64
    assert set(batch) == {"input_ids", "labels"}
    assert data.train_dataset[0]["input_ids"].tolist() == [1, 2, 3, 0]
    (loaded,) = data.train_dataloader()
    assert sorted(loaded["input_ids"].tolist()) == [[1, 2, 3, 0], [5, 6, 7, 0]]


def test_loading_again_changes_nothing_and_the_seed_decides(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", random_texts(60, 11))

    def test_tokens(**fields):
        data = text_data(source, **fields)
        data.setup("fit")
        data.setup("test")
        return tokens_of(data, "test")

    assert torch.equal(test_tokens(seed=1), test_tokens(seed=1))
    assert not torch.equal(test_tokens(seed=1), test_tokens(seed=2))


# Splits.


def test_documents_go_to_one_split_each_and_shares_are_kept(tmp_path):
    texts = random_texts(200, 15)
    data = text_data(write_lines(tmp_path / "a.jsonl", texts), val_share=0.1, test_share=0.2,
                     calibration_share=0.1, sequence_length=16)  # fmt: skip
    data.setup()
    documents = {split: {tuple(row) for row in tokens_of(data, split).tolist()} for split in SPLITS}
    assert {split: len(rows) for split, rows in documents.items()} == {
        "train": 120,
        "val": 20,
        "test": 40,
        "calibration": 20,
    }
    assert len(set.union(*documents.values())) == 200


def test_splits_of_documents_of_very_different_sizes():
    sizes = [1000, 500, *[10] * 200]
    shares = {"test": 0.1, "val": 0.05}
    splits = assign_splits(sizes, shares, seed=3)
    totals = {
        split: sum(size for size, own in zip(sizes, splits, strict=True) if own == split) for split in set(splits)
    }
    for split, share in (*shares.items(), ("train", 0.85)):
        assert abs(totals[split] - share * sum(sizes)) <= 10
    assert splits == assign_splits(sizes, shares, seed=3)
    assert splits != assign_splits(sizes, shares, seed=4)


def test_blocks_in_a_row():
    windows = torch.arange(40).view(20, 2)
    parts = split_blocks(windows, {"test": 0.1, "val": 0.05, "calibration": 0.01})
    assert {split: part[:, 0].tolist() for split, part in parts.items()} == {
        "train": list(range(0, 32, 2)),
        "test": [32, 34],
        "val": [36],
        "calibration": [38],
    }


def test_one_file_of_text_is_split_by_block(tmp_path):
    (tmp_path / "book.txt").write_text(random_texts(1, 399)[0])
    data = text_data(str(tmp_path / "book.txt"), split_by="block")
    data.setup()
    rows = torch.cat([tokens_of(data, split) for split in ("train", "test", "val", "calibration")])
    assert rows.shape == (100, 4)
    assert rows[-1, -1] == 0
    data = text_data(str(tmp_path / "book.txt"))
    with pytest.raises(ValueError, match=r"test: its share .*\(400 tokens in 1 documents\).*split_by='block'"):
        data.setup()


def test_windows_that_share_text_with_an_earlier_split_are_left_out(tmp_path):
    shared = random_texts(1, 20, seed=5)[0]
    texts = [text + (shared if number % 3 == 0 else "") for number, text in enumerate(random_texts(90, 40, seed=6))]
    source = write_lines(tmp_path / "a.jsonl", texts)
    fields = {"sequence_length": 64, "val_share": 0.2, "test_share": 0.2, "calibration_share": 0.2}
    kept = text_data(source, **fields)
    kept.setup()
    assert kept.removed == dict.fromkeys(("test", "val", "calibration", "train"), 0)
    clean = text_data(source, **fields, overlap_ngram=16)
    clean.setup()
    assert clean.removed["test"] == 0
    assert clean.removed["train"] > 0
    for index, split in enumerate(SPLITS):
        assert len(tokens_of(clean, split)) == len(tokens_of(kept, split)) - clean.removed[split]
        for other in SPLITS[index + 1 :]:
            assert shared_ngrams(tokens_of(clean, split), tokens_of(clean, other), 16) == 0
    assert shared_ngrams(tokens_of(kept, "train"), tokens_of(kept, "test"), 16) > 0


def test_several_sources_have_domains(tmp_path):
    sources = {
        "low": write_lines(tmp_path / "low.jsonl", random_texts(40, 7, letters=5)),
        "high": write_lines(tmp_path / "high.jsonl", [text.upper().lower() for text in random_texts(60, 7)]),
    }
    data = text_data(sources, sequence_length=8)
    data.setup()
    assert data.domains == ["low", "high"]
    batch = data.train_dataset.__getitems__(list(range(len(data.train_dataset))))
    assert batch["domain"].tolist() == sorted(batch["domain"].tolist())
    low = batch["input_ids"][batch["domain"] == 0]
    assert low.max() <= 5
    assert batch["input_ids"][batch["domain"] == 1].max() > 5
    for split in SPLITS:  # every split has every domain, each in its own share
        assert getattr(data, f"{split}_dataset").domain.unique().tolist() == [0, 1]


# The embedded text, and mistakes.


def test_topics_of_python(tmp_path):
    fields = {"sequence_length": 256, "batch_size": 4, "overlap_ngram": 64}
    data = TextData.Config(tokenizer=str(byte_tokenizer(tmp_path)), **fields).build()
    assert isinstance(data, DataModule)
    assert data.module_arguments() == {"tokenizer": str(tmp_path)}
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataset) > 100
    batch = next(iter(data.train_dataloader()))
    module = tiny_module(data_tokenizer=tmp_path, model_args={"vocab_size": 260})
    assert module.compute_outputs(batch)["logits"].shape == (4, 256, 260)
    reserved = {tuple(row) for row in data.calibration_dataset.tokens.tolist()}
    for calibration in data.calibration_batches(2, seed=0):
        assert {tuple(row) for row in calibration["input_ids"].tolist()} <= reserved
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert next(iter(loader))["input_ids"].shape[1] == 256


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValidationError, match=r"add up to 1.1: leave a part for training"):
        TextData.Config(val_share=0.5, test_share=0.6, calibration_share=0)
    short = text_data(write_lines(tmp_path / "short.jsonl", ["abc"] * 8), sequence_length=100)
    with pytest.raises(ValueError, match=r"test: .*32 tokens in 8 documents.*sequence_length=100"):
        short.setup()
    same = text_data(write_lines(tmp_path / "same.jsonl", random_texts(1, 30) * 50), overlap_ngram=3)
    with pytest.raises(ValueError, match=r"val: all \d+ windows share 3 tokens in a row"):
        same.setup()
    assert Windows(torch.zeros(2, 3)).domain is None
