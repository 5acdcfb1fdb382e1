# SPDX-License-Identifier: GPL-2.0-or-later
"""Spreads devices over guests: slots and buses are given out here, and what cannot live together is kept apart.

Pure: no QEMU is asked. A device that has no place on a machine is refused with a reason, and no other one with it.
The devices of the default matrix share a guest of their own, so that naming one more device changes nothing for them.
Devices of one type are spread: a guest that one of them loses is not lost for all of them. What lives with few others
is placed first, so that no guest is left for it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from harness.arch import RootBus
from harness.devices.device import Attachment, Device
from harness.guests.lack import Lack, Lacks
from harness.guests.plan import PORT, GuestPlan, PlacedDevice, root_bus

#: Devices of one type, and devices at all, that are put into one guest.
_MOST_OF_A_TYPE = 2
_MOST_DEVICES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGuest:
    """One guest and the devices that are judged in it; the platform is in each, and judged in the first."""

    devices: tuple[Device, ...]
    plan: GuestPlan

    @property
    def wide(self) -> bool:
        """Whether one of its devices wants the guest with all drivers."""
        return any(device.wide for device in self.devices)

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that it was given: all but the platform."""
        return tuple(device.name for device in self.devices if not device.rest)

    def only(self, names: Collection[str]) -> PlannedGuest:
        """The same guest with some of its devices, in their places."""
        return self.without({name for name in self.names if name not in names})

    def without(self, names: Collection[str]) -> PlannedGuest:
        """The same guest without some devices, the others in their places."""
        left = tuple(device for device in self.devices if device.name not in names)
        lost = [device for device in self.devices if device.name in names]
        off = {key: value for device in lost for key, value in device.without(self.plan.family).items()}
        return PlannedGuest(devices=left, plan=self.plan.only({device.name for device in left}, off))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """All guests of one machine.

    :param refused: device to why no guest can have it
    """

    guests: tuple[PlannedGuest, ...]
    refused: dict[str, Lack]


def plan_guests(bus: RootBus | None, base: GuestPlan, devices: Sequence[Device], *, failing: bool = False) -> Planned:
    """The guests that some devices need.

    :param bus: where devices can be; None for a machine of which no bus is known
    :param base: the guest without any of them
    :param failing: disks are going to fail: a device that has one gets a guest of its own, unless it belongs to the
        default matrix, for a QEMU that dies of its halted request dies in the incoming stream of everybody beside it
    """
    drafts: list[_GuestDraft] = []
    refused: dict[str, Lack] = {}
    for device in sorted((d for d in devices if not d.rest), key=_turn):
        if bus is None and any(a.on != "none" for a in device.attached(base.family)):
            refused[device.name] = Lack(what=Lacks.BUS, machine=base.machine)
            continue
        apart = failing and bool(device.faults) and not device.default
        fitting = [] if apart else [draft for draft in drafts if draft.suits(device)]
        own = _GuestDraft(bus=bus, plan=_machine_of(device, base), like=None if apart else device)
        lack = _place(device, [*sorted(fitting, key=lambda draft: draft.crowd(device)), own], drafts)
        if lack is not None:
            refused[device.name] = lack
    if not drafts:
        drafts.append(_GuestDraft(bus=bus, plan=base))
    rest = [d for d in devices if d.rest]
    return Planned(guests=tuple(draft.guest(rest) for draft in drafts), refused=refused)


def _turn(device: Device) -> tuple[bool, bool]:
    """Those of the default matrix come first, and of the others those that a guest has one of."""
    return not device.default, not device.default and not device.takes


def _machine_of(device: Device, base: GuestPlan) -> GuestPlan:
    """The guest with the machine that a device asks for."""
    return base.model_copy(update={"machine_properties": {**base.machine_properties, **device.machine}})


def _place(device: Device, candidates: Sequence[_GuestDraft], drafts: list[_GuestDraft]) -> Lack | None:
    """Put a device into the first guest that takes it; why none does, or None."""
    lack = None
    for draft in candidates:
        lack = draft.add(device)
        if lack is None:
            if draft not in drafts:
                drafts.append(draft)
            return None
    return lack


