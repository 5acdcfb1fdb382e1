# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of ``-readconfig``: ``[group "id"]`` and ``key = "value"``, as ``qemu_config_foreach`` reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.adopt.configuration import SaidOption
from harness.adopt.optiontable import Form, known_options, option_of_group
from harness.adopt.place import TextPlace, quoted
from harness.adopt.values import read_options

_BLANK = re.compile(r"\s*(?:#.*)?")
_GROUP = re.compile(r"\s*\[\s*([^\s\]\"]{1,63})(?:\s+\"([^\"]{1,63})\")?\s*\]\s*")
_VALUE = re.compile(r"\s*([^\s=]{1,63})\s*=\s*\"([^\"]{0,1023})\"\s*")


def read_config_file(text: str, source: str) -> list[SaidOption]:
    """The options that a configuration file says; lines are those of the file.

    :raises UsageError: a line is neither a group nor a value, or QEMU has no such group
    """
    # a group is whole when the next one begins
    return [_option(name, pairs, place) for name, pairs, place in list(_groups(text, source))]


def _groups(text: str, source: str) -> Iterator[tuple[str, list[tuple[str, str]], TextPlace]]:
    """Name, values and first line of each group; the values are there when all has been read."""
    pairs: list[tuple[str, str]] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        place = TextPlace(source, number)
        if _BLANK.fullmatch(line):
            continue
        if group := _GROUP.fullmatch(line):
            pairs = [("id", group.group(2))] if group.group(2) else []
            yield _name(group.group(1), place), pairs, place
        elif (value := _VALUE.fullmatch(line)) and pairs is not None:
            pairs.append((value.group(1), value.group(2)))
        else:
            raise place.error(f'expected [group "id"] or key = "value", found {quoted(line)}')


def _name(group: str, place: TextPlace) -> str:
    name = option_of_group(group)
    if name is None:
        raise place.error(f"QEMU has no group {quoted(group)} of options")
    return name


def _option(name: str, pairs: list[tuple[str, str]], place: TextPlace) -> SaidOption:
    known = known_options()[name]
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)
    nested = known.takes is Form.NESTED
    return SaidOption(name=name, values=read_options(text, place, lists=known.lists, nested=nested), line=place.line)
