# SPDX-License-Identifier: GPL-2.0-or-later
"""What is judged in an adopted VM: a device for each thing that the plan has, and the platform for the rest.

What is known of a device's type comes along from its recipe or from what is derived of it: the decoder, names of
registers, what the kernel calls it, and guest commands. These are the ones that look for drivers and workload by the
device's place, for a recipe's own expect the disk or the network card to be the only one of its guest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from harness.adopt.little import with_little_memory
from harness.adopt.plan import Adopted
from harness.devices.derive import derive
from harness.devices.device import NOTHING, VARIANT, Attachment, Device, GuestCommands
from harness.devices.rules import load_rules
from harness.guests.lack import Lack, Lacks
from harness.guests.origin import LeftOut, VmOrigin, Without, label
from harness.guests.plan import GuestPlan, PlacedDevice, above, hanging_on
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state.catalogue import Offer
from harness.state.owners import Owners, find_owners

#: All of one type are one device: a VM may have a dozen, and nothing is in them.
_TOGETHER = frozenset({"pcie-root-port", "ioh3420", "x3130-upstream", "xio3130-downstream"})
#: To take a bridge from its driver is to take away all that is below it.
_BRIDGES = _TOGETHER | {"pci-bridge", "pcie-pci-bridge", "i82801b11-bridge", "pxb", "pxb-pcie"}
#: What is done with the controller that a device is plugged into is done with it too; nothing is done with a bridge.
_WITH_OTHERS = ":"
_STEPS = ("busy", "check", "idle", "unbind", "rebind")
#: The guest sees nothing of these: somebody else's device would have to be behind them.
_UNSEEN = frozenset({"usb-redir"})
#: Controllers, and the buses of types that are plugged into them. A guest would wait for what is below an empty one.
_CONTROLLERS = (
    *("*uhci*", "*ehci*", "*xhci*", "pci-ohci"),
    *("virtio-serial*", "virtio-scsi*", "lsi*", "megasas*", "mptsas*"),
)
_PLUGGED = frozenset({"usb-bus", "SCSI", "virtio-serial-bus"})
#: Of an empty controller the driver alone is bound, and taken away.
_EMPTY = {
    **dict.fromkeys(_STEPS, _WITH_OTHERS),
    "bind": 'auto_place "{slot}" "" && auto_driver',
    "unbind": 'pci_unbind "{slot}"',
    "rebind": 'echo "{slot}" > /sys/bus/pci/drivers_probe',
}
_ASKED_MIB = 128
_WITHOUT = {Lacks.SECTION: Without.SECTION, Lacks.MIGRATION: Without.MIGRATION, Lacks.SAVE: Without.SAVE}


def judged_guest(adopted: Adopted, offer: Offer) -> PlannedGuest:
    """The guest of a VM, and what is judged in it: each of its devices has an owner.

    :param offer: of a QEMU that has them
    """
    plan = adopted.plan
    built_in = _built_in(plan, offer)
    owners: dict[str, str] = {}
    devices: dict[str, Device] = {device.name: device for device in built_in}
    counts: dict[str, int] = {}
    for placed in plan.devices:
        owner = next((device.name for device in built_in if _is_on(placed, device, plan.family)), None)
        if owner is None:
            base = _row(placed.type, offer)
            number = counts[base] = counts.get(base, 0) + (not counts.get(base) or placed.type not in _TOGETHER)
            owner = base if number == 1 else f"{base}{VARIANT}{number}"
            if owner not in devices:
                devices[owner] = _device(owner, base, placed, plan, offer)
        owners[placed.id] = owner
    placed_devices = tuple(placed.model_copy(update={"owner": owners[placed.id]}) for placed in plan.devices)
    rest = [device for device in offer.recipes.values() if device.rest]
    return PlannedGuest(devices=(*devices.values(), *rest), plan=plan.model_copy(update={"devices": placed_devices}))


def _row(type_name: str, offer: Offer) -> str:
    """What a type is judged as."""
    rows = offer.derived.rows.get(type_name)
    why = offer.derived.underived.get(type_name)
    return rows[0] if rows else (why.row if why is not None and why.row else type_name)


def _built_in(plan: GuestPlan, offer: Offer) -> list[Device]:
    """Devices that the machine has by itself, can be without, and has something plugged into."""
    found = [device for device in offer.recipes.values() if device.without(plan.family)]
    there = [device for device in found if any(_is_on(placed, device, plan.family) for placed in plan.devices)]
    return [
        replace(device, attachments=device.attachments[:1], backends={}, patterns={}, faults={}, takes=frozenset())
        for device in (replace(d, guest=_commands(d.name, d.attachments[0].type, offer)) for d in there)
    ]


def _is_on(placed: PlacedDevice, device: Device, family: str) -> bool:
    """Whether something is plugged into what the machine has by itself."""
    buses = {built.bus.partition(".")[0] for built in device.built_in.get(family, {}).values()}
    return placed.bus is not None and placed.bus.partition(".")[0] in buses


def _device(name: str, base: str, placed: PlacedDevice, plan: GuestPlan, offer: Offer) -> Device:
    known = offer.devices.get(base)
    commands = _commands(name, placed.type, offer)
    if placed.type in _BRIDGES | _UNSEEN:
        commands = GuestCommands(**dict.fromkeys(("bind", *_STEPS), _WITH_OTHERS))
    elif placed.slot is None and above(placed, plan) is not None:
        commands = commands.model_copy(update=dict.fromkeys(_STEPS, _WITH_OTHERS))
    elif _is_empty(placed, plan, offer):
        commands = GuestCommands(**_EMPTY)
    attachment = Attachment(name="dev", type=placed.type, on="none", properties=placed.properties)
    if known is None:
        return Device(name=name, about=placed.type, default=False, attachments=(attachment,), guest=commands)
    return Device(
        name=name,
        about=known.about,
        default=False,
        attachments=(attachment,),
        cmdline=known.cmdline,
        kernel_names=known.kernel_names,
        decoder=known.decoder,
        drift=known.drift,
        registers=known.registers,
        guest=commands,
    )


def _is_empty(placed: PlacedDevice, plan: GuestPlan, offer: Offer) -> bool:
    """Whether something is a controller that nothing is plugged into; what finds its bus by itself may be in any."""
    if not any(fnmatchcase(placed.type, pattern) for pattern in _CONTROLLERS):
        return False
    seen = [each for each in plan.devices if each.type not in _UNSEEN and each.type in offer.types]
    loose = any(each.bus is None and offer.types[each.type].bus in _PLUGGED for each in seen)
    return not loose and not any(above(each, plan) is placed for each in seen)


def _commands(name: str, type_name: str, offer: Offer) -> GuestCommands:
    """The commands that are derived of a type, for a device of this name."""
    kind = offer.types.get(type_name)
    found = None if kind is None else derive(kind, load_rules(), offer.types)
    if kind is None or not isinstance(found, Device):
        row = _row(type_name, offer)
        known = offer.devices.get(row)
        if known is None or known.subject is None or known.subject.type == type_name:
            return GuestCommands(bind=f'auto_bind {name} "{{slot}}" ""')
        return _commands(name, known.subject.type, offer)
    mine = partial(re.sub, rf"^(auto_\w+) {re.escape(kind.name)}(?=\s|$)", rf"\1 {name}")
    lines = {key: mine(line) for key, line in found.guest if line != NOTHING and key not in ("fail", "failed")}
    return GuestCommands(**lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledGuest:
    """A VM's guest as a QEMU runs it.

    :param guest: without what that QEMU does not start with or does not save
    :param origin: with what that was
    """

    guest: PlannedGuest
    owners: Owners
    origin: VmOrigin

    def first(self, count: int) -> SettledGuest:
        """The same with the first of its devices alone: what a device is plugged into comes before it."""
        return self._only(self.guest.names[:count], self.origin)

    def without_lost(self, name: str, said: str) -> SettledGuest:
        """The same without a device that its guest is lost by, and without what hangs on that.

        :param said: how it was lost
        """
        plan = self.guest.plan
        ids = hanging_on(plan, [each.id for each in plan.of(name)])
        gone = [each for each in plan.devices if each.id in ids]
        told = [
            LeftOut(why=Without.LOST, id=each.id, type=each.type, said=label(said, 400))
            if each.owner == name
            else LeftOut(why=Without.BUS, id=each.id, type=each.type, names=(label(each.bus or ""),))
            for each in gone
        ]
        # of ports that are judged together the others stay
        whole = {each.owner for each in gone} - {each.owner for each in plan.devices if each.id not in ids}
        names = [each for each in self.guest.names if each not in whole]
        return self._only(names, self.origin.plus(*told))

    def _only(self, names: Collection[str], origin: VmOrigin) -> SettledGuest:
        sections = {name: labels for name, labels in self.owners.sections.items() if name in names}
        return SettledGuest(guest=self.guest.only(names), owners=replace(self.owners, sections=sections), origin=origin)


def settled_guest(
    guest: PlannedGuest,
    origin: VmOrigin,
    binary: QemuBinary,
    accel: str,
    *,
    source: Path | None = None,
    scope: ProcessScope | None = None,
) -> SettledGuest:
    """Ask a QEMU which devices of a VM it starts with and saves, and which sections are whose.

    What saves no section of its own stays in its place, and belongs to nobody.

    :param source: of the plan, which is checked as one from elsewhere
    :raises QemuError: the machine does not start, or cannot be saved, with none of them
    :raises Disturbed: the host disturbed each try
    """
    # what is saved of memory costs time at each start, and names of sections do not depend on it
    little = with_little_memory(guest.plan, min(guest.plan.memory_mib, _ASKED_MIB))
    owners = find_owners(binary, replace(guest, plan=little), accel, scope, source)
    silent = {name for name, lack in owners.refused.items() if lack.what is Lacks.SECTION}
    lost = owners.refused.keys() - silent
    kept = tuple(
        each.model_copy(update={"owner": ""}) if each.owner in silent else each
        for each in guest.plan.devices
        if each.owner not in lost
    )
    devices = tuple(device for device in guest.devices if device.name not in owners.refused)
    return SettledGuest(
        guest=PlannedGuest(devices=devices, plan=guest.plan.with_devices(kept)),
        owners=owners,
        origin=origin.plus(*_left_out(guest.plan, owners.refused)),
    )


def _left_out(plan: GuestPlan, refused: Mapping[str, Lack]) -> list[LeftOut]:
    return [
        LeftOut(why=_WITHOUT.get(lack.what, Without.START), id=each.id, type=each.type, said=label(lack.said, 400))
        for name, lack in refused.items()
        for each in plan.of(name)
    ]
