"""Reads a parameter file; whatever is wrong with it becomes one line with file, line and key.

It is read as DVC reads the same file, by `ruamel.yaml`: in YAML 1.2 ``1e-4`` is a number, and ``yes`` and ``010`` are
what they look like.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from m2m.errors import UserError
from m2m.params import Params

Key = str | int
Keys = tuple[Key, ...]

_EXPECTED = "a complete parameter file such as profiles/embedded.yaml"
MAX_BYTES = 1 << 20
MAX_NODES = 10_000
"""A parameter file has some hundreds of values."""

_NO_TAG = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
"""What a value is by its looks."""
_NO_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}


def load_params(path: Path) -> Params:
    """The parameters in a YAML file, complete and checked.

    Raises:
        UserError: the first fault, such as ``params.yaml:12: train.common.seed: is 'x', should be a valid integer``.
    """
    document = _read(path)
    try:
        return Params.model_validate(document.value)
    except ValidationError as error:
        faults = [_Fault.explain(details, document) for details in error.errors(include_url=False)]
        first = min(faults, key=lambda fault: (not fault.unknown, fault.line))  # a mistyped key is also a missing one
        raise UserError(f"{path}:{first.line}: {first.text}") from None


@dataclass
class _Document:
    """The content of a file, and on which line each of its keys stands."""

    path: Path
    yaml: YAML = field(default_factory=lambda: YAML(typ="safe", pure=True))
    value: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)
    nodes: int = 0
    """How many values have been seen so far."""

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the nearest one above it that is there."""
        while keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys]

    def fault(self, line: int, keys: Keys, text: str) -> UserError:
        return UserError(f"{self.path}:{line}: {_dotted(keys)}{text}")


