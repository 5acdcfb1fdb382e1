# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said of somebody's VM on another QEMU before anything is started: what that QEMU has not, and what it is
about to lose.

A machine type, a CPU model, a device type or a property that the new QEMU lacks keeps the VM from coming: it does not
start there at all. Where the QEMU that it runs on lacks one as well, this host cannot make such a guest, and nothing
is known. QEMU says of machine types and CPU models which are deprecated; of devices it says so at their start alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Protocol

from harness.adopt.configuration import Configuration, SaidOption
from harness.devices.types import parse_help
from harness.qemu.binary import QemuBinary
from harness.qemu.listed import cpu_models, device_help, listing
from harness.qualify.explained import OtherTypes
from harness.qualify.model import Answer, worst
from harness.qualify.pairs import other_types
from harness.results.cause import Side

#: CPU models that are whatever the host has: no QEMU lacks them.
_OF_HOST = frozenset({"host", "max", "base"})
#: What a device option says beside the properties of its type.
_OWN_KEYS = frozenset({"driver", "id", "bus", "addr"})
_NEAR = 3
#: Values of a property that does nothing.
_OFF = frozenset({"off", "false", "no", "0"})


class Foresight(StrEnum):
    """What a QEMU has not, or not for long."""

    MACHINE_TYPE = "machine-type"
    CPU_MODEL = "cpu-model"
    DEVICE_TYPE = "device-type"
    PROPERTY = "property"


class Standing(StrEnum):
    """How a QEMU has it."""

    MISSING = "missing"
    DEPRECATED = "deprecated"
    UNUSED = "unused"  # a property that is missing, and that the VM has switched off


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """One thing that is known without a load.

    :param name: machine type, CPU model, device type, or TYPE.PROPERTY
    :param devices: those of the VM that have it, by id or by type; empty for what the whole machine has
    :param side: whose QEMU
    :param version: of that QEMU
    :param types: machine types that the QEMU has in place of a missing one
    :param near: CPU models of nearly this name that it has
    """

    what: Foresight
    name: str
    standing: Standing
    side: Side
    version: str
    devices: tuple[str, ...] = ()
    types: OtherTypes | None = None
    near: tuple[str, ...] = ()

    @property
    def answer(self) -> Answer:
        """What it makes of the VM's answer."""
        if self.standing is not Standing.MISSING:
            return Answer.GO
        return Answer.NO_GO if self.side is Side.LOADER else Answer.UNKNOWN

    @property
    def keeps_all(self) -> bool:
        """Whether nothing of the VM can be loaded: there is no such machine. A device costs itself alone."""
        return self.answer is Answer.NO_GO and self.what in (Foresight.MACHINE_TYPE, Foresight.CPU_MODEL)


