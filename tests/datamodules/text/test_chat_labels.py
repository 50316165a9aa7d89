"""Labels by real templates: of ChatML, of one that wants roles to alternate, of one that marks answers."""

import json

import pytest
from tiny_llm import byte_tokenizer

from datamodules.text.chat import ChatData
from datamodules.text.chat_labels import chat_sample

HEADER = "<|im_start|>{{ m['role'] }}\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + HEADER + "{{ m['content'] }}<|im_end|>\n{% endfor %}" + OPENING
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nbe kind<|im_end|>\n{% endif %}" + CHATML
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# A thought in the last answer alone, as in templates of reasoning models.
THINKING = (
    "{% for m in messages %}" + HEADER + "{% if m['role'] == 'assistant' and loop.last %}<think>{% endif %}"
    "{% if m['role'] == 'assistant' %}{%- generation %}{{ m['content'] }}<|im_end|>{% endgeneration -%}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}" + OPENING
)
CALLING = (
    "{% for m in messages %}" + HEADER + "{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "<call>{{ call.function.name }}({{ call.function.arguments.town }})</call>{% endfor %}<|im_end|>\n{% endfor %}"
    + OPENING
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def learned(tokenizer, template, messages):
    tokenizer.chat_template = template
    return tokenizer.decode([token for token in chat_sample(tokenizer, messages)["labels"] if token != -100])


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, {"default": CHATML}], ids=["plain", "system", "named"])
def test_a_conversation_may_begin_with_the_assistant(tokenizer, template):
    messages = [assistant("good day"), user("hi"), assistant("the mill")]
    assert learned(tokenizer, template, messages) == "good day<|im_end|>\nthe mill<|im_end|>\n"
    silent = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"it begins with the assistant, .*put a message of the user"):
        learned(tokenizer, silent, messages)


def test_answers_are_what_the_template_marks(tokenizer):
    messages = [user("hi"), assistant("the mill ä"), user("and"), assistant("the cart")]
    assert learned(tokenizer, THINKING, messages) == "the mill ä<|im_end|>the cart<|im_end|>"
    unmarked = THINKING.replace("{%- generation %}", "").replace("{% endgeneration -%}", "")
    with pytest.raises(ValueError, match="rewrites earlier tokens around message 1"):
        learned(tokenizer, unmarked, messages)
    none = "{% for m in messages %}{% if false %}{% generation %}{% endgeneration %}{% endif %}x{% endfor %}"
    with pytest.raises(ValueError, match="marks none of its answers"):
        learned(tokenizer, none, messages)


def test_a_token_may_reach_over_the_start_of_an_answer():
    """Two line breaks are one token: the template's and the answer's."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: number for number, name in enumerate([*sorted(ByteLevel.alphabet()), "ĊĊ"])}
    backend = Tokenizer(BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for messages in ([user("hi"), assistant("\n\na"), user("b")], [assistant("\nc"), user("b"), assistant("d")]):
        tokenizer.chat_template = CHATML
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert chat_sample(tokenizer, messages)["input_ids"] == tokenizer(text)["input_ids"]
    assert learned(tokenizer, CHATML, [user("hi"), assistant("\na"), user("b")]) == "\n\na<|im_end|>\n"
    messages = [assistant("\nc"), user("b"), assistant("d")]
    assert learned(tokenizer, CHATML, messages) == "\n\nc<|im_end|>\nd<|im_end|>\n"


def test_tool_calls_are_learned_or_the_template_is_refused(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
    messages = [user("hi"), assistant("", tool_calls=[call])]
    assert learned(tokenizer, CALLING, messages) == "<call>weather(Ulm)</call><|im_end|>\n"
    with pytest.raises(ValueError, match="leaves out the tool calls of message 1"):
        learned(tokenizer, CHATML, messages)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat_data(tokenizer, source, template, **fields):
    tokenizer.chat_template = template
    shares = {"val_share": 0.2, "test_share": 0.2, "calibration_share": 0.0, "overlap_ngram": 0}
    return ChatData.Config(source=source, **shares, **fields).build(tokenizer=tokenizer)


def test_a_template_that_refuses_a_conversation_is_an_error_with_its_number(tokenizer, tmp_path):
    fine = {"messages": [user("hi"), assistant("the mill")]}
    refused = {"messages": [{"role": "system", "content": "x"}, *fine["messages"]]}
    source = write(tmp_path / "chat.jsonl", [fine] * 12 + [refused])
    with pytest.raises(ValueError, match=r"conversation 12 of .*chat\.jsonl: the chat template refuses it: roles must"):
        chat_data(tokenizer, source, ALTERNATING).setup()
    data = chat_data(tokenizer, source, ALTERNATING, on_bad_row="skip")
    with pytest.warns(UserWarning, match=r"1 of 13 rows left out \(on_bad_row=skip\); the first: conversation 12"):
        data.setup()
    assert sum(len(split) for split in (data.train_dataset, data.val_dataset, data.test_dataset)) == 12


def test_rows_of_every_shape_and_damaged_ones_in_one_file(tokenizer, tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [user("hi"), assistant("a")]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "hi", "input": "", "output": "c"},
        {"prompt": "hi", "completion": "d"},
        {"messages": [user("hi"), assistant([{"type": "text", "text": "e"}])]},
    ]
    write(path, [*rows, {"text": "x"}, {"messages": [user("hi")]}])
    path.write_text(path.read_text() + "{\n")
    data = chat_data(tokenizer, str(path), CHATML, on_bad_row="skip")
    with pytest.warns(UserWarning, match="3 of 8 rows left out"):
        data.setup()
    kept = [*data.train_dataset.samples, *data.val_dataset.samples, *data.test_dataset.samples]
    answers = [tokenizer.decode([token for token in sample["labels"] if token != -100]) for sample in kept]
    assert sorted(answers) == [f"{letter}<|im_end|>\n" for letter in "abcde"]
    with pytest.raises(ValueError, match=r"none of 1 rows is a conversation to learn from\. conversation 0 of"):
        chat_data(tokenizer, write(tmp_path / "bad.jsonl", [{"text": "x"}]), CHATML, on_bad_row="skip").setup()
