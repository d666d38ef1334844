"""Conversations as ShareGPT has them: turns ``from`` somebody with a ``value``, read as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from act.core.errors import ActError

COLUMNS = ("conversations", "conversation")
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bing", "bard"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}


def column_of(record: Mapping[str, Any]) -> str | None:
    """The column that holds such a conversation, or messages under its name; None if there is none."""
    return next((name for name in COLUMNS if isinstance(record.get(name), list)), None)


def messages_of(turns: list[Any]) -> list[Any]:
    """The messages of a conversation; a turn that has a role already is left as it is.

    Raises:
        ActError: a turn by somebody unknown.

    >>> from act.data.sharegpt import messages_of
    >>> messages_of([{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}])
    [{'role': 'user', 'content': '2 + 3?'}, {'role': 'assistant', 'content': '5'}]
    """
    return [_message(number, turn) if isinstance(turn, Mapping) else turn for number, turn in enumerate(turns)]


def _message(number: int, turn: Mapping[str, Any]) -> Mapping[str, Any]:
    if "from" not in turn:
        return turn
    role = ROLES.get(str(turn["from"]).lower())
    if role is None:
        raise ActError(
            f"turn {number} of the conversation is from {turn['from']!r:.60}; expected one of {', '.join(ROLES)}"
        )
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": role, "content": turn.get("value"), **others}