class Words(Protocol):
    """What a QEMU says of itself."""

    def machine_types(self) -> Mapping[str, bool]:
        """Machine types and aliases, to whether they are deprecated."""
        ...

    def cpu_models(self) -> Mapping[str, bool]:
        """CPU models, to whether they are deprecated."""
        ...

    def device_type(self, name: str) -> str | None:
        """What a device type or its alias is called; None where there is none."""
        ...

    def properties(self, types: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """Properties of device types, by their full names."""
        ...


class BinaryWords:
    """A QEMU that is asked, or what it answered before."""

    def __init__(self, binary: QemuBinary) -> None:
        self._binary = binary
        self._types: dict[str, str] | None = None

    def machine_types(self) -> Mapping[str, bool]:
        return {
            name: machine.deprecated
            for machine in self._binary.machines
            for name in (machine.name, machine.alias)
            if name is not None
        }

    def cpu_models(self) -> Mapping[str, bool]:
        return cpu_models(self._binary.path)

    def device_type(self, name: str) -> str | None:
        if self._types is None:
            kinds = parse_help(device_help(self._binary.path))
            self._types = {kind.alias: kind.name for kind in kinds if kind.alias} | {k.name: k.name for k in kinds}
        return self._types.get(name)

    def properties(self, types: Iterable[str]) -> Mapping[str, frozenset[str]]:
        found = listing(self._binary.path, "none", sorted(types)).devices
        return {name: frozenset(properties) for name, properties in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The two QEMUs of a VM's way, each with what it says of itself."""

    recorder: QemuBinary
    loader: QemuBinary
    recorder_words: Words
    loader_words: Words

    def lacking(self, ours: bool, theirs: bool) -> tuple[Side, str] | None:
        """Whose lack something is, and of which version; the new QEMU's counts first.

        :param ours: whether the QEMU that records has it, ``theirs`` the one that loads
        """
        if not theirs:
            # where neither has it there is nothing to move, and no guest to ask
            side = Side.LOADER if ours else Side.RECORDER
            return side, (self.loader if ours else self.recorder).version
        return None if ours else (Side.RECORDER, self.recorder.version)


def said_cpu(configuration: Configuration) -> str:
    """The CPU model that somebody wrote, without its features; empty where nobody did. The last one counts, as QEMU
    has it."""
    said = [str(o.values["model"]) for o in configuration.named("cpu") if o.values.get("model")]
    return said[-1] if said else ""


def foretell(configuration: Configuration, machine: str, sides: Sides) -> tuple[Foretold, ...]:
    """All that is known of a VM without a load, the machine before its devices.

    :param machine: versioned machine type that it has, or as somebody wrote it where the recorder knows no such type
    :raises QemuError: a QEMU does not say what it has
    """
    return (
        *_machine(machine, sides),
        *_cpu(said_cpu(configuration), sides),
        *_devices(configuration.named("device"), sides),
    )


def answer_of(foretold: Iterable[Foretold]) -> Answer:
    """What it comes to: ``-`` where nothing was said."""
    return worst(each.answer for each in foretold if each.standing is Standing.MISSING)


def _machine(name: str, sides: Sides) -> Iterator[Foretold]:
    ours, theirs = sides.recorder_words.machine_types(), sides.loader_words.machine_types()
    if name not in theirs:
        types = other_types(sides.loader, name)
        yield Foretold(
            what=Foresight.MACHINE_TYPE,
            name=name,
            standing=Standing.MISSING,
            side=Side.LOADER,
            version=sides.loader.version,
            types=types,
        )
    elif name not in ours:
        yield Foretold(
            what=Foresight.MACHINE_TYPE,
            name=name,
            standing=Standing.MISSING,
            side=Side.RECORDER,
            version=sides.recorder.version,
        )
    if theirs.get(name):
        yield _deprecated(Foresight.MACHINE_TYPE, name, sides)


def _cpu(name: str, sides: Sides) -> Iterator[Foretold]:
    if not name or name in _OF_HOST:
        return
    ours, theirs = sides.recorder_words.cpu_models(), sides.loader_words.cpu_models()
    lacking = sides.lacking(name in ours, name in theirs)
    if lacking is not None:
        side, version = lacking
        models = theirs if side is Side.LOADER else ours
        near = tuple(get_close_matches(name, models, n=_NEAR))
        yield Foretold(
            what=Foresight.CPU_MODEL, name=name, standing=Standing.MISSING, side=side, version=version, near=near
        )
    elif theirs[name]:
        yield _deprecated(Foresight.CPU_MODEL, name, sides)


def _deprecated(what: Foresight, name: str, sides: Sides) -> Foretold:
    version = sides.loader.version
    return Foretold(what=what, name=name, standing=Standing.DEPRECATED, side=Side.LOADER, version=version)


def _devices(options: list[SaidOption], sides: Sides) -> Iterator[Foretold]:
    users: dict[str, list[SaidOption]] = {}
    for option in options:
        users.setdefault(str(option.values.get("driver", "")), []).append(option)
    names = {
        said: (sides.recorder_words.device_type(said), sides.loader_words.device_type(said)) for said in users if said
    }
    for said, (ours, theirs) in names.items():
        lacking = sides.lacking(ours is not None, theirs is not None)
        if lacking is not None:
            yield _missing(Foresight.DEVICE_TYPE, said, lacking, users[said])
    both = {said: (ours, theirs) for said, (ours, theirs) in names.items() if ours and theirs}
    here = sides.recorder_words.properties({ours for ours, _ in both.values()})
    there = sides.loader_words.properties({theirs for _, theirs in both.values()})
    for said, (ours, theirs) in both.items():
        if ours in here and theirs in there:
            yield from _properties(theirs, users[said], here[ours], there[theirs], sides)


def _properties(
    kind: str, users: list[SaidOption], ours: frozenset[str], theirs: frozenset[str], sides: Sides
) -> Iterator[Foretold]:
    """Properties that somebody set and the new QEMU has no more; one that neither has is no property but a mistake, or
    an element of a list."""
    for key in dict.fromkeys(key for option in users for key in option.values if key not in _OWN_KEYS):
        if key in ours and key not in theirs:
            having = [option for option in users if key in option.values]
            found = _missing(Foresight.PROPERTY, f"{kind}.{key}", (Side.LOADER, sides.loader.version), having)
            unused = all(str(option.values[key]).lower() in _OFF for option in having)
            yield replace(found, standing=Standing.UNUSED) if unused else found


def _missing(what: Foresight, name: str, lacking: tuple[Side, str], users: list[SaidOption]) -> Foretold:
    side, version = lacking
    devices = tuple(str(option.values.get("id") or option.values.get("driver", "")) for option in users)
    return Foretold(
        what=what,
        name=name,
        standing=Standing.MISSING,
        side=side,
        version=version,
        devices=tuple(dict.fromkeys(devices)),
    )
