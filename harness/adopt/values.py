# SPDX-License-Identifier: GPL-2.0-or-later
"""The argument of an option, in each of the forms that QEMU takes, to keys and values.

====================  =====================================================================  =====================
form                  looks like                                                             QEMU's reader
====================  =====================================================================  =====================
QemuOpts              ``first,key=value,flag,noflag``; a comma in a value is doubled         util/qemu-option.c
keyval                the same; dotted keys nest (``file.driver=raw``), ``a.0.b`` is a list  util/keyval.c
JSON                  ``{"driver": "raw"}``, strings in single quotes too                    qobject/json-lexer.c
features              ``model,+feat,-feat,feat=on``                                          target/i386/cpu.c
character device      ``tcp:host:port,server``, ``file:path``, ``mon:stdio``                 chardev/char.c
====================  =====================================================================  =====================

Here is more lenient than QEMU, which differs in this by version: a bare flag is taken in keyval too, and JSON wherever
keys and values are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.adopt.configuration import Value
from harness.adopt.place import TextPlace, quoted

MAX_DEPTH = 32
MAX_ITEMS = 1024
MAX_KEYS = 5_000

_KEY = re.compile(r"[^=,]*")
_TEXT = re.compile(r"(?:[^,]|,,)*")
_JSON_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'((?:[^'\\]|\\.)*)'", re.S)
_SHORT_GLOBAL = re.compile(r"([^.=]{1,63})\.([^=]{1,63})=(.*)", re.S)


def read_options(
    text: str, place: TextPlace, *, first: str = "", lists: tuple[str, ...] = (), nested: bool = False
) -> dict[str, Value]:
    """Keys and values of QemuOpts, keyval or JSON form.

    A key that is given twice keeps its last value, as in QEMU.

    :param first: the key of a first value that comes without one, empty where it has to have one
    :param lists: keys that QEMU collects: their value is a list, whether given once or often
    :param nested: dotted keys are nested, and digits between dots count a list
    :raises UsageError: it is none of these
    """
    if text.startswith("{"):
        return _collected(read_json(text, place), lists)
    flat: dict[str, Value] = {}
    for count, (key, value) in enumerate(_pairs(text, first, place)):
        if count >= MAX_KEYS:
            raise place.error(f"more than {MAX_KEYS} keys in one option")
        old = flat.get(key)
        flat[key] = value if key not in lists else [*old, value] if isinstance(old, list) else [value]
    return _nested(flat, place) if nested else flat


def _collected(values: dict[str, Value], lists: tuple[str, ...]) -> dict[str, Value]:
    return {key: [value] if key in lists and not isinstance(value, list) else value for key, value in values.items()}


def _pairs(text: str, first: str, place: TextPlace) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        begin, (key, position) = position, _matched(_KEY, text, position)
        if text[position : position + 1] == "=":
            value, position = _matched(_TEXT, text, position + 1)
            value = value.replace(",,", ",")
        elif begin == 0 and first:
            key = first
            value, position = _matched(_TEXT, text, 0)
            value = value.replace(",,", ",")
        else:
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        if not key:
            raise place.error(f"expected key=value, found {quoted(text[begin:])}")
        yield key, value
        position += 1


def _matched(pattern: re.Pattern[str], text: str, position: int) -> tuple[str, int]:
    match = pattern.match(text, position)
    return (match.group(), match.end()) if match else ("", position)


def _nested(flat: Mapping[str, Value], place: TextPlace) -> dict[str, Value]:
    """Dotted keys as mappings in mappings."""
    root: dict[str, Any] = {}
    for key, value in flat.items():
        steps = key.split(".")
        if "" in steps or len(steps) > MAX_DEPTH:
            raise place.error(f"expected a key such as file.driver, found {quoted(key)}")
        _put(root, steps, value, place)
    return {key: _listed(value, key, place) for key, value in root.items()}


def _put(root: dict[str, Any], steps: list[str], value: Value, place: TextPlace) -> None:
    inner = root
    for step in steps[:-1]:
        below = inner.setdefault(step, {})
        if not isinstance(below, dict):
            # -drive file=disk.img,file.locking=off: the first is the name of the file
            below = inner[step] = {"filename": below} if step == "file" and inner is root else below
        if not isinstance(below, dict):
            raise place.error(f"{quoted('.'.join(steps))} and a value of {quoted(step)} itself do not go together")
        inner = below
    if isinstance(inner.get(steps[-1]), dict):
        if steps != ["file"]:
            raise place.error(f"{quoted('.'.join(steps))} has a value, and keys below it as well")
        inner, steps = inner["file"], ["filename"]
    inner[steps[-1]] = value


def _listed(value: Any, key: str, place: TextPlace) -> Value:
    """Mappings whose keys count from 0 as lists."""
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    below = {step: _listed(inner, f"{key}.{step}", place) for step, inner in value.items()}
    if not any(step.isascii() and step.isdecimal() for step in below):
        return below
    if len(below) > MAX_ITEMS or set(below) != {str(number) for number in range(len(below))}:
        keys = quoted(", ".join(sorted(below)))
        raise place.error(f"expected the numbers from 0 on below {quoted(key)}, found {keys}")
    return [below[str(number)] for number in range(len(below))]


class _Twice(ValueError):
    pass


def read_json(text: str, place: TextPlace) -> dict[str, Value]:
    """A JSON object as QEMU reads it: no key twice, strings in double or single quotes.

    :raises UsageError: it is none, it is nested too deeply, or has a number or a character that QEMU does not take
    """
    for form in (text, _JSON_STRING.sub(_double_quoted, text)):
        try:
            value = json.loads(form, object_pairs_hook=_once, parse_constant=_no_constant)
        except _Twice as error:
            raise place.error(f"the key {quoted(str(error))} is given twice in {quoted(text)}") from error
        except (ValueError, RecursionError):
            continue
        _check_json(value, 1, place)
        if isinstance(value, dict):
            return value
    raise place.error(f'expected JSON such as {{"driver": "raw"}}, found {quoted(text)}')


def _double_quoted(match: re.Match[str]) -> str:
    inner = match.group(1)
    if inner is None:
        return match.group()
    return '"' + re.sub(r"\\'|\"", lambda found: "'" if found.group() == "\\'" else '\\"', inner) + '"'


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _check_json(value: Any, depth: int, place: TextPlace) -> None:
    if depth > MAX_DEPTH:
        raise place.error(f"JSON nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_json(key, depth, place)
            _check_json(inner, depth + 1, place)
    elif isinstance(value, list):
        for inner in value:
            _check_json(inner, depth + 1, place)
    elif not _taken(value):
        raise place.error(f"expected a number or a text that QEMU takes, found {quoted(repr(value))}")


def _taken(value: bool | int | float | str | None) -> bool:
    """Whether QEMU's JSON has a scalar: 64 bits, finite, Unicode without zero bytes."""
    if isinstance(value, str):
        return not re.search("[\0\ud800-\udfff]", value)
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    return value is None or math.isfinite(value)