def _read(path: Path) -> _Document:
    document = _Document(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; expected {_EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected {_EXPECTED}") from error
    try:
        if len(content) > MAX_BYTES:
            raise document.fault(1, (), f"more than {MAX_BYTES} bytes; expected {_EXPECTED}")
        node = document.yaml.compose(text)
        if node is None:
            raise document.fault(1, (), f"empty; expected {_EXPECTED}")
        document.lines[()] = 1
        document.value = _construct(node, document, (), ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise document.fault(line, (), f"not valid YAML: {_one_line(error.problem or error.context)}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise document.fault(line, (), f"not valid YAML: {error.reason} (character {error.character!r})") from None
    except (ValueError, OverflowError) as error:  # a character or a version that there cannot be
        raise document.fault(1, (), f"not valid YAML: {_one_line(str(error))}") from None
    except RecursionError:
        raise document.fault(1, (), "nested too deeply to be a parameter file") from None
    return document


def _construct(node: Node, document: _Document, keys: Keys, within: tuple[Node, ...]) -> Any:
    """The value of a node; notes the line of each key, refuses a key given twice and a node that contains itself."""
    line = node.start_mark.line + 1
    document.nodes += 1
    if document.nodes > MAX_NODES:  # aliases of aliases grow without end
        raise document.fault(line, keys, f"more than {MAX_NODES} values; expected {_EXPECTED}")
    if node in within:
        raise document.fault(line, keys, "refers to itself; write the value out")
    if str(node.tag).removeprefix("tag:yaml.org,2002:") not in _NO_TAG:
        raise document.fault(line, keys, f"tag {node.tag!r} not understood; leave it out")
    within = (*within, node)
    if isinstance(node, SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*keys, index)] = item.start_mark.line + 1
            items.append(_construct(item, document, (*keys, index), within))
        return tuple(items)
    if isinstance(node, MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise document.fault(key_line, keys, "a key that is no plain word; expected 'name: value'")
            key = _text(key_node, document, keys)
            if key in mapping:
                first = document.lines[(*keys, key)]
                raise document.fault(key_line, (*keys, key), f"given twice (first on line {first}); keep one")
            document.lines[(*keys, key)] = key_line
            mapping[key] = _construct(value_node, document, (*keys, key), within)
        return mapping
    assert isinstance(node, ScalarNode)  # there is no fourth kind
    text = _text(node, document, keys)
    try:
        return document.yaml.constructor.construct_object(node) if node.tag in _NO_TEXT else text
    except ValueError:
        raise document.fault(line, keys, f"a number of {len(text)} digits; expected a shorter one") from None


def _text(node: ScalarNode, document: _Document, keys: Keys) -> str:
    """What is written there; refuses what can be escaped in YAML, but neither shown nor given to a system."""
    text = str(node.value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise document.fault(node.start_mark.line + 1, keys, f"{_shown(text)} holds a NUL or half a character; mend it")
    return text


@dataclass(frozen=True)
class _Fault:
    line: int
    text: str
    unknown: bool = False
    """Whether it is a key that should not be there."""

    @classmethod
    def explain(cls, details: ErrorDetails, document: _Document) -> _Fault:
        """One of pydantic's findings, in words, with the keys as they stand in the file."""
        keys = tuple(_without_tags(details["loc"], document.value))
        match details["type"]:
            case "extra_forbidden":
                known = list(_schema_at(keys[:-1], document.value).get("properties", ()))
                near = difflib.get_close_matches(str(keys[-1]), known, n=1)
                right = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"
                return cls(document.line(keys), f"{_dotted(keys)}unknown key; {right}", unknown=True)
            case "missing":
                text = "missing; every key must be there"
            case "union_tag_not_found":
                keys = (*keys, "source")
                text = "missing; every key must be there"
            case "union_tag_invalid":
                keys = (*keys, "source")
                text = f"is {details['ctx']['tag']!r}, should be {details['ctx']['expected_tags']}"
            case "value_error":  # a rule of ours for a whole block, whose words say all
                while keys not in document.lines:  # the last one names the member of a union
                    keys = keys[:-1]
                return cls(document.line(keys), f"{_dotted(keys)}{_one_line(str(details['ctx']['error']))}")
            case _:
                text = f"is {_shown(details['input'])}, {_expectation(details['msg'])}"
        description = _one_line(_schema_at(keys, document.value).get("description"))
        return cls(document.line(keys), f"{_dotted(keys)}{text}" + (f" ({description})" if description else ""))


def _without_tags(location: Keys, value: Any) -> Iterator[Key]:
    """The keys of the file in pydantic's location, which also names the chosen member of each union."""
    for depth, key in enumerate(location):
        if isinstance(value, Mapping) and key in value:
            value = value[str(key)]
        elif isinstance(value, tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        elif depth + 1 < len(location):
            continue
        yield key


@cache
def _schema() -> Mapping[str, Any]:
    return Params.model_json_schema()


def _schema_at(keys: Keys, value: Any) -> Mapping[str, Any]:
    """The JSON schema of what may stand under `keys`, unions decided by the values there; empty where there is none."""
    schema = root = _schema()
    for key in (*keys, None):
        if "discriminator" in schema:
            tag = value.get(schema["discriminator"]["propertyName"]) if isinstance(value, Mapping) else None
            reference = schema["discriminator"]["mapping"].get(tag) if isinstance(tag, str) else None
        else:
            reference = schema.get("$ref")
        if reference:
            # What is said of the key itself goes before what is said of its type.
            own = {name: text for name, text in schema.items() if name == "description"}
            schema = {**root["$defs"][reference.removeprefix("#/$defs/")], **own}
        if key is None:
            break
        schema = schema.get("properties", {}).get(key, {})
        value = value.get(key) if isinstance(value, Mapping) else None
    return schema


def _expectation(message: str) -> str:
    """Pydantic's message in the words of a YAML file."""
    message = re.sub(r"a valid dictionary or instance of \w+", "a block of keys", message)
    return _one_line(re.sub(r"^\w+ should", "should", message).replace("valid tuple", "list"))


def _shown(value: Any) -> str:
    match value:
        case Mapping():
            return "a block of keys"
        case tuple():
            return "a list"
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case _:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(keys: Keys) -> str:
    """``train.common.seed: ``, to go before what is said of this key; nothing for the file as a whole."""
    names = (str(key) if str(key).isprintable() and len(str(key)) <= 60 else repr(key)[:60] for key in keys)
    return ".".join(names) + ": " if keys else ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
