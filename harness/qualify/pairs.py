# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU's guests go to which, and with which machine type. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from packaging.version import Version

from harness.arch import ARCHITECTURES, family_of
from harness.errors import NothingToRun
from harness.qemu.binary import MachineType, QemuBinary
from harness.qualify.explained import OtherTypes

_PREFIXES = "|".join(re.escape(prefix) for architecture in ARCHITECTURES for prefix in architecture.families)
_VERSIONED = re.compile(rf"^(?:{_PREFIXES})(\d+(?:\.\d+)+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuPair:
    """Guests of ``recorder`` on the versioned ``machine``, loaded by ``loader``; at home these are one."""

    recorder: QemuBinary
    loader: QemuBinary
    machine: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Machine and the hashes of both builds."""
        return self.machine, self.recorder.sha256, self.loader.sha256


def plan_pairs(
    sources: Sequence[QemuBinary], targets: Sequence[QemuBinary], machines: Sequence[str], *, both_ways: bool
) -> list[QemuPair]:
    """Every source to every target, and the ways back behind all ways there.

    :param machines: families such as ``pc``, for which the machine type is chosen by :func:`machine_for`, or
        versioned names
    :raises NothingToRun: no two different QEMUs were given, or no guest of theirs can have such a machine
    """
    ways = [(a, b) for a in sources for b in targets if a.sha256 != b.sha256]
    if both_ways:
        ways += [(b, a) for a, b in ways]
    if not ways:
        raise NothingToRun("nothing to qualify: the same QEMU on both sides")
    pairs = [
        QemuPair(recorder=a, loader=b, machine=name)
        for a, b in ways
        for wanted in machines
        if (name := machine_for(a, b, wanted)) is not None
    ]
    if not pairs:
        lacking = " and ".join(dict.fromkeys(a.version for a, _ in ways))
        raise NothingToRun(f"nothing to qualify: QEMU {lacking} has no guest with machine {', '.join(machines)}")
    return list(_once(pairs))


def at_home(pairs: Iterable[QemuPair]) -> list[QemuPair]:
    """The same guests loaded by their own recorders, each once: what a failure abroad is compared with."""
    return list(_once(QemuPair(recorder=p.recorder, loader=p.recorder, machine=p.machine) for p in pairs))


def machine_for(recorder: QemuBinary, loader: QemuBinary, wanted: str) -> str | None:
    """The machine type that guests of the recorder have when they go to the loader; None when there is none.

    To a newer QEMU they bring the recorder's newest type, whether the loader still has it or not. To an older one
    only a type that both know can go: the newest of these.
    """
    if _VERSIONED.match(wanted):
        return wanted if recorder.machine(wanted) is not None else None
    ours, theirs = _types(recorder, wanted), _types(loader, wanted)
    if not ours:
        return None
    newest = max(ours)
    if not theirs or newest <= max(theirs):
        return ours[newest]
    both = ours.keys() & theirs.keys()
    return ours[max(both)] if both else ours[newest]


def shared_machine(a: QemuBinary, b: QemuBinary, wanted: str) -> str | None:
    """The machine type that both builds have: of a family the newest; None when there is none."""
    if _VERSIONED.match(wanted) or not _types(a, wanted):
        return wanted if a.machine(wanted) and b.machine(wanted) else None
    ours, theirs = _types(a, wanted), _types(b, wanted)
    both = ours.keys() & theirs.keys()
    return ours[max(both)] if both else None


class EndingState(StrEnum):
    """How long a build has a machine type."""

    DEPRECATED = "deprecated"
    REMOVED = "removed"
    NOT_YET = "not-yet"


def ending(binary: QemuBinary, machine: str) -> EndingState | None:
    """Whether a build has a machine type no more, not for long, or not yet; None where it simply has it."""
    found: MachineType | None = binary.machine(machine)
    if found is not None:
        return EndingState.DEPRECATED if found.deprecated else None
    match = _VERSIONED.match(machine)
    newest = max(_types(binary, family_of(machine)), default=Version("0"))
    return EndingState.NOT_YET if match and newest < Version(match[1]) else EndingState.REMOVED


def other_types(binary: QemuBinary, machine: str) -> OtherTypes | None:
    """What a build has in place of a machine type; None when it has none of its family."""
    types = _types(binary, family_of(machine))
    if not types:
        return None
    return OtherTypes(version=binary.version, oldest=types[min(types)], newest=types[max(types)])


def _types(binary: QemuBinary, family: str) -> dict[Version, str]:
    found = {}
    for machine in binary.machines:
        match = _VERSIONED.match(machine.name)
        if match and family_of(machine.name) == family:
            found[Version(match[1])] = machine.name
    return found


def _once(pairs: Iterable[QemuPair]) -> Iterator[QemuPair]:
    seen = set()
    for pair in pairs:
        if pair.key not in seen:
            seen.add(pair.key)
            yield pair
