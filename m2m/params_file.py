"""Reads a parameter file; whatever is wrong with it becomes one line with file, line and key.

It is read as DVC reads the same file, by `ruamel.yaml`: in YAML 1.2 ``1e-4`` is a number, and ``yes`` and ``010`` are
what they look like.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
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
_KINDS: Mapping[Any, str] = {Mapping: "a block of keys", tuple: "a list", NoneType: "empty"}
_NO_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}


def load_params(path: Path) -> Params:
    """The parameters in a YAML file, complete and checked.

    Raises:
        UserError: the first fault, such as ``params.yaml:12: train.common.seed: is 'x', should be a valid integer``.
    """
    document = _Document(path)
    try:
        return Params.model_validate(document.value)
    except ValidationError as error:
        faults = [_explained(details, document) for details in error.errors(include_url=False)]
        _, line, text = min(faults, key=lambda fault: fault[:2])
        raise UserError(f"{path}:{line}: {text}") from None


class _Document:
    """The content of a file, and on which line each of its keys stands."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[Keys, int] = {(): 1}
        self._path = path
        self._yaml = YAML(typ="safe", pure=True)
        self._nodes = 0
        self.value = self._read()

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the nearest one above it that is there."""
        while keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys]

    def _fault(self, text: str, line: int = 1, keys: Keys = ()) -> UserError:
        return UserError(f"{self._path}:{line}: {_dotted(keys)}{text}")

    def _read(self) -> Any:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            text = content.decode("utf-8-sig")
            if len(content) > MAX_BYTES:
                raise self._fault(f"more than {MAX_BYTES} bytes; expected {_EXPECTED}")
            node = self._yaml.compose(text)
            if node is None:
                raise self._fault(f"empty; expected {_EXPECTED}")
            return self._value(node, (), ())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror}; expected {_EXPECTED}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path}: not UTF-8 text (byte {error.start}); expected {_EXPECTED}") from error
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = f"not valid YAML: {_one_line(error.problem or error.context)}"
            raise self._fault(said, mark.line + 1 if mark else 1) from None
        except ReaderError as error:
            said = f"not valid YAML: {error.reason} (character {error.character!r})"
            raise self._fault(said, text.count("\n", 0, error.position) + 1) from None
        except (ValueError, OverflowError) as error:  # a character or a version that there cannot be
            raise self._fault(f"not valid YAML: {_one_line(str(error))}") from None
        except RecursionError:
            raise self._fault("nested too deeply to be a parameter file") from None

    def _value(self, node: Node, keys: Keys, within: tuple[Node, ...]) -> Any:
        """The value of a node; notes the line of each key, refuses a key given twice and a node that holds itself."""
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > MAX_NODES:  # aliases of aliases grow without end
            raise self._fault(f"more than {MAX_NODES} values; expected {_EXPECTED}", line, keys)
        if node in within:
            raise self._fault("refers to itself; write the value out", line, keys)
        if str(node.tag).removeprefix("tag:yaml.org,2002:") not in _NO_TAG:
            raise self._fault(f"tag {node.tag!r} not understood; leave it out", line, keys)
        within = (*within, node)
        if isinstance(node, SequenceNode):
            self.lines |= {(*keys, index): item.start_mark.line + 1 for index, item in enumerate(node.value)}
            return tuple(self._value(item, (*keys, index), within) for index, item in enumerate(node.value))
        if isinstance(node, MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key_line = key_node.start_mark.line + 1
                if not isinstance(key_node, ScalarNode):
                    raise self._fault("a key that is no plain word; expected 'name: value'", key_line, keys)
                inner = (*keys, key := self._text(key_node, keys))
                if key in mapping:
                    raise self._fault(f"given twice (first on line {self.lines[inner]}); keep one", key_line, inner)
                self.lines[inner] = key_line
                mapping[key] = self._value(value_node, inner, within)
            return mapping
        assert isinstance(node, ScalarNode)  # there is no fourth kind
        text = self._text(node, keys)
        try:
            return self._yaml.constructor.construct_object(node) if node.tag in _NO_TEXT else text
        except ValueError:
            raise self._fault(f"a number of {len(text)} digits; expected a shorter one", line, keys) from None

    def _text(self, node: ScalarNode, keys: Keys) -> str:
        """What is written there; refuses what can be escaped in YAML, but neither shown nor given to a system."""
        text = str(node.value)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            said = f"{_shown(text)} holds a NUL or half a character; mend it"
            raise self._fault(said, node.start_mark.line + 1, keys)
        return text


def _explained(details: ErrorDetails, document: _Document) -> tuple[bool, int, str]:
    """One of pydantic's findings: whether the key may be there, its line, and words with the keys as in the file.

    A mistyped key is also a missing one: what should not be there is said first.
    """
    keys, kind = tuple(_without_tags(details["loc"], document.value)), details["type"]
    if kind == "extra_forbidden":
        known = list(_schema_at(keys[:-1], document.value).get("properties", ()))
        near = difflib.get_close_matches(str(keys[-1]), known, n=1)
        right = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"
        return False, document.line(keys), f"{_dotted(keys)}unknown key; {right}"
    if kind == "value_error":  # a rule of ours for a whole block, whose words say all
        while keys not in document.lines:  # the last one names the member of a union
            keys = keys[:-1]
        return True, document.line(keys), f"{_dotted(keys)}{_one_line(str(details['ctx']['error']))}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        keys = (*keys, "source")
    if kind in ("missing", "union_tag_not_found"):
        text = "missing; every key must be there"
    elif kind == "union_tag_invalid":
        text = f"is {details['ctx']['tag']!r}, should be {details['ctx']['expected_tags']}"
    else:
        text = f"is {_shown(details['input'])}, {_expectation(details['msg'])}"
    description = _one_line(_schema_at(keys, document.value).get("description"))
    return True, document.line(keys), f"{_dotted(keys)}{text}" + (f" ({description})" if description else "")


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
        block = value if isinstance(value, Mapping) else {}
        reference = schema.get("$ref")
        if "discriminator" in schema:
            tag = block.get(schema["discriminator"]["propertyName"])
            reference = schema["discriminator"]["mapping"].get(tag) if isinstance(tag, str) else None
        if reference:
            # What is said of the key itself goes before what is said of its type.
            own = {name: text for name, text in schema.items() if name == "description"}
            schema = {**root["$defs"][reference.removeprefix("#/$defs/")], **own}
        if key is not None:
            schema, value = schema.get("properties", {}).get(key, {}), block.get(key)
    return schema


def _expectation(message: str) -> str:
    """Pydantic's message in the words of a YAML file."""
    message = re.sub(r"a valid dictionary or instance of \w+", "a block of keys", message)
    return _one_line(re.sub(r"^\w+ should", "should", message).replace("valid tuple", "list"))


def _shown(value: Any) -> str:
    for kind, words in _KINDS.items():
        if isinstance(value, kind):
            return words
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(keys: Keys) -> str:
    """``train.common.seed: ``, to go before what is said of this key; nothing for the file as a whole."""
    names = (str(key) if str(key).isprintable() and len(str(key)) <= 60 else repr(key)[:60] for key in keys)
    return ".".join(names) + ": " if keys else ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
