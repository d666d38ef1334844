"""YAML from files that anyone may have written: bounded in size, depth and expansion, and without surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from act.core.errors import ActError, Missing, brief
from act.core.near import near_path
from act.core.plain import DEEPEST, LARGEST

MOST_BYTES = 1 << 17  # a second of parsing; a recipe has a few kilobytes
MOST_NODES = 20_000  # after aliases are expanded


def read_yaml(path: Path, expected: str) -> tuple[yaml.Node, Any]:
    """The root node, which knows its lines, and the data of a YAML file.

    Values are texts, numbers, truth values and null: a date or ``1:30`` is a text, and tags such as ``!!int`` are
    refused.

    Args:
        path: the file.
        expected: what it should hold, for the messages.

    Raises:
        ActError: it cannot be read, is no YAML in UTF-8, or too long, deep or large; a key is given twice.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ActError(f"{path} is longer than {MOST_BYTES >> 10} kB; expected {expected}")
        loader = _Loader(text.decode())
        loader.name = path.name
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except FileNotFoundError as error:
        raise Missing(f"no such file: {path}; expected {expected}", near_path(str(path))) from error
    except OSError as error:
        raise ActError(f"cannot read {path}: {error.strerror}; expected {expected}") from error
    except _Refused as error:
        raise ActError(f"{path}: {error.problem} (line {error.problem_mark.line + 1})") from error
    except yaml.MarkedYAMLError as error:
        raise ActError(f"{path} is not YAML: {_slip(error)}") from error
    except UnicodeDecodeError as error:
        raise ActError(f"{path} is not YAML: it is no text in UTF-8; expected {expected}") from error
    except yaml.YAMLError as error:
        raise ActError(f"{path} is not YAML: {brief(error, 300)}") from error


_SLIPS = {
    "expected <block end>": "line {line} is indented otherwise than the lines that it belongs to",
    "mapping values are not allowed": "line {line} has a colon where no key can be; indent it as its neighbours, "
    "or quote a text with a colon",
    "could not find expected ':'": "line {begun} has no colon after its key",
    "cannot start any token": "line {line} has a character that begins no value, such as a tab; indent with spaces, or "
    "quote the text",
    "unexpected end of stream": "the quote that line {begun} opens is not closed",
    "expected ',' or": "the bracket that line {begun} opens is not closed in line {line}",
    "expected the node content": "line {line} ends a list or section where a value belongs",
    "found another document": "line {line} begins a second document; leave out the line of dashes",
    "undefined alias": "line {line} has a * of which there is no &; quote a text that begins with it",
    "while scanning an alias": "line {line} begins a text with * or &; quote it",
    "while scanning an anchor": "line {line} begins a text with * or &; quote it",
}
"""What the parser of YAML says of a slip, and what we say."""


def _slip(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, the line first, as a phrase."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    begun = error.context_mark.line + 1 if error.context_mark else line
    said = f"{error.context} {error.problem}"
    ours = next((ours for theirs, ours in _SLIPS.items() if theirs in said), "line {line} cannot be read: {problem}")
    return ours.format(line=line, begun=begun, problem=error.problem)


class _Refused(yaml.MarkedYAMLError):  # type: ignore[misc]  # yaml has no types
    """YAML that is refused here."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """A safe loader that counts what it makes, and refuses what only an attack or a slip would hold."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[int, int] = {}  # by identity of a complete node, with its aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before = self._nodes
        self._depth += 1
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _Refused(problem="an alias inside what it stands for", problem_mark=event.start_mark)
            self._nodes += self._sizes[id(node)]
        else:
            if getattr(event, "tag", None) is not None:
                tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
                problem = f"the tag {tag:.40}, expected plain values"
                raise _Refused(problem=problem, problem_mark=event.start_mark)
            self._nodes += 1
            if self._depth > DEEPEST:
                problem = f"it is nested more than {DEEPEST} levels deep"
                raise _Refused(problem=problem, problem_mark=event.start_mark)
            node = super().compose_node(parent, index)
        if self._nodes > MOST_NODES:
            problem = f"it has more than {MOST_NODES:,} values"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        self._sizes[id(node)] = self._nodes - before
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r:.40} is given twice"
                    raise _Refused(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        try:
            node.value.encode()
        except UnicodeEncodeError as error:
            raise _Refused(problem="half a character", problem_mark=node.start_mark) from error
        return node

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)
        base_60 = tag.endswith((":int", ":float")) and ":" in str(value)  # which takes quadratic time
        return "tag:yaml.org,2002:str" if base_60 else tag

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            number = int(super().construct_yaml_int(node))
            if abs(number) <= LARGEST:
                return number
        except ValueError:  # thousands of digits, or none after a prefix
            pass
        problem = f"{node.value!r:.40} is no number that can be used"
        raise _Refused(problem=problem, problem_mark=node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
