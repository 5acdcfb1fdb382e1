# SPDX-License-Identifier: GPL-2.0-or-later
"""A device: what can be judged, whatever told of it.

A device says what is attached and what that needs, never where: slots and buses are the planner's
(:mod:`harness.guests.planner`). Which sections are its own is found on a real QEMU (:mod:`harness.state.owners`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from harness.devices.backends import Backend, Model, shares_memory
from harness.devices.saved import Registers, Rule
from harness.errors import UsageError

Scalar = bool | int | str

_MAX_KERNEL_NAME = 64
_KERNEL_NAME = re.compile(r"(?:[A-Za-z0-9_ :-]|\[(?:[A-Za-z0-9]-[A-Za-z0-9]|[A-Za-z0-9])+\]\+?)+")


def _kernel_name(name: str) -> str:
    """A pattern of so few means that none takes long: it comes with a pack from elsewhere, and is held against each
    line of the guest's log."""
    if not _KERNEL_NAME.fullmatch(name) or name.count("+") > 1 or len(name) > _MAX_KERNEL_NAME:
        raise ValueError(
            f"{name!r:.80}: expected letters, digits, spaces, '_', '-' and ':', and sets such as [0-9], one of them "
            "with '+' behind it for several characters"
        )
    try:
        re.compile(name)
    except re.error as error:
        raise ValueError(f"{name!r}: {error}") from error
    return name


#: What the guest's kernel calls a device in its log, such as ``eth[0-9]+``.
KernelName = Annotated[str, AfterValidator(_kernel_name)]

#: A parameter of the guest's kernel.
KernelParameter = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.=,:-]+$", max_length=64)]

