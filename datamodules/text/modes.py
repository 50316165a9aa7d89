"""Modes of a conversation (thinking or not): an option of the chat template, or a tag in the last question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datamodules.text.chat_labels import QUESTION, Rendering
from datamodules.text.conversations import Message
from datamodules.text.rows import shown

Mode = Literal["thinking", "fast", "auto"]
MODES: tuple[Mode, ...] = ("thinking", "fast", "auto")
OPTION_VALUES = {"thinking": True, "fast": False}  # auto: the template decides


def mode_of(row: Any, field: str | None) -> Mode | None:
    """Return a row's mode: thinking, fast or auto; true is thinking, false is fast; None where the row says none.

    Raises:
        ValueError: the field holds something else.
    """
    value = None if field is None or not isinstance(row, Mapping) else row.get(field)
    if value is None:
        return None
    if isinstance(value, bool):
        return "thinking" if value else "fast"
    for mode in MODES:
        if value == mode:
            return mode
    raise ValueError(f"{field!r} names no mode but holds {shown(value)}: write {', '.join(MODES)}, true or false")


def template_options(mode: Mode | None, option: str | None) -> dict[str, bool]:
    """Return what the template is told of a mode: nothing without an option's name, and nothing of auto."""
    return {option: OPTION_VALUES[mode]} if option and mode in OPTION_VALUES else {}


def tagged(messages: Sequence[Message], tag: str) -> Sequence[Message]:
    """Return messages with a tag at the end of the last question, unless it has it already.

    Raises:
        ValueError: there is no question.
    """
    if not tag:
        return messages
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError(f"it has no message of the user that could carry its mode's tag {tag!r}")
    content = messages[last]["content"] or ""
    if content.endswith(tag.rstrip()):
        return messages
    question = {**messages[last], "content": content + tag}
    return [*messages[:last], question, *messages[last + 1 :]]


def check_modes(tokenizer: Any, field: str, option: str | None, tags: Mapping[Mode, str]) -> None:
    """Refuse modes that would change nothing.

    Raises:
        ValueError: the template does not read the option, and there are no tags.
    """
    if any(tags.values()):
        return
    answered = [*QUESTION, {"role": "assistant", "content": "b"}]
    written = [
        [rendering.text(QUESTION, True), rendering.text(answered, False)]
        for rendering in (Rendering(tokenizer, None, {option: value} if option else None) for value in (True, False))
    ]
    if written[0] == written[1]:
        raise ValueError(
            f"mode_field={field!r}, but modes would change nothing: the chat template does not read "
            f"mode_option={option!r}, and mode_tags is empty; name the option that it reads, or give tags"
        )
