"""What a record says as a conversation: its messages, and the tools, documents and settings that a template takes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from act.core.errors import ActError

Message = dict[str, Any]

SYSTEM = ("system", "system_prompt")
TEMPLATE = ("tools", "documents", "chat_template_kwargs")
"""Columns that are passed to the chat template."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that hold what the assistant thought before its answer; which one a template reads differs."""

FLAGS = ("weight", "train", "loss")
"""Keys of a message that say whether it is to be learned."""

_TO_CONTINUE = ("prefix", "partial", "continue_final_message", "add_generation_prompt")
MEDIA = ("audio", "image", "images", "video", "videos")
"""Columns, and keys of messages, that hold more than text."""
PLACE = {"type": "image"}
"""A part of a message's content in whose place an image belongs."""

_ONLY_TEXT = "only text can be read, so leave records with images, audio or video out"
_TEXT_PARTS = ("text", "input_text", "output_text", "thinking", "reasoning")
_OF_A_PART = ("type", *_TEXT_PARTS)
_OF_A_MESSAGE = ("role", "content", *FLAGS)
_OF_THE_ASSISTANT = ("tool_calls", "function_call", *REASONING)


@dataclass(frozen=True)
class Conversation:
    """Messages, and what else the chat template takes; null keys are left out.

    Attributes:
        messages: each with a role.
        options: keywords of the template: ``tools``, ``documents``, and those in ``chat_template_kwargs``.
        columns: the columns of the record that are in it.
    """

    messages: list[Message]
    options: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def forms(self) -> Iterator[Conversation]:
        """This conversation in the forms that templates expect.

        Arguments are objects or JSON, texts apart or joined, and reasoning has its own name or each that there is.
        """
        tried: list[list[Message]] = []
        for reasoning, arguments, content in product(
            (_as_given, _by_every_name), (_as_object, _as_json), (_as_given, _as_text)
        ):
            messages = [reasoning(_with_calls(content(message), arguments)) for message in self.messages]
            if messages not in tried:
                tried.append(messages)
                yield Conversation(messages, self.options, self.columns)


def conversation_of(
    record: Mapping[str, Any], messages: Any, columns: tuple[str, ...], *, ignored: Collection[str] = ()
) -> Conversation:
    """The conversation of a record.

    Args:
        record: the columns of a record.
        messages: its messages, without those that other columns hold.
        columns: the columns from which ``messages`` come.
        ignored: keys of messages to leave out.

    Raises:
        ActError: malformed messages, tools, documents, history or settings; a message that holds more than text.
    """
    read = list(columns)
    turns = [_without(ignored, turn) for turn in _messages(messages)]
    if record.get("history") and "messages" not in columns:
        turns, read = [*(_without(ignored, turn) for turn in _history(record["history"])), *turns], [*read, "history"]
    for column in SYSTEM:
        if (system := record.get(column)) and isinstance(system, str) and system.strip():
            first = turns[0]
            if first["role"] not in ("system", "developer"):
                turns = [{"role": "system", "content": system}, *turns]
            if turns[0].get("content") == system:
                read.append(column)
    options = _options(record)
    for name in _TO_CONTINUE:
        if record.get(name) is True or any(message.get(name) is True for message in turns):
            raise ActError(
                f"{name} is set, so the last message is only the beginning of an answer, which the chat template "
                "would end; give prompt and completion"
            )
    read += [name for name in _TO_CONTINUE if record.get(name) is False]
    return Conversation(turns, options, (*read, *TEMPLATE))


def flagged(messages: list[Message]) -> list[bool]:
    """Whether each message is to be learned, as its flags say; without a flag it is.

    Raises:
        ActError: a flag is neither 0 nor 1.
    """
    learned = []
    for number, message in enumerate(messages):
        flags = {name: message[name] for name in FLAGS if name in message}
        for name, value in flags.items():
            if not (isinstance(value, bool | int | float) and value in (0, 1)):
                raise ActError(f"{name} of message {number} is {value!r:.60}; expected 0 (not learned) or 1")
        learned.append(all(flags.values()))
    return learned


def without_nulls(value: Any) -> Any:
    """A copy without the keys whose value is null: a table has them wherever another of its rows has a value."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def calls_of(message: Message) -> list[tuple[str, Any]]:
    """The name and arguments of every tool call in a message."""
    calls = [call.get("function", call) for call in message.get("tool_calls", ())]
    calls += [message["function_call"]] if isinstance(message.get("function_call"), Mapping) else []
    return [(str(call.get("name", "")), call.get("arguments", {})) for call in calls]


def texts_in(message: Message) -> list[str]:
    """The texts in the content of a message."""
    content = message.get("content", "")
    if isinstance(content, str):
        return [content]
    if isinstance(content, Mapping):
        return [json.dumps(content, ensure_ascii=False)]
    return [str(_text_of(part)) for part in content if part != PLACE]


def unread_of(message: Message) -> dict[str, Any]:
    """The keys of a message, and of the parts of its content, that are not read here; a template may write them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    unread = {key: value for part in parts for key, value in part.items() if key not in _OF_A_PART}
    read = (*_OF_A_MESSAGE, *(_OF_THE_ASSISTANT if message["role"] == "assistant" else ()))
    return unread | {key: value for key, value in message.items() if key not in read and value is not False}