#: A guest command that does nothing.
NOTHING = "true"
#: Stands between the type of a variant and what is special about it: ``nvme+ns2``.
VARIANT = "+"
#: In front of a category in a selection: ``category:network``.
CATEGORY = "category:"
_MOST_SHOWN = 6
#: A block node has 31 characters (``include/block/block_int-common.h``), and some get ``-faults`` behind theirs.
_LONGEST_ID = 24
#: Guest command that brings a device into a phase.
STEPS = {"bound": "bind", "busy": "busy", "unbound": "unbind", "rebound": "rebind"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One ``-device``.

    :param name: its name within the device; its id is the device's name and this one
    :param on: ``pci`` for a slot of the root bus, ``pcie-port`` for a root port of its own, ``none`` for a device that
        finds its bus by itself, ``NAME:FUNCTION`` for a further function in the slot of another attachment, else
        ``NAME.BUS``: a bus of another attachment
    :param backends: property to the backend that it names, such as ``drive`` to ``disk``
    :param references: property to another attachment, before it, that it names, such as ``bmc`` to ``sim``
    """

    name: str
    type: str
    on: str = "pci"
    properties: Mapping[str, Scalar] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """An attachment that a machine family has already.

    :param bus: what the machine calls its bus, for what is attached to it
    :param address: where the guest sees it, such as ``0000:00:1f.2``
    :param without: properties of the machine that leave it out; without any its sections are the platform's
    """

    bus: str
    address: str
    without: Mapping[str, bool | int] = field(default_factory=dict)


class GuestCommands(Model):
    """Lines for the guest's shell; a status other than 0 fails the phase.

    ``{slot}`` is the PCI address of the device as the guest sees it. ``life`` is asked of a bound device after a
    failover: status 0 when it works, else it has said what does not. ``fail`` gets a request ready in the background
    that hits the sector that fails (phase ``io-error``); the guest's ``fail_now`` makes the requests of all devices.
    ``failed`` is asked when that was held back and the machine goes on: status 0 when the request was answered well, 3
    while it waits, else it has said what came of it.
    """

    bind: str = NOTHING
    busy: str = NOTHING
    check: str = NOTHING
    idle: str = NOTHING
    unbind: str = NOTHING
    rebind: str = NOTHING
    life: str = NOTHING
    fail: str = NOTHING
    failed: str = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What can be judged.

    :param type: the QEMU type that it stands for, another name of it; that of its first attachment when empty
    :param rest: owns every section that no other device owns: the platform
    :param default: judged when no device is named
    :param built_in: machine family to the attachments that it has already, by their names
    :param machine: properties of the machine that it needs
    :param memory_room_mib: memory that it may bring beside the machine's own
    :param cmdline: parameters of the guest's kernel, beside its own; it shares a guest with devices that want the same
    :param within: the attachment that its state is saved with, for one that saves no section of its own
    :param patterns: backend that ``bind`` writes the pattern to, to the disk that the guest sees
    :param faults: backend to the sector of 512 bytes that fails in phase ``io-error``; nothing else may touch it
    :param reports_errors: its disks report each error to the guest, and QEMU cannot stop for one: it has no ``werror``
        and no ``rerror`` for them
    :param drivers: guest kernel drivers that the guest must have on board
    :param takes: names that it has in the guest, such as ``eth0``: two that take the same one need two guests
    :param kernel_names: what the guest's kernel calls it in its log
    :param decoder: names what the vmdesc has as one opaque field; of ``CODECS`` of :mod:`harness.stream.vmdesc`
    :param drift: fields of its sections that move by nature
    :param registers: names of what lies in its sections
    """

    name: str
    about: str
    type: str = ""
    rest: bool = False
    default: bool = True
    attachments: tuple[Attachment, ...] = ()
    backends: Mapping[str, Backend] = field(default_factory=dict)
    built_in: Mapping[str, Mapping[str, BuiltIn]] = field(default_factory=dict)
    machine: Mapping[str, bool | int] = field(default_factory=dict)
    memory_room_mib: int = 0
    cmdline: tuple[KernelParameter, ...] = ()
    within: str = ""
    patterns: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    reports_errors: bool = False
    drivers: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()
    kernel_names: tuple[KernelName, ...] = ()
    decoder: str = ""
    drift: tuple[Rule, ...] = ()
    registers: tuple[Registers, ...] = ()
    guest: GuestCommands = field(default_factory=GuestCommands)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names: the type that it stands for. A variant has none."""
        subject = self.subject
        return () if subject is None or VARIANT in self.name else (subject.type,)

    @property
    def subject(self) -> Attachment | None:
        """The attachment that it stands for, beside what that stands on; None for the platform."""
        known = (attachment for attachment in self.attachments if self.type in ("", attachment.type))
        return next(known, None)

    @property
    def wide(self) -> bool:
        """Whether the guest has to look for its drivers, and so must have all of them on board."""
        return self.guest.bind.startswith("auto_bind ")

    @property
    def shares_memory(self) -> bool:
        """Whether a program beside QEMU has to have the guest's memory for it."""
        return shares_memory(self.backends.values())

    def attached(self, family: str) -> list[Attachment]:
        """What has to be added to a machine of this family."""
        there = self.built_in.get(family, {})
        return [attachment for attachment in self.attachments if attachment.name not in there]

    def types(self, family: str) -> list[str]:
        """QEMU device types that a build must have for it, each once."""
        return list(dict.fromkeys(attachment.type for attachment in self.attached(family)))

    def without(self, family: str) -> dict[str, bool | int]:
        """Properties of the machine that leave out what it has built in."""
        return {key: value for built in self.built_in.get(family, {}).values() for key, value in built.without.items()}

    def node(self, part: str) -> str:
        """The id of one of its backends in a plan; QEMU wants a letter first, and block nodes that are not long."""
        name = self.name.replace(VARIANT, "--").replace(",", "-")
        text = f"{'' if name[0].isalpha() else 'd'}{name}-{part}"
        if len(text) <= _LONGEST_ID:
            return text
        return f"{text[: _LONGEST_ID - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    def attached_as(self, name: str) -> str:
        """The id of one of its attachments in a plan, another than that of a backend of the same name."""
        return self.node(f"{name}-dev" if name in self.backends else name)

    def failing(self) -> dict[str, int]:
        """Sector that fails by the id of the disk in a plan."""
        return {self.node(backend): sector for backend, sector in self.faults.items()}

    def reaches(self, phase: str) -> bool:
        """Whether it has anything to do in a phase, or a reason why not; the platform is in all of them."""
        if phase == "io-error":
            return bool(self.faults) or self.reports_errors
        return self.rest or phase not in STEPS or getattr(self.guest, STEPS[phase]) != NOTHING


def select_devices(
    devices: Mapping[str, Device], names: Sequence[str], categories: Mapping[str, str] | None = None
) -> list[Device]:
    """The named ones; without names those that are judged by default. See :func:`matching` for what a name can be.

    :raises UsageError: a name fits none; the message lists those that are near it
    """
    if not names:
        return [device for device in devices.values() if device.default]
    wanted: set[str] = set()
    for name in names:
        found = matching(devices, name, categories or {})
        if not found:
            raise unknown_device(name, known_names(devices.values()))
        wanted |= {device.name for device in found}
    return [device for device in devices.values() if device.name in wanted]


def matching(devices: Mapping[str, Device], name: str, categories: Mapping[str, str]) -> list[Device]:
    """Those that a name means: a device's own name, the type that it stands for, a pattern of these, ``all``, or
    ``category:NAME``.

    :param categories: of devices, by their names
    """
    if name in devices:
        return [devices[name]]
    if name.startswith(CATEGORY):
        wanted = name.removeprefix(CATEGORY)
        return [device for device in devices.values() if categories.get(device.name) == wanted]
    pattern = "*" if name == "all" else name
    return [d for d in devices.values() if any(fnmatchcase(known, pattern) for known in (d.name, *d.aliases))]


def known_names(devices: Iterable[Device]) -> list[str]:
    """Every name that devices are known by."""
    return [name for device in devices for name in (device.name, *device.aliases)]


def unknown_device(name: str, known: Sequence[str]) -> UsageError:
    """What to say of a name that fits no device: the near ones, or all where they are few."""
    lower = {each.lower(): each for each in known}
    near = [lower[each] for each in get_close_matches(name.lower(), list(lower), _MOST_SHOWN, 0.6)]
    near += [each for each in known if name.lower() in each.lower() and each not in near]
    if not near and len(known) <= 2 * _MOST_SHOWN:
        near = list(known)
    said = f" (near it: {', '.join(near[:_MOST_SHOWN])})" if near else ""
    return UsageError(
        f"unknown device {name!r}{said}: expected a name that postload devices lists, a pattern, {CATEGORY}NAME, or all"
    )


def device_types(devices: Iterable[Device]) -> set[str]:
    """Every QEMU device type that any of them attaches."""
    return {attachment.type for device in devices for attachment in device.attachments}


def section_label(idstr: str, instance_id: int) -> str:
    """How a section is named everywhere: its idstr, with ``#n`` for instances other than 0."""
    return idstr if instance_id == 0 else f"{idstr}#{instance_id}"
