# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of a cell: what was judged, apart from when, where and by which build.

::

    7.2.22/pc-q35-7.2/virtio-blk/bound/same
    7.2.22>10.0.13/pc-q35-7.2/platform/all/plain
    mybuild/pc-i440fx-9.0+cpus=2/ahci/bound+busy/walk/parked+rest

    QEMU[>QEMU]/MACHINE[+arch=..][+cpus=..][+accel=..]/DEVICE/PHASES/LANE[/MODE][+rest[N]]

QEMU is a label that a user sees: the version, or the name that the user gave to a build. Its hash stands beside the
key in a document and is no part of it, so that the same cell of two runs has the same key. ``all`` are the phases of
a usual recording. Nothing but this module takes such a text apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from harness.arch import architecture_of
from harness.errors import UsageError
from harness.names import USUAL_PHASES

ALL = "all"
RUNNING, PARKED = "running", "parked"
USUAL_CPUS, USUAL_ACCEL, USUAL_ARCH = 1, "tcg", "x86_64"
_POINT_RELEASE = re.compile(r"^(\d+\.\d+)\.\d+(~\d+)?$")
_REST = re.compile(r"\+rest(\d*)$")
#: File systems take 255 bytes, and a journal adds some of its own.
_LONGEST_NAME = 150
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.+_-]+")
_MAX_SHOWN = 6

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The QEMU that records and the one that loads, by their labels."""

    recorder: str
    loader: str

    def __str__(self) -> str:
        return self.loader if self.at_home else f"{self.recorder}>{self.loader}"

    @property
    def at_home(self) -> bool:
        """One QEMU does both."""
        return self.recorder == self.loader

    @classmethod
    def parse(cls, text: str) -> Route:
        """What ``str`` gives."""
        recorder, between, loader = text.partition(">")
        return cls(recorder=recorder, loader=loader if between else recorder)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellKey:
    """Names a cell.

    :param machine: versioned machine type
    :param lane: what is varied: a schedule, a migration, an oracle
    :param guest_mode: ``running`` or ``parked``
    :param rest: 0 for the first look; a section that was blamed there is left out in the second, and so on
    """

    route: Route
    machine: str
    device: str
    phases: tuple[str, ...]
    lane: str
    guest_mode: str = RUNNING
    rest: int = 0
    arch: str = USUAL_ARCH
    cpus: int = USUAL_CPUS
    accel: str = USUAL_ACCEL

    def __str__(self) -> str:
        return f"{self.route}/{self.machine_text}/{self.device}/{self.where}/{self.lane}{self._mode}{self._rest}"

    @property
    def where(self) -> str:
        """The phases in one word: ``bound``, ``bound+busy``, or ``all`` for those of a usual recording."""
        return ALL if self.phases == _usual_phases(self.machine) else "+".join(self.phases)

    @property
    def row(self) -> str:
        """What the cells of one device have in common: all before the phases."""
        return f"{self.route}/{self.machine_text}/{self.device}"

    @property
    def place(self) -> str:
        """``DEVICE/PHASES/LANE``, the same on every QEMU and machine, with or without what was blamed."""
        return f"{self.device}/{self.where}/{self.lane}"

    @property
    def line(self) -> str:
        """What a cell and its further looks have in common from one point release to the next: ``7.2/pc-q35-7.2/...``
        of 7.2.22 and 7.2.23. Two point releases in one route stay apart.
        """
        route = Route(recorder=release_line(self.route.recorder), loader=release_line(self.route.loader))
        return str(replace(self, rest=0, route=self.route if route.at_home is not self.route.at_home else route))

    @property
    def slug(self) -> str:
        """As the name of a file or folder; a very long one is cut, and ends with a hash of the whole."""
        text = str(self)
        name = _NOT_IN_NAMES.sub("_", text.replace(">", "..").replace("/", "_")).strip("._") or "cell"
        if len(name) <= _LONGEST_NAME:
            return name
        return f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def machine_text(self) -> str:
        """The machine type, and what is unusual about its CPUs: ``pc-q35-7.2+cpus=2``."""
        unusual = {"arch": self.arch, "cpus": self.cpus, "accel": self.accel}
        usual = {"arch": architecture_of(self.machine).name, "cpus": USUAL_CPUS, "accel": USUAL_ACCEL}
        return self.machine + "".join(f"+{name}={value}" for name, value in unusual.items() if value != usual[name])

    @property
    def _mode(self) -> str:
        return "" if self.guest_mode == RUNNING else f"/{self.guest_mode}"

    @property
    def _rest(self) -> str:
        return "" if not self.rest else "+rest" + (str(self.rest) if self.rest > 1 else "")

    @classmethod
    def parse(cls, text: str) -> CellKey:
        """What ``str`` gives.

        :raises UsageError: it is no key
        """
        match = _REST.search(text)
        parts = _REST.sub("", text).split("/")
        if len(parts) not in (5, 6) or not all(parts):
            raise UsageError(f"{text!r} is no cell: expected QEMU[>QEMU]/MACHINE/DEVICE/PHASES/LANE[/MODE]")
        machine, *more = parts[1].split("+")
        given = dict(each.partition("=")[::2] for each in more)
        if not given.keys() <= {"arch", "cpus", "accel"} or not given.get("cpus", "1").isdigit():
            raise UsageError(f"{text!r} is no cell: {parts[1]!r}: expected MACHINE[+arch=..][+cpus=..][+accel=..]")
        return cls(
            route=Route.parse(parts[0]),
            machine=machine,
            device=parts[2],
            phases=_usual_phases(machine) if parts[3] == ALL else tuple(parts[3].split("+")),
            lane=parts[4],
            guest_mode=parts[5] if len(parts) == 6 else RUNNING,
            rest=int(match[1] or 1) if match else 0,
            arch=given.get("arch", architecture_of(machine).name),
            cpus=int(given.get("cpus", USUAL_CPUS)),
            accel=given.get("accel", USUAL_ACCEL),
        )


def route_of(key: str) -> str:
    """The QEMUs of a key or a line, as text; of very many, without the rest of it."""
    return key.partition("/")[0]


def find_by_key(items: Sequence[T], key: Callable[[T], CellKey], text: str, likely: Callable[[T], bool]) -> T:
    """The item of this key, or the only one, else the only likely one, whose key holds the text.

    Whole parts of a key go first: ``bound/same`` is not meant to be ``unbound/same`` as well.

    :param likely: what is meant first where several fit
    :raises UsageError: there is none, or several; names some
    """
    wanted = f"/{text.strip('/')}/"
    names = {id(item): str(key(item)) for item in items}
    same = [item for item in items if names[id(item)] == text]
    whole = [item for item in items if wanted in f"/{names[id(item)]}/"]
    parts = [item for item in items if text in names[id(item)]]
    for found in (same, whole, _only(whole, likely), parts, _only(parts, likely)):
        if len(found) == 1:
            return found[0]
    if not parts:
        known = _only(items, likely) or items
        raise UsageError(f"no cell {text!r} in this run: {_some(names[id(i)] for i in known) or 'it has no cells'}")
    several = whole or parts
    shown = _some(names[id(item)] for item in _only(several, likely) or several)
    raise UsageError(f"{text!r} is part of {len(several)} cells: {shown}")


def _only(items: Sequence[T], likely: Callable[[T], bool]) -> list[T]:
    return [item for item in items if likely(item)]


def _some(texts: Iterable[str]) -> str:
    names = list(texts)
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def labels(builds: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A label for each build, by its hash: what the user sees, with ``~2``, ``~3`` where several would have the same.

    :param builds: hash and wanted label, in the order of the run
    """
    found: dict[str, str] = {}
    for sha256, wanted in builds:
        if sha256 in found:
            continue
        label, number = wanted, 2
        while label in found.values():
            label, number = f"{wanted}~{number}", number + 1
        found[sha256] = label
    return found


def release_line(label: str) -> str:
    """The line of releases that a QEMU is of, by its label: ``7.2`` of ``7.2.22``, ``7.2~2`` of ``7.2.22~2``.

    A name that the user gave stays.
    """
    return _POINT_RELEASE.sub(r"\1\2", label)


def _usual_phases(machine: str) -> tuple[str, ...]:
    return tuple(filter(architecture_of(machine).has_phase, USUAL_PHASES))