def read_cpu(text: str, place: TextPlace) -> dict[str, Value]:
    """``model,+feat,-feat,feat=value,feat``: on and off as text.

    QEMU gives ``+`` and ``-`` the last word whatever their order, ``-`` before ``+``, and takes ``_`` for ``-``.
    """
    model, *features = text.split(",")
    said: dict[str, Value] = {}
    signed: dict[str, dict[str, Value]] = {"+": {}, "-": {}}
    for feature in filter(None, features):
        if feature[0] in signed:
            signed[feature[0]][_dashed(feature[1:])] = "on" if feature[0] == "+" else "off"
        else:
            name, equals, value = feature.partition("=")
            said[_dashed(name)] = value if equals else "on"
    values: dict[str, Value] = {"model": model} | said | signed["+"] | signed["-"]
    if "" in values or not model:
        raise place.error(f"expected a CPU model and features such as qemu64,+ssse3, found {quoted(text)}")
    return values


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def read_global(text: str, place: TextPlace) -> dict[str, Value]:
    """``driver.property=value``, or the three as keys."""
    match = _SHORT_GLOBAL.fullmatch(text)
    if match is None:
        return read_options(text, place)
    return dict(zip(("driver", "property", "value"), match.groups(), strict=True))


_PLAIN_BACKENDS = ("null", "pty", "msmouse", "wctablet", "braille", "testdev", "stdio", "none", "spicevmc")
#: Each pattern of a character device with the keys that it gives.
_CHARACTER: tuple[tuple[re.Pattern[str], dict[str, Value]], ...] = (
    (re.compile(r"chardev:(?P<chardev>.+)", re.S), {}),
    (re.compile(r"vc(?::(?P<width>\d{1,7})x(?P<height>\d{1,7}))?"), {"backend": "vc"}),
    (re.compile(r"vc:(?P<cols>\d{1,7})Cx(?P<rows>\d{1,7})C"), {"backend": "vc"}),
    (re.compile(r"con:"), {"backend": "console"}),
    (re.compile(r"file:(?P<path>.*)", re.S), {"backend": "file"}),
    (re.compile(r"pipe:(?P<path>.*)", re.S), {"backend": "pipe"}),
    (re.compile(r"pty:(?P<path>.*)", re.S), {"backend": "pty"}),
    (re.compile(r"(?P<path>COM.*)", re.S), {"backend": "serial"}),
    (re.compile(r"(?P<path>/dev/(?:parport|ppi).*)", re.S), {"backend": "parallel"}),
    (re.compile(r"(?P<path>/dev/.*)", re.S), {"backend": "serial"}),
)
_NETWORK = re.compile(r"(tcp|telnet|tn3270|websocket):([^:]{0,64}):([^,]{1,32})(?:,(.*))?", re.S)
_UDP = re.compile(
    r"udp:(?P<host>[^:]{0,64}):(?P<port>[^@,]{1,32})(?:@(?P<localaddr>[^:]{0,64}):(?P<localport>[^,]{1,32}))?(?:,.*)?",
    re.S,
)


def read_character(text: str, place: TextPlace) -> dict[str, Value]:
    """The old form of a character device: ``backend`` and its keys, or ``chardev`` where it names one.

    :raises UsageError: QEMU has no such device
    """
    if text.startswith("mon:") and not text.startswith("mon:mon:"):
        return read_character(text[4:], place) | {"mux": "on"}
    if text in _PLAIN_BACKENDS:
        return {"backend": text}
    for pattern, values in _CHARACTER:
        if match := pattern.fullmatch(text):
            return values | _given(match)
    return _socket(text, place)


def _given(match: re.Match[str]) -> dict[str, Value]:
    return {key: value for key, value in match.groupdict().items() if value is not None}


def _socket(text: str, place: TextPlace) -> dict[str, Value]:
    if match := _NETWORK.fullmatch(text):
        kind, host, port, more = match.groups()
        flag: dict[str, Value] = {} if kind == "tcp" else {kind: "on"}
        return {"backend": "socket", "host": host, "port": port} | read_options(more or "", place) | flag
    if match := _UDP.fullmatch(text):
        return {"backend": "udp", **_given(match)}
    if text.startswith("unix:"):
        return {"backend": "socket"} | read_options(text[5:], place, first="path")
    return _no_device(text, place)


def _no_device(text: str, place: TextPlace) -> dict[str, Value]:
    raise place.error(f"expected a character device such as stdio or unix:PATH, found {quoted(text)}")
