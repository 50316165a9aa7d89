"""Conversations in the shapes that files of chats have, as one: messages with role and content, and tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.text.rows import shown

Message = Mapping[str, Any]
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Names that sets of conversations give to roles; others pass as they are."""
KNOWN = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "function_call")
"""Roles of ShareGPT rows; in rows with ``role`` the chat template decides."""
ANSWERS = ("completion", "response", "output", "answer")
SHAPES = (
    "a list of messages (role and content, or from and value), conversations (ShareGPT), prompt and completion, or "
    "instruction, input and output (Alpaca)"
)


@dataclass(frozen=True)
class Conversation:
    """A conversation as chat templates take it.

    Attributes:
        messages: each with ``role``, ``content`` (text, or None beside tool calls), and what else the row gives.
        tools: JSON schemas of the functions that may be called, or None.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None


def conversation_of(row: Any, field: str) -> Conversation:
    """Return the conversation of a row, whichever of the usual shapes it has.

    - `field` (or ``conversations``, ``conversation``): messages with ``role`` and ``content``, or ShareGPT's ``from``
      and ``value``; a ``system`` beside them comes first;
    - ``prompt`` and ``completion`` (or ``response``), each a text or a list of messages;
    - Alpaca: ``instruction``, ``input``, ``output``, also with ``system`` and ``history`` of (question, answer).

    Raises:
        ValueError: it has none of them, or a message is none.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"it is {shown(row)}, not an object")
    name = next((name for name in (field, "conversations", "conversation") if row.get(name) is not None), None)
    if name is not None:
        entries = _messages(row[name], name)
    elif row.get("prompt") is not None:
        entries = [*_turn(row["prompt"], "user", "prompt"), *_answer(row, ("completion", "response"))]
    elif row.get("instruction") is not None:
        entries = _alpaca(row)
    else:
        given = f"{field!r} is null" if field in row else f"no field {field!r}"
        raise ValueError(f"{given}, and the fields ({', '.join(map(str, row))}) have none of these shapes: {SHAPES}")
    system = row.get("system")
    if isinstance(system, str) and system and (not entries or entries[0].get("role") != "system"):
        entries = [{"role": "system", "content": system}, *entries]
    messages = [_message(entry, number) for number, entry in enumerate(entries)]
    _check_said(messages)
    return Conversation(messages, _tools(row.get("tools")))


def _check_said(messages: Sequence[Message]) -> None:
    """Refuse empty questions, and answers that are all empty: a model would learn to answer nothing."""
    for number, message in enumerate(messages):
        if message["role"] == "user" and not (message["content"] or "").strip():
            raise ValueError(f"message {number} (user) is empty, so there is no prompt to answer")
    answers = [message for message in messages if message["role"] == "assistant"]
    if answers and not any(_says_something(message) for message in answers):
        raise ValueError("its answers are all empty, so there is nothing to learn from it")


def _says_something(message: Message) -> bool:
    """Return whether a message has content, tool calls, a thought or anything else beside its role."""
    return any(bool(value) for name, value in message.items() if name != "role")


def _messages(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name!r} is no list of messages but {shown(value)}")
    return list(value)


def _turn(value: Any, role: str, name: str) -> list[Any]:
    """Return the messages of a prompt or an answer: a list of them, or one with that text."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _messages(value, name)


def _answer(row: Mapping[str, Any], names: Sequence[str] = ANSWERS) -> list[Any]:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise ValueError(f"no answer: none of the fields {', '.join(names)} holds one")
    return _turn(row[name], "assistant", name)


def _alpaca(row: Mapping[str, Any]) -> list[Any]:
    entries: list[Any] = []
    for pair in row.get("history") or []:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise ValueError(f"'history' holds no pairs of question and answer but {shown(pair)}")
        entries += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    instruction, given = row["instruction"], row.get("input")
    for name, value in (("instruction", instruction), ("input", given or "")):
        if not isinstance(value, str):
            raise ValueError(f"{name!r} holds no text but {shown(value)}")
    question = f"{instruction}\n\n{given}" if given and instruction else given or instruction
    return [*entries, {"role": "user", "content": question}, *_answer(row, ("output", "response"))]


def _message(entry: Any, number: int) -> Message:
    """Return a message with role and content, content as text; what is null is left out."""
    where = f"message {number}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {shown(entry)}, not an object with role and content")
    message = {name: value for name, value in entry.items() if value is not None}
    if "role" not in message and "from" in message:
        role, content = message.pop("from"), message.pop("value", None)
        message |= {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content}
        if message["role"] not in KNOWN:
            raise ValueError(f"{where}: unknown role {role!r}; known: {', '.join((*KNOWN, *ROLES))}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{where} has no role, only: {', '.join(map(str, entry)) or 'nothing'}")
    message["role"] = ROLES.get(message["role"], message["role"])
    if message["role"] == "function_call":
        return _call(message, where)
    if message.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call, where) for call in message["tool_calls"]]
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise ValueError(f"{where} ({message['role']}) has no content, only: {', '.join(map(str, entry))}")
    return {**message, "content": None if content is None else _text(content, where)}


def _text(content: Any, where: str) -> str:
    """Return content as text; parts of text are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where}: the content is no text but {shown(content)}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else shown(part)
            raise ValueError(f"{where}: the content has a part that is no text ({kind}); only text can be trained on")
        texts.append(text)
    return "".join(texts)


def _call(message: Mapping[str, Any], where: str) -> Message:
    """Return ShareGPT's ``function_call``, a JSON object with name and arguments, as an answer with a tool call."""
    call = _parsed(message.get("content"))
    if not isinstance(call, Mapping):
        raise ValueError(f"{where}: a function_call holds JSON with name and arguments, not {shown(call)}")
    return {"role": "assistant", "content": None, "tool_calls": [_tool_call(call, where)]}


def _tool_call(call: Any, where: str) -> Any:
    """Return a tool call as templates expect it: type and function, its arguments as an object and not as JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise ValueError(f"{where}: a tool call has no function with a name: {shown(call)}")
    function = {**function, "arguments": _parsed(function.get("arguments", {}))}
    rest = {name: value for name, value in call.items() if name not in ("function", *function)}
    return {"type": "function", **rest, "function": function}


def _tools(value: Any) -> Sequence[Any] | None:
    tools = _parsed(value)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"'tools' is no list of functions but {shown(value)}")
    return tools


def _parsed(value: Any) -> Any:
    """Return what a JSON text holds, and anything else (a text that is no JSON too) as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