def parsed(value: Any) -> Any:
    """A value that a table may hold as JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return without_nulls(value)


def _messages(given: Any, *, history: bool = False) -> list[Message]:
    if not (isinstance(given, list) and given and all(isinstance(one, Mapping) for one in given)):
        raise ActError(f"messages must be a list of objects with role and content, got {given!r:.60}")
    messages: list[Message] = [_with_parts(message) for message in without_nulls(given)]
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise ActError(f"message {number} has the role {role!r:.60}; expected such as user or assistant")
        if not isinstance(message.get("tool_calls", []), list) or not all(
            isinstance(call, Mapping) and isinstance(call.get("function", call), Mapping)
            for call in message.get("tool_calls", [])
        ):
            raise ActError(f"tool_calls of message {number} is {message['tool_calls']!r:.60}; expected a list of calls")
        if media := [key for key in MEDIA if message.get(key)]:
            raise ActError(f"message {number} has {media[0]}; {_ONLY_TEXT}")
        earlier = history or number + 1 < len(messages)
        if content is None and role == "assistant" and earlier and not _says(message):
            raise ActError(f"message {number} by 'assistant' is empty; expected text or tool calls")
        if isinstance(content, list) and content:
            for part in content:
                _require_text(part, number)
        elif not (
            isinstance(content, str)
            or (role == "tool" and isinstance(content, Mapping))
            or (role == "assistant" and content is None)
        ):
            others = ", ".join(key for key in message if key not in ("role", "content"))
            there = f", and beside it {others}" if content is None and others else ""
            raise ActError(f"message {number} by {role!r:.60} has the content {content!r:.60}{there}; expected text")
    return messages


def _require_text(part: Any, number: int) -> None:
    if part == PLACE or (isinstance(part, Mapping) and isinstance(_text_of(part), str)):
        return
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise ActError(f"message {number} has a part of type {kind!r:.60} in its content; {_ONLY_TEXT}")


def _without(ignored: Collection[str], message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key not in ignored}
    if isinstance(kept.get("content"), list):
        kept["content"] = [
            {key: value for key, value in part.items() if key in _OF_A_PART or key not in ignored}
            for part in kept["content"]
        ]
    return kept


def _with_parts(message: Message) -> Message:
    """The message with texts that stand in a list as parts of its content."""
    parts = message.get("content")
    if not isinstance(parts, list) or not any(isinstance(part, str) for part in parts):
        return message
    named = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {**message, "content": named}


def _says(message: Message) -> bool:
    return any(message.get(key) for key in _OF_THE_ASSISTANT)


def _text_of(part: Mapping[str, Any]) -> Any:
    """The text in a part of a message's content; None if it is no text."""
    kind = part.get("type", "text")
    return part.get("text", part.get(kind)) if kind in _TEXT_PARTS else None


def _history(given: Any) -> list[Message]:
    if isinstance(given, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in given):
        roles = ("user", "assistant")
        return _messages(
            [{"role": role, "content": text} for turn in given for role, text in zip(roles, turn, strict=True)],
            history=True,
        )
    if isinstance(given, list) and all(isinstance(turn, Mapping) for turn in given):
        return _messages(given, history=True)
    raise ActError(f"history is {given!r:.60}; expected messages, or pairs of a question and its answer")


def _options(record: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("tools", "documents"):
        given = parsed(record.get(name))
        if isinstance(given, list) and (held := [parsed(one) for one in given]) and isinstance(held[0], Mapping):
            given = held
        if not given:
            continue
        if not (isinstance(given, list) and all(isinstance(one, Mapping) for one in given)):
            raise ActError(f"{name} is {record[name]!r:.60}; expected a list of objects, or one as JSON text")
        options[name] = given
    more = parsed(record.get("chat_template_kwargs")) or {}
    if not isinstance(more, Mapping) or {"messages", "tools", "documents", "tokenize"} & more.keys():
        raise ActError(f"chat_template_kwargs is {more!r:.60}; expected an object of the template's own settings")
    return {**options, **more}


def _as_given(message: Message) -> Message:
    return message


def _by_every_name(message: Message) -> Message:
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {**dict.fromkeys(REASONING, reasoning), **message}


def _as_text(message: Message) -> Message:
    parts = message.get("content")
    if not isinstance(parts, list) or any(isinstance(part, Mapping) and "text" not in part for part in parts):
        return message
    return {**message, "content": "".join(texts_in(message))}


def _as_object(arguments: Any) -> Any:
    found = parsed(arguments)
    return found if isinstance(found, Mapping) else arguments


def _as_json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_calls(message: Message, arguments: Any) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        inner = call.get("function", call)
        inner = {**inner, "arguments": arguments(inner["arguments"])} if "arguments" in inner else inner
        calls.append({**call, "function": inner} if "function" in call else inner)
    return {**message, "tool_calls": calls}
