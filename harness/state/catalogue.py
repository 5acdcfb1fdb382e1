# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: what becomes of each device type of a QEMU on one machine, found by trying it.

Each device is tried alone: the machine is started, and saved before it has run, with it and without it, where "without"
still has what it stands on. So a keyboard whose state is none is not taken for the controller that it is plugged into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from harness.arch import architecture_of
from harness.devices.derive import DerivedDevices, derive_all
from harness.devices.device import Device, matching
from harness.devices.rules import Status, load_rules
from harness.devices.types import DeviceType, types_of
from harness.errors import DeadlineError, QemuError
from harness.guests.lack import Lack, Lacks
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Hindrances, only_slow, undisturbed
from harness.qemu.scope import ProcessScope
from harness.state.owners import lack_of, saved_labels
from harness.state.recordings import machine_names, missing, planned_guests


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one QEMU can have judged.

    :param types: all of its types
    :param recipes: those that somebody wrote, by name
    """

    types: Mapping[str, DeviceType]
    derived: DerivedDevices
    recipes: Mapping[str, Device]

    @property
    def devices(self) -> dict[str, Device]:
        """Recipes and derived devices, by name."""
        return {**self.derived.devices, **self.recipes}

    @property
    def categories(self) -> dict[str, str]:
        """Category of each device by its name."""
        return {row: self.types[name].category for name, rows in self.derived.rows.items() for row in rows}

    def named(self, name: str) -> list[Device]:
        """Those that a name means: see :func:`~harness.devices.device.matching`; another name of a type is its own."""
        devices, why = self.devices, self.derived.underived.get(name)
        return matching(devices, why.row if why is not None and why.row else name, self.categories)


def offer_of(binary: QemuBinary, recipes: Mapping[str, Device]) -> Offer:
    """Everything that a QEMU has, derived as the shipped rules say.

    :raises QemuError: it does not say what it has
    """
    types = types_of(binary.path)
    return Offer(types=types, derived=derive_all(types, load_rules(), recipes.values()), recipes=recipes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedDevice:
    """What came of trying a device on one machine.

    :param lack: why it is not judged there
    :param elsewhere: family that it is made for, with what becomes of it there
    :param sections: labels of those that it adds to what it stands on
    :param bearers: types of what it stands on, where QEMU does not start with these or save them without it either
    """

    status: Status
    lack: Lack | None = None
    elsewhere: tuple[str, Status] | None = None
    sections: Sequence[str] = ()
    bearers: tuple[str, ...] = ()


#: What a lack makes of a device.
_STATUS = {
    Lacks.MIGRATION: Status.UNMIGRATABLE,
    Lacks.SECTION: Status.STATELESS,
    Lacks.SAVE: Status.FAILS_TO_SAVE,
    Lacks.TYPES: Status.NEEDS,
    Lacks.PROGRAM: Status.NEEDS,
}


def _may_be_false(found: TriedDevice, hindered: Hindrances) -> bool:
    """A QEMU that was stopped or ended looks like one that does not start with a device."""
    return found.lack is not None and not only_slow(hindered)


def _lacking(lack: Lack) -> TriedDevice:
    return TriedDevice(status=_STATUS.get(lack.what, Status.FAILS_TO_START), lack=lack)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrial:
    """Tries devices.

    :param machine: a family or versioned name that the QEMU has
    """

    binary: QemuBinary
    machine: str
    accel: str
    scope: ProcessScope

    def run(self, devices: Sequence[Device], jobs: int, done: Callable[[str], None]) -> dict[str, TriedDevice]:
        """Try some, several at a time.

        :param done: told the name of each that was tried
        """
        with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="trial") as pool:
            return dict(pool.map(partial(self._told, done), devices))

    def _told(self, done: Callable[[str], None], device: Device) -> tuple[str, TriedDevice]:
        found = self.of(device)
        done(device.name)
        return device.name, found

    def of(self, device: Device) -> TriedDevice:
        """Try one; what does not start here and does on another machine of the architecture says so.

        :raises Disturbed: the host disturbed each try
        """
        return undisturbed(partial(self._anywhere, device), _may_be_false)

    def _anywhere(self, device: Device) -> TriedDevice:
        found = self._here(device)
        if found.status is not Status.FAILS_TO_START:
            return found
        family, _ = machine_names(self.binary, self.machine)
        for other in architecture_of(self.machine).buses:
            if other != family and self.binary.machine(other) is not None:
                there = replace(self, machine=other)._here(device)
                if there.status is not Status.FAILS_TO_START:
                    return TriedDevice(status=Status.OTHER_MACHINE, lack=found.lack, elsewhere=(other, there.status))
        return found

    def _here(self, device: Device) -> TriedDevice:
        family, name = machine_names(self.binary, self.machine)
        planned = planned_guests(name, family, [device])
        lack = missing(device, self.binary, self.machine, family) or planned.refused.get(device.name)
        if lack is not None:
            return _lacking(lack)
        guest = planned.guests[0]
        try:
            without = set(self._labels(_without_subject(guest, device)))
        except (QemuError, DeadlineError) as error:
            return replace(_lacking(lack_of(error, self.binary, name)), bearers=_bearers(device))
        try:
            after = self._labels(guest)
        except (QemuError, DeadlineError) as error:
            return _lacking(lack_of(error, self.binary, name))
        sections = [label for label in after if label not in without]
        if not sections and device.within:
            bare = set(self._labels(guest.without(frozenset({device.name}))))
            sections = [label for label in after if label not in bare]
        if not sections:
            return _lacking(Lack(what=Lacks.SECTION, machine=name, qemu=self.binary.version))
        return TriedDevice(status=Status.JUDGED, sections=sections)

    def _labels(self, guest: PlannedGuest) -> list[str]:
        return saved_labels(self.binary, guest.plan, self.accel, self.scope)


def _bearers(device: Device) -> tuple[str, ...]:
    """Types of the attachments that a device stands on."""
    types = [attachment.type for attachment in device.attachments]
    return tuple(types[: device.attachments.index(device.subject)]) if device.subject is not None else ()


def _without_subject(guest: PlannedGuest, device: Device) -> PlannedGuest:
    """The guest with what a device stands on, and without it."""
    subject = device.subject
    names = [attachment.name for attachment in device.attachments]
    before = names[: names.index(subject.name)] if subject is not None else []
    kept = {device.attached_as(name) for name in before}
    if not kept:
        return guest.without(frozenset({device.name}))
    ports = {placed.bus for placed in guest.plan.devices if placed.id in kept}
    left = tuple(placed for placed in guest.plan.devices if placed.id in kept or placed.id in ports)
    return replace(guest, plan=guest.plan.with_devices(left))