@dataclass(slots=True, kw_only=True, eq=False)
class _GuestDraft:
    """A guest that devices are still added to.

    :param like: a device that it was begun for; None where no other one may join it
    """

    bus: RootBus | None
    plan: GuestPlan
    like: Device | None = None
    devices: list[Device] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    placed: list[PlacedDevice] = field(default_factory=list)

    def suits(self, device: Device) -> bool:
        """Whether a device wants the same machine, and the same company."""
        like = self.like
        if like is None or _ways(like) != _ways(device):
            return False
        alike, count = self.crowd(device)
        return like.default or (alike < _MOST_OF_A_TYPE and count < _MOST_DEVICES)

    def crowd(self, device: Device) -> tuple[int, int]:
        """How many of its devices stand for the same type as another one, and how many it has."""
        return sum(1 for other in self.devices if _type_of(other) == _type_of(device)), len(self.devices)

    def add(self, device: Device) -> Lack | None:
        """Take a device in; why that is not to be done, or None."""
        clash = {name for other in self.devices for name in other.takes & device.takes}
        if clash:
            return Lack(what=Lacks.GUEST_NAMES, names=tuple(sorted(clash)))
        taken, placed = set(self.taken), list(self.placed)
        lack = self._attach_all(device) or self._twice(device)
        if lack is None:
            self.devices.append(device)
        else:
            self.taken, self.placed = taken, placed
        return lack

    def guest(self, rest: Sequence[Device]) -> PlannedGuest:
        """What has come of it; the platform is last."""
        backends = {device.node(name): backend for device in self.devices for name, backend in device.backends.items()}
        room = [device.memory_room_mib for device in self.devices if device.memory_room_mib]
        plan = self.plan.model_copy(
            update={
                "devices": (*self.plan.devices, *self.placed),
                "backends": backends,
                "memory_room_mib": self.plan.memory_room_mib + sum(room),
                "memory_slots": self.plan.memory_slots + len(room),
            }
        )
        return PlannedGuest(devices=(*self.devices, *rest), plan=GuestPlan.model_validate(plan.model_dump()))

    def _attach_all(self, device: Device) -> Lack | None:
        lacks = (self._attach(device, attachment) for attachment in device.attached(self.plan.family))
        return next((lack for lack in lacks if lack is not None), None)

    def _twice(self, device: Device) -> Lack | None:
        """Ids that stand in the guest more than once with this device: names of two devices may join to one."""
        ids = [placed.id for placed in (*self.plan.devices, *self.placed)]
        ids += [each.node(name) for each in (*self.devices, device) for name in each.backends]
        twice = tuple(sorted({name for name in ids if ids.count(name) > 1}))
        return Lack(what=Lacks.IDS, names=twice) if twice else None

    def _attach(self, device: Device, attachment: Attachment) -> Lack | None:
        bus: str | None = None
        slot: str | None = None
        if attachment.on in ("pci", "pcie-port"):
            assert self.bus is not None  # asked before
            bus, slot = self.bus.name, self._free_slot()
            if slot is None:
                return Lack(what=Lacks.SLOT, names=(bus,))
            if attachment.on == "pcie-port":
                if not self.bus.has_ports:
                    return Lack(what=Lacks.PORTS, machine=self.plan.machine)
                bus, slot = self._port(device, attachment, slot), "00.0"
        elif ":" in attachment.on:
            bus, slot = self._function(device, attachment)
        elif attachment.on != "none":
            bus = _bus_of(device, attachment.on, self.plan.family)
            if any(each.id == bus and root_bus(each) for each in self.placed):
                slot = f"{sum(1 for each in self.placed if each.bus == bus):02x}.0"
        self.placed.append(
            PlacedDevice(
                id=device.attached_as(attachment.name),
                type=attachment.type,
                owner=device.name,
                bus=bus,
                slot=slot,
                properties=dict(attachment.properties),
                backends={key: device.node(name) for key, name in attachment.backends.items()},
                references={key: device.attached_as(name) for key, name in attachment.references.items()},
            )
        )
        return None

    def _function(self, device: Device, attachment: Attachment) -> tuple[str | None, str]:
        """Bus and slot of a further function of one that is placed."""
        name, _, function = attachment.on.partition(":")
        first = next(each for each in self.placed if each.id == device.attached_as(name))
        assert first.slot is not None  # asked where the device was made
        return first.bus, f"{first.slot[:2]}.{function}"

    def _free_slot(self) -> str | None:
        assert self.bus is not None  # asked before
        number = next((n for n in self.bus.slots if n not in self.taken), None)
        if number is None:
            return None
        self.taken.add(number)
        return f"{number:02x}.0"

    def _port(self, device: Device, attachment: Attachment, slot: str) -> str:
        """A root port of the device's own; returns the bus below it."""
        assert self.bus is not None  # asked before
        name = f"{device.attached_as(attachment.name)}-port"
        number = 1 + sum(1 for placed in self.placed if placed.type == PORT)
        self.placed.append(
            PlacedDevice(
                id=name,
                type=PORT,
                owner=device.name,
                bus=self.bus.name,
                slot=slot,
                properties={"chassis": number, "slot": number},
            )
        )
        return name


def _ways(device: Device) -> tuple[object, ...]:
    """In what a guest is another one with a device: those that share a guest have all of it in common."""
    return device.default, device.machine, device.cmdline, device.shares_memory


def _type_of(device: Device) -> str:
    return device.subject.type if device.subject else device.name


def _bus_of(device: Device, on: str, family: str) -> str:
    """``hba.0`` as the machine calls it."""
    name, _, bus = on.partition(".")
    built = device.built_in.get(family, {}).get(name)
    if built:
        return built.bus
    return f"{device.attached_as(name)}.{bus}" if bus else device.attached_as(name)
