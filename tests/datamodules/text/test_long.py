"""Conversations that are too long: left out, cut or refused, and counted."""

import json

import pytest
from tiny_llm import word_tokenizer

from datamodules.text.chat import ChatData
from datamodules.text.long import LengthLimit

LONG = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, 4, 5, 6]}


def test_a_cut_conversation_keeps_an_answer_or_is_left_out():
    """Catches a cut that keeps a prompt alone, and one whose only label is the first token, which nothing predicts."""
    limit = LengthLimit(4, "truncate")
    assert limit.fit(LONG) == {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}
    assert limit.fit({**LONG, "labels": [-100] * 4 + [5, 6]}) is None
    assert limit.fit({**LONG, "labels": [1, -100, -100, -100, 5, 6]}) is None
    short = {"input_ids": [1, 2], "labels": [-100, 2]}
    assert limit.fit(short) is short
    assert (limit.truncated, limit.dropped, limit.unanswered) == (1, 2, 2)
    dropping = LengthLimit(4, "drop")
    assert dropping.fit(LONG) is None
    assert (dropping.truncated, dropping.dropped, dropping.unanswered) == (0, 1, 0)


@pytest.fixture
def chat(tmp_path):
    """Seven short conversations, one whose answer is long, and one whose question is."""
    words = " ".join(["w2"] * 30)
    turns = [(f"w{number}", f"w{number} w1") for number in range(7)] + [("w8", words), (words, "w9")]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = str(word_tokenizer(tmp_path / "tokenizer"))
    shares = {"val_share": 0.0, "test_share": 0.0, "calibration_share": 0.0, "overlap_ngram": 0}

    def build(**fields):
        return ChatData.Config(source=str(path), tokenizer=tokenizer, **shares, **fields).build()

    return build


def test_what_is_left_out_or_cut_is_counted_and_said(chat):
    data = chat(sequence_length=20)
    with pytest.warns(UserWarning, match="2 of 9 conversations left out: more than 20 tokens"):
        data.setup()
    assert (data.too_long, data.truncated, len(data.train_dataset)) == (2, 0, 7)
    data = chat(sequence_length=20, too_long="truncate")
    with pytest.warns(UserWarning, match="1 of 9") as said:
        data.setup()
    assert (data.too_long, data.truncated, len(data.train_dataset)) == (1, 1, 8)
    assert {str(warning.message) for warning in said} >= {
        "1 of 9 conversations left out: more than 20 tokens, and 1 of these no answer within them",
        "1 of 9 conversations cut to 20 tokens (too_long=truncate)",
    }
    assert max(len(sample["input_ids"]) for sample in data.train_dataset.samples) == 20


def test_a_long_conversation_can_be_an_error_also_where_bad_rows_are_skipped(chat):
    data = chat(sequence_length=20, too_long="error", on_bad_row="skip")
    with pytest.raises(ValueError, match=r"conversation 7 of .*chat.jsonl: it has 37 tokens, more than .*=20"):
        data.setup()
    with pytest.raises(ValueError, match=r"all 9 conversations have more than .*=2 tokens before their first answer"):
        chat(sequence_length=2, too_long="truncate").setup()
