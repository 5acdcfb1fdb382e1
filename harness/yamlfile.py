# SPDX-License-Identifier: GPL-2.0-or-later
"""YAML files into pydantic models, with line and column in every complaint.

PyYAML reads YAML 1.1, in which ``52:54:00:12:34:56`` is a number, ``on`` is true, and the last of two equal
keys wins in silence. Here only its scanner and composer are used. Scalars follow the YAML 1.2 core schema,
narrowed: ``true`` and ``false`` are booleans, ``null``, ``~`` and nothing are null, decimal integers without
leading zeros, ``0x`` integers and decimal fractions are numbers, all else is a string. Where the model wants
a string, a number is taken as it is written: ``9.10``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MAX_NODES = 50_000
_STR, _MAP, _SEQ = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_PLAIN = "tag:postload,plain"
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})\.[0-9]{1,18}([eE][-+]?[0-9]{1,2})?")


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer, with no type guessing of its own."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return _MAP if kind is yaml.MappingNode else _SEQ


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    model: type[BaseModel]
    root: yaml.MappingNode

    def error(self, node: yaml.Node, message: str) -> ConfigError:
        mark = node.start_mark
        return ConfigError(self.path, mark.line + 1, mark.column + 1, message)


def load_model(path: Path, model: type[M]) -> M:
    """Read a YAML file as a model; types are checked strictly (``"1"`` is no integer, ``yes`` no boolean).

    :param model: a pydantic model, normally with ``extra="forbid"``
    :raises ConfigError: the file cannot be read, is no YAML, or does not fit the model; line and column are
    those of the
        first mistake, and the message says what was expected
    """
    root = _compose(path, _read(path))
    if not isinstance(root, yaml.MappingNode):
        mark = root.start_mark
        message = f"expected a mapping ('key: value'), found {_shape(root)}"
        raise ConfigError(path, mark.line + 1, mark.column + 1, message)
    file = _File(path, model, root)
    _check_nodes(file)
    return _validated(file, model)


def line_of(path: Path, keys: tuple[str, ...]) -> int:
    """The line, counted from 1, of a key in a YAML file, of the last key before it that is there otherwise.

    :raises ConfigError: the file cannot be read, or is no YAML
    """
    return _find(_compose(path, _read(path)), keys)[0].start_mark.line + 1


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(path, 0, 0, f"cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        raise ConfigError(path, before.count(b"\n") + 1, column, "expected UTF-8 text") from error


def _compose(path: Path, text: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = len(before) - (before.rfind("\n") + 1) + 1
        message = f"control character {ord(text[error.position]):#x} is not allowed"
        raise ConfigError(path, before.count("\n") + 1, column, message) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError(path, line, column, _syntax_message(error)) from error
    except RecursionError as error:
        raise ConfigError(path, 0, 0, "nested too deeply") from error
    if node is None:
        raise ConfigError(path, 1, 1, "the file is empty; expected a mapping ('key: value')")
    return node


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if "\\t" in problem:
        return f"a tab cannot indent YAML: use spaces ({problem})"
    return f"not YAML: {problem}" + (f" ({error.context})" if error.context else "")


def _check_nodes(file: _File) -> None:
    """Refuse duplicate keys, tags, keys that are no words, and aliases that grow without bound."""
    for count, node in enumerate(_walk(file.root, ()), start=1):
        if count > MAX_NODES:
            raise file.error(node, f"more than {MAX_NODES} values: too large for a configuration")
        if node.tag not in (_STR, _PLAIN, _MAP, _SEQ):
            raise file.error(node, f"tag {node.tag!r} is not supported")
        if isinstance(node, yaml.MappingNode):
            _check_keys(file, node)
        if node is _LOOP:
            raise file.error(file.root, "an alias that contains itself is not supported")


_LOOP = yaml.ScalarNode(_STR, "")


def _walk(node: yaml.Node, above: tuple[int, ...]) -> Iterator[yaml.Node]:
    if id(node) in above:
        yield _LOOP
        return
    yield node
    inside = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _walk(value, inside)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _walk(value, inside)


def _check_keys(file: _File, node: yaml.MappingNode) -> None:
    seen: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_STR, _PLAIN):
            raise file.error(key, f"expected a word as key, found {_shape(key)}")
        if key.value in seen:
            first = seen[key.value].start_mark.line + 1
            raise file.error(key, f"key {key.value!r} is given twice; it stands on line {first} already")
        seen[key.value] = key


def _validated(file: _File, model: type[M]) -> M:
    as_text: set[int] = set()
    while True:
        document = json.dumps(_plain_data(file.root, as_text))
        try:
            # As JSON, since strict mode then still takes a list for a tuple and a string for a path or an
            # enum.
            return model.model_validate_json(document, strict=True)
        except ValidationError as error:
            details = error.errors(include_url=False)
            wanted = {id(node) for node in _numbers_for_text(file, details)} - as_text
            if not wanted:
                raise _first_error(file, details) from error
            as_text |= wanted


def _plain_data(node: yaml.Node, as_text: set[int]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain_data(value, as_text) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain_data(value, as_text) for value in node.value]
    text = str(node.value)
    return text if node.tag == _STR or id(node) in as_text else _scalar(text)


def _scalar(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def _numbers_for_text(file: _File, details: list[ErrorDetails]) -> Iterator[yaml.Node]:
    """Nodes of plain numbers that stand where the model wants a string."""
    for detail in details:
        node = _find(file.root, detail["loc"])[1]
        if detail["type"] == "string_type" and isinstance(node, yaml.ScalarNode) and node.tag == _PLAIN:
            value = _scalar(node.value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield node


def _find(root: yaml.Node, loc: tuple[int | str, ...]) -> tuple[yaml.Node, yaml.Node]:
    """The key (or the item itself) and the value that a pydantic location means; steps that name a union's
    branch are skipped."""
    key = node = root
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            for candidate, value in node.value:
                if candidate.value == str(step):
                    key, node = candidate, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            key = node = node.value[step]
    return key, node


def _first_error(file: _File, details: list[ErrorDetails]) -> ConfigError:
    """The mistake that stands first in the file; the branches of a union speak together."""
    found: dict[tuple[int, int], list[str]] = {}
    for detail in details:
        node, message = _explain(file, detail)
        messages = found.setdefault((node.start_mark.line + 1, node.start_mark.column + 1), [])
        if message not in messages:
            messages.append(message)
    line, column = min(found)
    more = f" ({len(found) - 1} more after it)" if len(found) > 1 else ""
    return ConfigError(file.path, line, column, "; or ".join(found[line, column]) + more)


def _explain(file: _File, detail: ErrorDetails) -> tuple[yaml.Node, str]:
    loc = detail["loc"]
    key, value = _find(file.root, loc)
    if detail["type"] == "extra_forbidden":
        return key, _unknown_key(file, loc)
    if detail["type"] == "missing":
        return value, f"key {loc[-1]!r} is missing"
    name = ".".join(str(step) for step in loc) or "the file"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not isinstance(value, yaml.ScalarNode):
        found = f", found {_shape(value)}" if message.startswith("expected") else ""
        return value, f"{name}: {message}{found}"
    found = "nothing" if value.value == "" and value.tag == _PLAIN else repr(value.value)
    return value, f"{name}: {message}, found {found}"


def _unknown_key(file: _File, loc: tuple[int | str, ...]) -> str:
    known = sorted(_known_keys(file.model, loc[:-1]))
    name = str(loc[-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    models = {model}
    for step in loc:
        fields = [_fields_of(each)[str(step)] for each in models if step in _fields_of(each)]
        # A step that is no field is an index, a key of a dictionary, or the name of a union's branch.
        inner = {found for annotation in fields for found in _models_in(annotation)}
        named = {each for each in models if each.__name__ == step}
        models = inner or named or models
    return {key for each in models for key in _fields_of(each)}


def _fields_of(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
