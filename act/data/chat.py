"""Conversations as a model's chat template writes them, with checks that nothing of prompt and answer is left out."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from act.core.errors import ActError, brief, option
from act.data.columns import Text, ignore_option, lost_of, texts_of
from act.data.conversation import REASONING, Conversation, Message, calls_of, texts_in, unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHANGE = "give the record as prompt and completion, or another chat template"
_THOUGHT = re.compile(r".*</think>", re.DOTALL)


@dataclass(frozen=True)
class Written:
    """A conversation as text.

    Attributes:
        before: for each answer, the text that makes the model begin it.
        after: for each answer, the text up to its end; then the whole, if more follows.
    """

    before: list[str]
    after: list[str]

    @property
    def whole(self) -> str:
        """All of the conversation."""
        return self.after[-1]


def written(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turns: Sequence[int]) -> Written:
    """A conversation in the first of its forms of which the template leaves nothing out.

    Args:
        turns: numbers of the messages that are answers; one behind the last: of the answer that is still to come.

    Raises:
        ActError: the template refuses the messages, or drops or rewrites a part of the prompt or of an answer.
    """
    first: ActError | None = None
    for form in conversation.forms():
        try:
            found = _written(tokenizer, form, turns)
        except ActError as error:
            first = first or error
            continue
        _require_keys(conversation.messages, found.whole)
        return found
    assert first
    raise first


def require_answer(message: Message, span: str) -> None:
    """Raise :class:`ActError` unless all that the assistant says in ``message`` stands in ``span``."""
    text = Text(span)
    said = {"content": texts_in(message), **{key: [*texts_of(message.get(key))] for key in (*REASONING, "refusal")}}
    lost = {key: part for key, parts in said.items() for part in parts if not text.has(part)}
    called = "tool_calls" if message.get("tool_calls") else "function_call"
    if calls := [name for name, arguments in calls_of(message) if not _has_call(text, name, arguments)]:
        lost[called] = calls[0]
    for key, part in lost.items():
        ignore = "" if key == "content" else f", or leave it out on purpose ({ignore_option(key)})"
        raise ActError(
            f"the chat template does not write all of the answer: its {key} is {_start(part)}, and the template "
            f"writes {_start(span)}; {CHANGE}{ignore}"
        )
    if any(text.has(str(part)) for part in _objects(message)):
        raise ActError(f"the chat template takes no list of texts as content; {CHANGE}")


def why_not_a_beginning(prompt: str, whole: str) -> str:
    """What the user can change if the tokens of a template's prompt do not begin those of the whole record."""
    if whole.startswith(prompt):
        return (
            "the tokenizer joins the end of the template's prompt with the beginning of the answer; "
            "give the record as prompt and completion"
        )
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    ends = _start(prompt[same:]) if prompt[same:] else "nothing more"
    return f"the chat template ends the prompt with {ends} where the whole record has {_start(whole[same:])}; {CHANGE}"


def _written(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turns: Sequence[int]) -> Written:
    messages = conversation.messages

    def render(end: int, *, prompt: bool) -> str:
        return _rendered(tokenizer, messages[:end], conversation.options, prompt)

    before = [render(turn, prompt=True) for turn in turns]
    after = [render(turn + 1, prompt=False) for turn in turns]
    if turns[-1] + 1 < len(messages):
        after.append(render(len(messages), prompt=False))
    found = Written(before, after)
    _require_prompt(tokenizer, conversation, turns, found.whole)
    for turn, start, end in zip(turns, before, after, strict=False):
        if turn < len(messages) and end.startswith(start):  # if not, the tokens will tell
            require_answer(messages[turn], end[len(start) :])
            if "add_generation_prompt" not in str(tokenizer.chat_template):
                said = next(filter(None, map(str.strip, texts_in(messages[turn]))), None)
                _warn_of_header(end[len(start) :].partition(said)[0].strip() if said else "")
    return found


@functools.cache  # once, however many records there are
def _warn_of_header(header: str) -> None:
    if header:
        log.warning(
            "the chat template has no add_generation_prompt, so %s, which it writes before an answer, counts as a part "
            "of every answer; give one that has it (%s)",
            *(_start(header), option("--chat-template", "tokenizer.chat_template")),
        )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], options: Mapping[str, Any], prompt: bool
) -> str:
    if not messages:
        raise ActError("the first message is by the assistant, so nothing comes before its answer; add a prompt")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **options)
    except Exception as error:  # jinja2 and templates raise anything
        said = brief(error)
        system = messages[0]["role"] == "system" and "system" in said.lower()
        advice = "move the system text into the first message by the user" if system else f"change them, or {CHANGE}"
        raise ActError(f"the chat template refused the messages: {said}; {advice}") from error
    return str(text)


def _require_prompt(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turns: Sequence[int], whole: str
) -> None:
    text, options = Text(whole), conversation.options
    for number, message in enumerate(conversation.messages):
        if number not in turns and (lost := _lost_of(message, text)) is not None:
            raise ActError(
                f"the chat template leaves out or rewrites message {number} by {message['role']!r:.60}, "
                f"{_start(lost)}; move it into another message, or {CHANGE}"
            )
    names = [str(tool.get("function", tool).get("name", "")) for tool in options.get("tools", ())]
    papers = [max(texts_of(paper), key=len, default="") for paper in options.get("documents", ())]
    for column, parts in {"tools": names, "documents": papers}.items():
        if lost := next((part for part in parts if not text.has(part)), None):
            raise ActError(
                f"the chat template does not write {_start(lost)} of the column {column}; give a template that does, "
                f"or leave the column out on purpose ({ignore_option(column)})"
            )
    source = str(tokenizer.chat_template)
    for name in options.keys() - {"tools", "documents", "chat_template"}:
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise ActError(
                f"the chat template has no setting {name!r:.60}, which chat_template_kwargs gives; leave it out of the "
                f"record, or ignore all of them on purpose ({ignore_option('chat_template_kwargs')})"
            )


def _require_keys(messages: list[Message], whole: str) -> None:
    text = Text(whole)
    for number, message in enumerate(messages):
        if lost := lost_of(unread_of(message), text):
            raise ActError(
                f"message {number} by {message['role']!r:.60} has {', '.join(lost)}, which the chat template does not "
                "write; write what belongs to the prompt into its content, or ignore the rest on purpose "
                f"({ignore_option(*lost)})"
            )


def _lost_of(message: Message, text: Text) -> str | None:
    """What the template left out of a message of the prompt; thoughts of earlier turns it may leave out."""
    parts = texts_in(message)
    if message["role"] == "assistant":
        if calls := calls_of(message):
            parts = [name for name, _ in calls]
        else:
            parts = [_THOUGHT.sub("", part) for part in parts]
    if lost := [part for part in parts if not text.has(part)]:
        return lost[0]
    return next((str(part) for part in _objects(message) if text.has(str(part))), None)


def _objects(message: Message) -> list[Mapping[str, Any]]:
    """The parts of a message's content that are objects; a template that takes none writes them as Python does."""
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _has_call(text: Text, name: str, arguments: Any) -> bool:
    """Whether a call stands in a text: its arguments as JSON or value by value, but not as Python writes them."""
    if not text.has(name):
        return False
    forms = [json.dumps(arguments), json.dumps(arguments, ensure_ascii=False)]
    if isinstance(arguments, str):
        return text.has(arguments) and not any(form in text.text for form in forms if "\\" in form)
    if any("".join(form.split()) in "".join(text.text.split()) for form in forms):
        return True
    return str(arguments) not in text.text and all(map(text.has, texts_of(arguments)))


def _start(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
