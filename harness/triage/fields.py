# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells a failing section from a healthy one: pieces of its payload that can be made healthy one by one. Pure."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.stream.fields import Field, field_value, walk
from harness.triage.case import NeededField

#: Types whose bits mean nothing by themselves.
_WHOLE = frozenset({"bool", "timer"})
_INTEGERS = ("int", "uint", "le")
#: A number of which more bits differ is an address or a count, and not a set of flags.
_MAX_FLAGS = 6
#: Nor has a number of such a name bits of its own.
_COUNTED = re.compile(
    r"(?:^|[._])(?:num|nr|count|size|len|addr|idx|index|offset|max|total)[a-z]{0,3}(?:\[\d+\])*$"
    r"|(?:^|[._])(?:[a-z]*(?:ptr|pointer|queue|ring|base|ba|aap|crcr|cursor|head|tail|desc)(?:_?(?:lo|hi|low|high))?"
    r"|pa|gpa|start|end)(?:\[\d+\])*$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """A piece of a payload that differs between the failing and the healthy state.

    :param section: label of the section
    :param path: of the field that it belongs to
    :param field_offset: where that field starts in the payload, in bytes
    :param kind: the field's type
    :param offset: first byte of the piece
    :param mask: bits of these bytes that are meant
    :param healthy: bytes of the healthy state; None for a subsection that the healthy state does not have
    """

    section: str
    path: str
    field_offset: int
    kind: str
    offset: int
    mask: bytes
    healthy: bytes | None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.mask)

    @property
    def key(self) -> str:
        """Short and stable name."""
        value = "cut" if self.healthy is None else self.healthy.hex()
        return f"{self.section}+{self.offset}:{self.mask.hex()}:{value}"


def differences(
    label: str, failing: bytes, fields: Sequence[Field], healthy: bytes, others: Sequence[Field]
) -> list[Atom]:
    """The leaves in which two states of a section differ, in the order of the payload.

    A field is compared with the one of the same path and size. A subsection that only the failing state has is one
    piece; what only the healthy state has is not spoken of.

    :param fields: of the failing state, ``others`` of the healthy one
    """
    known: dict[str, deque[Field]] = {}
    for field in walk(list(others)):
        known.setdefault(field.path, deque()).append(field)
    found: list[Atom] = []

    def look(items: Iterable[Field]) -> None:
        for field in items:
            # newer builds describe elements of an array without their index: equal paths stand in the same order
            left = known.get(field.path)
            other = left.popleft() if left else None
            if other is None and field.type == "subsection":
                found.append(_atom(label, field, None))
            elif field.children:
                look(field.children)
            elif other is not None and other.size == field.size:
                value = healthy[other.offset : other.offset + other.size]
                if value != failing[field.offset : field.offset + field.size]:
                    found.append(_atom(label, field, value))

    look(fields)
    return found


def _atom(label: str, field: Field, healthy: bytes | None) -> Atom:
    return Atom(
        section=label,
        path=field.path,
        field_offset=field.offset,
        kind=field.type,
        offset=field.offset,
        mask=b"\xff" * field.size,
        healthy=healthy,
    )


def apply(payload: bytes, atoms: Iterable[Atom]) -> bytes:
    """The payload with some pieces made healthy."""
    changed = bytearray(payload)
    cuts = []
    for atom in atoms:
        if atom.healthy is None:
            cuts.append((atom.offset, atom.size))
            continue
        for at, (mask, value) in enumerate(zip(atom.mask, atom.healthy, strict=True), start=atom.offset):
            changed[at] = changed[at] & ~mask | value & mask
    for start, size in sorted(cuts, reverse=True):
        del changed[start : start + size]
    return bytes(changed)


def split_bytes(atom: Atom, payload: bytes) -> list[Atom]:
    """The bytes of a buffer that differ; a number stays whole."""
    if atom.healthy is None or atom.size == 1 or atom.kind in _WHOLE or is_number(atom):
        return [atom]
    pairs = enumerate(zip(payload[atom.offset : atom.offset + atom.size], atom.healthy, strict=True))
    return [_part(atom, at, 0xFF) for at, (ours, theirs) in pairs if ours != theirs]


def split_bits(atom: Atom, payload: bytes) -> list[Atom]:
    """The bits of a single byte that differ, or of a number when they are few enough to be flags."""
    if atom.healthy is None or atom.kind in _WHOLE or not (atom.size == 1 or is_number(atom)):
        return [atom]
    if is_count(atom):
        return [atom]
    pairs = enumerate(zip(payload[atom.offset : atom.offset + atom.size], atom.healthy, strict=True))
    found = [
        _part(atom, at, 1 << bit)
        for at, (ours, theirs) in pairs
        for bit in range(8)
        if (ours ^ theirs) & atom.mask[at] & 1 << bit
    ]
    return found if atom.size == 1 or len(found) <= _MAX_FLAGS else [atom]


def whole_numbers(pieces: Sequence[Atom], fields: Sequence[Atom]) -> tuple[Atom, ...]:
    """The pieces, of a number with more than one bit among them the whole number: half an address means nothing.

    :param fields: what the pieces were cut from
    """
    counts = Counter((p.section, p.path, p.field_offset) for p in pieces)
    whole = {(f.section, f.path, f.field_offset): f for f in fields if is_number(f) and f.size > 1}
    found: dict[str, Atom] = {}
    for piece in pieces:
        place = (piece.section, piece.path, piece.field_offset)
        atom = whole[place] if counts[place] > 1 and place in whole else piece
        found.setdefault(atom.key, atom)
    return tuple(found.values())


def is_number(atom: Atom) -> bool:
    """Whether the field is one integer, so that its bytes have an order."""
    return atom.kind.startswith(_INTEGERS) and isinstance(field_value(atom.kind, bytes(atom.size)), int)


def is_count(atom: Atom) -> bool:
    """Whether it is a number by its name, and no set of flags."""
    return is_number(atom) and _COUNTED.search(atom.path) is not None


def _part(atom: Atom, at: int, mask: int) -> Atom:
    assert atom.healthy is not None  # callers do not split a cut
    return Atom(
        section=atom.section,
        path=atom.path,
        field_offset=atom.field_offset,
        kind=atom.kind,
        offset=atom.offset + at,
        mask=bytes([mask]),
        healthy=atom.healthy[at : at + 1],
    )


def bit_of(atom: Atom) -> int | None:
    """The bit of its byte, when the piece is a single bit."""
    mask = int.from_bytes(atom.mask, "big")
    return mask.bit_length() - 1 if atom.size == 1 and mask.bit_count() == 1 else None


def needed(atom: Atom, payload: bytes, register: str | None) -> NeededField:
    """What a report says of a piece that is needed."""
    ours = payload[atom.offset : atom.offset + atom.size]
    bit = bit_of(atom)
    if bit is not None and atom.healthy is not None:
        value: int | str = ours[0] >> bit & 1
        healthy: int | str | None = atom.healthy[0] >> bit & 1
    elif atom.size == 1 and atom.healthy is not None:
        value, healthy = ours[0], atom.healthy[0]
    else:
        value = field_value(atom.kind, ours)
        healthy = None if atom.healthy is None else field_value(atom.kind, atom.healthy)
    return NeededField(
        section=atom.section,
        path=atom.path,
        offset=atom.offset,
        bit=bit,
        value=value,
        healthy=healthy,
        register=register,
        size=atom.size,
        field_offset=atom.field_offset,
    )
