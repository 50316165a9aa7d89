import json

import pytest

from datamodules.text.conversations import conversation_of

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
WEATHER = {"name": "weather", "arguments": {"town": "Ulm"}}
CALL = {"type": "function", "function": WEATHER}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ANSWER], "id": 3}, [USER, ANSWER]),
        ({"messages": [{**USER, "name": None}, ANSWER], "conversations": None}, [USER, ANSWER]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ANSWER]),
        (
            {"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
            [SYSTEM, USER, ANSWER],
        ),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "another"}, [SYSTEM, USER, ANSWER]),
        ({"prompt": "q", "completion": "a"}, [USER, ANSWER]),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
        ({"prompt": "q", "response": "a"}, [USER, ANSWER]),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, ANSWER]),
        ({"instruction": "q", "output": "a", "system": "s"}, [SYSTEM, USER, ANSWER]),
        ({"instruction": "x", "input": "y", "output": "a"}, [{"role": "user", "content": "x\n\ny"}, ANSWER]),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, [USER, ANSWER, USER, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]}]},
            [{"role": "user", "content": "qr"}],
        ),
        ({"messages": [{"role": "user", "content": ["q", "r"]}]}, [{"role": "user", "content": "qr"}]),
        (
            {"conversations": [{"from": "function_call", "value": json.dumps(WEATHER)},
                               {"from": "observation", "value": "rain"}]},
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "rain"}],
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}]}]},
            [{"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "1"}]}],
        ),
    ],
)  # fmt: skip
def test_shapes_in_the_wild_become_messages(row, messages):
    assert conversation_of(row, "messages").messages == messages


def test_a_field_of_ones_own_and_tools():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for given in (tools, json.dumps(tools)):
        conversation = conversation_of({"chat": [USER, ANSWER], "messages": [ANSWER], "tools": given}, "chat")
        assert conversation.messages == [USER, ANSWER]
        assert conversation.tools == tools
    assert conversation_of({"chat": [USER], "tools": "[]"}, "chat").tools is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "a list: .*not an object"),
        ({"text": "x", "id": 1}, r"no field 'messages', and the fields \(text, id\) have none of these shapes"),
        ({"messages": None}, "'messages' is null"),
        ({"messages": []}, r"'messages' is no list of messages but a list: \[\]"),
        ({"messages": "hello"}, "'messages' is no list of messages but a text"),
        ({"messages": ["hello"]}, "message 0 is a text: 'hello', not an object with role and content"),
        ({"messages": [{"content": "x"}]}, "message 0 has no role, only: content"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"message 1 \(assistant\) has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 0: the content is no text but a number: 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"no text \(image_url\)"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "message 0: unknown role 'narrator'; known: system"),
        ({"conversations": [{"from": "human", "value": None}]}, r"message 0 \(user\) has no content"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "a function_call holds JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "message 0: a tool call has no function"),
        ({"prompt": "q"}, "no answer: none of the fields completion, response holds one"),
        ({"prompt": 3, "completion": "a"}, "'prompt' is no list of messages but a number: 3"),
        ({"instruction": "q", "output": None}, "no answer"),
        ({"instruction": ["q"], "output": "a"}, "'instruction' holds no text but a list"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "'history' holds no pairs"),
        ({"messages": [USER], "tools": "x"}, "'tools' is no list of functions but a text"),
    ],
)
def test_what_is_no_conversation_is_said(row, message):
    with pytest.raises(ValueError, match=message):
        conversation_of(row, "messages")
