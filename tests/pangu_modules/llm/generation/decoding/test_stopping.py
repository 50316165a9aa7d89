"""When completions end, and their texts."""

import pytest
from pydantic import ValidationError
from tiny_llm import byte_tokenizer, word_tokenizer

from pangu_modules.llm.generation.decoding.stopping import Stopping
from pangu_modules.llm.generation.settings import GenerationSettings
from pangu_modules.llm.models.tokenizer_loading import load_tokenizer


@pytest.fixture
def by_bytes(tmp_path):
    return load_tokenizer(str(byte_tokenizer(tmp_path / "bytes")))


@pytest.fixture
def by_words(tmp_path):
    return load_tokenizer(str(word_tokenizer(tmp_path / "words")))


def stopping(tokenizer, *stop, ends=(1,), **fields):
    return Stopping(GenerationSettings(stop=stop, **fields), tokenizer, ends)


def written(stopping, tokens, room=1000):
    """Tokens until the end, why it is there, and the text."""
    for count in range(1, len(tokens) + 1):
        reason = stopping.reason(tokens[:count], room)
        if reason is not None:
            return tokens[:count], reason, stopping.text(tokens[:count], reason)
    raise AssertionError("it goes on")


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one two END three", (" END",), "one two"),
        ("one hé two", ("hé t",), "one "),  # a character of two tokens, and a merged token
        ("a b c", ("c", "b"), "a "),
        ("xSTOPPING", ("STOPPING", "STOP"), "x"),
        ("ab", ("ab",), ""),
    ],
)
def test_a_stop_string_ends_a_text_wherever_tokens_end(by_bytes, text, stop, kept):
    """Catches a search in single tokens, and an end that is noticed a token late."""
    tokens, reason, found = written(stopping(by_bytes, *stop), ids(by_bytes, text + " and more"))
    assert (reason, found) == ("stop_string", kept)
    decoded = by_bytes.decode(tokens)
    assert any(each in decoded for each in stop)
    assert not any(each in by_bytes.decode(tokens[:-1]) for each in stop)


def test_a_stop_string_far_into_a_long_text_is_found_at_once(by_bytes):
    """Catches an end of the text that is cut too short, or begins within a character."""
    text = "é" * 300 + "~STOP"
    tokens, reason, found = written(stopping(by_bytes, "é~ST"), ids(by_bytes, text), room=2000)
    assert (reason, found) == ("stop_string", "é" * 299)
    assert len(tokens) == 603
    special = [*ids(by_bytes, "x" * 200), *ids(by_bytes, "ST"), *[0] * 100, *ids(by_bytes, "OP")]
    assert written(stopping(by_bytes, "STOP"), special)[2] == "x" * 200  # special tokens are no text


def test_stop_tokens_end_texts_before_the_limit_does(by_words):
    end, stop = 1, 30
    ours = stopping(by_words, stop_token_ids=(stop,))
    assert written(ours, [10, 11, end, 12]) == ([10, 11, end], "stop", "w5 w6")
    assert written(ours, [10, stop, 12]) == ([10, stop], "stop", "w5 w25")
    assert written(ours, [10, 11, 12], room=2) == ([10, 11], "length", "w5 w6")
    assert written(ours, [10, end], room=2)[1] == "stop"
    assert written(stopping(by_words, "w5"), [10], room=1)[1] == "stop_string"
    assert stopping(None).text([10], "length") == ""


def test_stop_strings_that_can_never_occur_are_refused(by_bytes, by_words):
    with pytest.raises(ValidationError, match="stop has an empty text"):
        GenerationSettings(stop=("a", ""))
    with pytest.raises(ValueError, match=r"stop='</s>' can never occur.*stop_token_ids=1"):
        stopping(by_words, "</s>")
    with pytest.raises(ValueError, match=r"stop='w1 é' can never occur: the tokenizer writes no 'é'"):
        stopping(by_words, "w1 é")
    with pytest.raises(ValueError, match=r"stop: the model has no tokenizer.*give stop_token_ids"):
        stopping(None, "x")
    for tokenizer, text in ((by_words, "w1 w2"), (by_words, "1 w"), (by_bytes, "日本"), (by_bytes, "\n\n")):
        stopping(tokenizer, text)


def test_line_ends_may_stop_a_text(by_bytes):
    assert written(stopping(by_bytes, "\n\n"), ids(by_bytes, "a\nb\n\nc"))[1:] == ("stop_string", "a\nb")
