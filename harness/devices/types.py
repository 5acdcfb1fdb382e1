# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU says of its device types: ``-device help``, and the properties of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.errors import QemuError
from harness.qemu.listed import device_help, listing

_HEAD = re.compile(r"([A-Za-z/ ]+?) devices:")
_LINE = re.compile(
    r'name "(?P<name>[^"]+)"(?:, bus (?P<bus>[^,]+))?(?:, alias "(?P<alias>[^"]+)")?(?:, desc "(?P<desc>.*)")?'
)
#: Of CPU models nothing is asked: they are half of all types, and are no devices under test.
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """One type of ``-device help``.

    :param category: the first word of the heading that it stands under, in lower case: ``network``, ``controller``
    :param bus: what it is plugged into, such as ``PCI``; empty for one that needs none
    :param alias: another name that QEMU takes for it
    :param properties: names of its properties
    """

    name: str
    category: str
    bus: str = ""
    alias: str = ""
    description: str = ""
    properties: frozenset[str] = field(default_factory=frozenset)


def parse_help(text: str) -> list[DeviceType]:
    """The types of ``-device help``, each once, in its order.

    :raises QemuError: there is none: QEMU writes it in another way
    """
    found: dict[str, DeviceType] = {}
    for kind in _lines(text):
        found.setdefault(kind.name, kind)
    if not found:
        raise QemuError("-device help: no line 'name \"...\"' was met")
    return list(found.values())


def _lines(text: str) -> Iterator[DeviceType]:
    category = ""
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            category = head[1].split("/")[0].lower()
        elif match := _LINE.fullmatch(line):
            yield DeviceType(
                name=match["name"],
                category=category,
                bus=match["bus"] or "",
                alias=match["alias"] or "",
                description=match["desc"] or "",
            )


def with_properties(kinds: Iterable[DeviceType], properties: Mapping[str, Iterable[str]]) -> dict[str, DeviceType]:
    """The types by name, each with its properties."""
    return {
        kind.name: DeviceType(
            name=kind.name,
            category=kind.category,
            bus=kind.bus,
            alias=kind.alias,
            description=kind.description,
            properties=frozenset(properties.get(kind.name, ())),
        )
        for kind in kinds
    }


def types_of(binary: str) -> dict[str, DeviceType]:
    """The device types of a QEMU by name, in its own order.

    :raises QemuError: it does not say
    """
    kinds = parse_help(device_help(binary))
    asked = listing(binary, "none", [kind.name for kind in kinds if kind.category != CPU]).devices
    return with_properties(kinds, asked)
