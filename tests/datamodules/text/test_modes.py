"""Modes by an option of the template or by a tag, with openPangu's template and one like Qwen3's."""
# ruff: noqa: RUF001 - openPangu's roles end with a full-width colon

import json

import pytest
from tiny_llm import byte_tokenizer

from datamodules.text.chat import ChatData
from datamodules.text.chat_labels import chat_sample

PANGU = (
    "{% if messages[0]['role'] != 'system' %}[unused9]系统：[unused10]{% endif %}"
    "{% set names = {'system': '系统：', 'user': '用户：', 'assistant': '助手：', 'tool': '工具：'} %}"
    "{% for m in messages %}[unused9]{{ names[m['role']] }}{{ m['content'] }}[unused10]{% endfor %}"
    "{% if add_generation_prompt %}[unused9]助手：{% endif %}"
)
"""openPangu's turns as its model card describes them; a fast question ends with /no_think."""
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' and loop.last %}<think>{{ m['thought'] or '' }}</think>{% endif %}"
    "{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[unused9]", "[unused10]"]})
    return tokenizer


def rows(*modes):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the mill"}]
    return [{"messages": messages, "mode": mode} for mode in modes]


def chat_data(tokenizer, folder, template, given, **fields):
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    tokenizer.chat_template = template
    shares = {"val_share": 0.0, "test_share": 0.0, "calibration_share": 0.0, "overlap_ngram": 0}
    return ChatData.Config(source=str(path), mode_field="mode", **{**shares, **fields}).build(tokenizer=tokenizer)


def read(data):
    """The text of each conversation, and what of it is learned."""
    data.setup()
    decode = data.tokenizer.decode
    learned = [[token for token in sample["labels"] if token != -100] for sample in data.train_dataset.samples]
    return [(decode(s["input_ids"]), decode(own)) for s, own in zip(data.train_dataset.samples, learned, strict=True)]


def test_turns_of_openpangu_with_roles_tools_and_exact_labels(tokenizer):
    tokenizer.chat_template = PANGU
    messages = [
        {"role": "system", "content": "kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "wait"},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "the mill"},
    ]
    sample = chat_sample(tokenizer, messages)
    begin, end = tokenizer.convert_tokens_to_ids(["[unused9]", "[unused10]"])
    assert (sample["input_ids"].count(begin), sample["input_ids"].count(end)) == (5, 5)
    assert (
        tokenizer.decode([token for token in sample["labels"] if token != -100]) == "wait[unused10]the mill[unused10]"
    )
    text = tokenizer.decode(chat_sample(tokenizer, messages[1:3])["input_ids"])
    assert text == "[unused9]系统：[unused10][unused9]用户：hi[unused10][unused9]助手：wait[unused10]"


def test_a_tag_ends_the_last_question(tokenizer, tmp_path):
    data = chat_data(
        tokenizer, tmp_path, PANGU, rows("fast", "thinking", None, False),
        mode_option=None, mode_tags={"fast": " /no_think"},
    )  # fmt: skip
    found = read(data)
    assert [text.count("用户：hi /no_think[unused10]") for text, _ in found] == [1, 0, 0, 1]
    assert {learned for _, learned in found} == {"the mill[unused10]"}
    more = [{"role": "user", "content": "and /no_think"}, {"role": "assistant", "content": "the cart"}]
    longer = [{"messages": rows("fast")[0]["messages"] + more, "mode": "fast"}]
    ((text, _),) = read(chat_data(tokenizer, tmp_path, PANGU, longer, mode_tags={"fast": " /no_think"}))
    assert text.count("/no_think") == 1  # in the last question alone, and not twice


def test_the_template_is_told_the_mode_and_labels_stay_exact(tokenizer, tmp_path):
    """Catches labels that begin before an empty thought, which the template writes and not the model."""
    data = chat_data(tokenizer, tmp_path, THINKING, rows(True, "fast", "auto"))
    assert read(data) == [
        ("<user>hi<end><assistant><think></think>the mill<end>", "<think></think>the mill<end>"),
        ("<user>hi<end><assistant><think></think>the mill<end>", "the mill<end>"),
        ("<user>hi<end><assistant><think></think>the mill<end>", "<think></think>the mill<end>"),
    ]


def test_modes_that_are_none_or_change_nothing_are_refused(tokenizer, tmp_path):
    with pytest.raises(
        ValueError, match=r"conversation 1 of .*: 'mode' names no mode but holds a text: 'slow': write th"
    ):
        chat_data(tokenizer, tmp_path, THINKING, rows("fast", "slow")).setup()
    with pytest.raises(ValueError, match="the chat template does not read mode_option='enable_thinking'"):
        chat_data(tokenizer, tmp_path, PANGU, rows("fast")).setup()
    greeting = [{"messages": [{"role": "assistant", "content": "good day"}], "mode": "fast"}]
    with pytest.raises(ValueError, match="no message of the user that could carry its mode's tag ' /no_think'"):
        chat_data(tokenizer, tmp_path, PANGU, greeting, mode_tags={"fast": " /no_think"}).setup()
    with pytest.raises(ValueError, match="mode_tags: no row has a mode"):
        ChatData.Config(source="a.jsonl", mode_tags={"fast": " /no_think"})
    with pytest.raises(ValueError, match="mode_option='return_dict' is not the template's"):
        ChatData.Config(source="a.jsonl", mode_option="return_dict")


def test_a_tokenizer_without_a_template_and_empty_prompts_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="the tokenizer has no chat template: name the tokenizer of a chat model"):
        chat_data(tokenizer, tmp_path, None, rows("fast"), on_bad_row="skip").setup()
    empty = [{"prompt": " ", "completion": "a"}, {"prompt": "q", "completion": ""}, *rows("fast")]
    with pytest.raises(ValueError, match=r"conversation 0 of .*message 0 \(user\) is empty, so there is no prompt"):
        chat_data(tokenizer, tmp_path, THINKING, empty).setup()
    data = chat_data(tokenizer, tmp_path, THINKING, empty, on_bad_row="skip")
    with pytest.warns(UserWarning, match="2 of 3 rows left out"):
        data.setup()
    with pytest.raises(ValueError, match="its answers are all empty, so there is nothing to learn"):
        chat_data(tokenizer, tmp_path, THINKING, empty[1:]).setup()
