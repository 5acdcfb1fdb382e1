# SPDX-License-Identifier: GPL-2.0-or-later
"""Fields: names, types and values for the bytes of a section's payload, whoever found them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from harness.errors import UsageError

_INTEGER = re.compile(r"(u?)int(8|16|32|64)(?: (le|equal))?")
#: Unsigned and little-endian; only in the parts of a payload that the vmdesc does not describe.
_LITTLE = re.compile(r"le(16|32|64)")
#: Yes or no in a byte; ``powered_off`` is that of an ARM CPU (``target/arm/machine.c``).
_FLAGS = frozenset({"bool", "powered_off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A named piece of a payload.

    ``path`` is unique within what QEMU names uniquely: ``env.eflags``, ``pirq[3]``, ``cpu/xsave/env.xcr0``.
    ``value`` is an int for numbers, hex digits for other bytes, and None where ``children`` has the pieces.
    ``type`` is the vmdesc's, or ``array``, ``subsection``, or ``raw`` for bytes that the vmdesc leaves out, or
    ``le16``, ``le32`` or ``le64`` for a little-endian number inside of a virtio device.
    """

    name: str
    path: str
    offset: int
    size: int
    type: str
    value: int | str | None
    children: tuple[Field, ...] = ()


def is_number(kind: str, size_bytes: int) -> bool:
    """Types of ``migration/vmstate-types.c`` that are one integer; a timer is -1 or its expiry in ns."""
    match = _INTEGER.fullmatch(kind)
    if match:
        return int(match[2]) == size_bytes * 8
    if match := _LITTLE.fullmatch(kind):
        return int(match[1]) == size_bytes * 8
    return (kind in _FLAGS and size_bytes == 1) or (kind == "timer" and size_bytes == 8)


def _is_signed(kind: str) -> bool:
    """Whether a number's type is signed."""
    match = _INTEGER.fullmatch(kind)
    return kind == "timer" if match is None else not match[1]


def _byte_order(kind: str) -> Literal["big", "little"]:
    """All of the vmdesc's types are big-endian: the "le" of ``int32 le`` is "less or equal"."""
    return "little" if _LITTLE.fullmatch(kind) else "big"


def field_value(kind: str, raw: bytes) -> int | str:
    """The value of a field of type ``kind``: an int for a number, hex digits for other bytes."""
    if not is_number(kind, len(raw)):
        return raw.hex()
    return int.from_bytes(raw, _byte_order(kind), signed=_is_signed(kind))


def walk(fields: list[Field] | tuple[Field, ...]) -> Iterator[Field]:
    """Every field, parents before their children."""
    for field in fields:
        yield field
        yield from walk(field.children)


def find(fields: list[Field], path: str) -> Field:
    """The field with that path.

    :raises KeyError: there is none
    """
    for field in walk(fields):
        if field.path == path:
            return field
    raise KeyError(path)


def patch(payload: bytes | memoryview, field: Field, value: int) -> bytes:
    """The payload with one number changed.

    :raises UsageError: the field is no number, the value does not fit, or the payload is not the field's
    """
    if not isinstance(field.value, int) or not is_number(field.type, field.size):
        raise UsageError(f"field {field.path} of type {field.type} is not a number")
    if field.offset + field.size > len(payload):
        raise UsageError(f"field {field.path} lies outside of a payload of {len(payload)} bytes")
    try:
        raw = value.to_bytes(field.size, _byte_order(field.type), signed=_is_signed(field.type) and value < 0)
    except OverflowError as error:
        raise UsageError(f"{value} does not fit field {field.path} of type {field.type}") from error
    changed = bytearray(payload)
    changed[field.offset : field.offset + field.size] = raw
    return bytes(changed)
