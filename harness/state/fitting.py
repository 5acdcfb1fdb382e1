# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a recorded guest a QEMU can be: a device that it cannot have costs itself and what hangs on it, and the rest
is loaded into a machine without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from harness.guests.lack import Lack, Lacks
from harness.guests.machine import lacking_program
from harness.guests.plan import GuestPlan, PlacedDevice, hanging_on
from harness.packs.pack import StatePack
from harness.packs.part import pack_of_plan
from harness.qemu.binary import QemuBinary
from harness.qemu.listed import Properties, listing

#: Owner of what was given to the guest and is no judged device.
_NOBODY = ""
#: Values of a property that does nothing: a QEMU that has none of that name does without.
_OFF = (False, "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A pack as a QEMU can load it.

    :param pack: the whole one, or one without the devices that it cannot have; None where it cannot be the machine
    :param lacking: names of the devices that are not in it, and why; of all of them where there is no pack
    """

    pack: StatePack | None
    lacking: Mapping[str, Lack] = field(default_factory=dict)


def fitted(pack: StatePack, binary: QemuBinary) -> Fitted:
    """What of a pack a QEMU can load. It was asked for the pack's device types.

    :raises QemuError: it does not say which properties its types have
    :raises HostError: no space
    """
    names = [device.name for device in pack.manifest.devices]
    machine = pack.manifest.machine
    if binary.machine(machine) is None:
        no_machine = Lack(what=Lacks.MACHINE, machine=machine, qemu=binary.version)
        return Fitted(pack=None, lacking=dict.fromkeys(names, no_machine))
    plan = pack.manifest.plan
    at_home = pack.manifest.qemu["sha256"] == binary.sha256
    listed = {} if at_home else _listed(plan, binary)
    plan = plan.model_copy(update={"devices": tuple(_without_unused(each, listed) for each in plan.devices)})
    whole = {device.id: lack for device in plan.devices if (lack := _lack(device, plan, binary, listed)) is not None}
    if not whole and plan == pack.manifest.plan:
        return Fitted(pack=pack)
    gone = hanging_on(plan, whole, whole=True)
    lacking = _by_owner(plan, whole, gone)
    part = pack_of_plan(pack, plan.without(gone), lacking.keys() - {_NOBODY})
    if _NOBODY in lacking:
        # what belongs to nobody is the machine's, and stays so
        lacking |= dict.fromkeys([d.name for d in pack.manifest.devices if d.recipe.rest] or names, lacking[_NOBODY])
        del lacking[_NOBODY]
    return Fitted(pack=part, lacking=lacking)


def without_devices(pack: StatePack, names: Collection[str]) -> tuple[StatePack, frozenset[str]]:
    """A pack without some of its judged devices and those that hang on them, and the names of all of these.

    :raises HostError: no space
    """
    if not names:
        return pack, frozenset()
    plan = pack.manifest.plan
    ids = hanging_on(plan, [device.id for device in plan.devices if device.owner in names], whole=True)
    gone = frozenset({*names, *(device.owner for device in plan.devices if device.id in ids)} - {_NOBODY})
    return pack_of_plan(pack, plan.without(ids), gone), gone


def _listed(plan: GuestPlan, binary: QemuBinary) -> Mapping[str, Properties]:
    """Which properties a QEMU has, of those types of a plan of which one is set."""
    types = {device.type for device in plan.devices if device.properties} & binary.devices
    return listing(binary.path, plan.machine, sorted(types)).devices if types else {}


def _without_unused(device: PlacedDevice, listed: Mapping[str, Properties]) -> PlacedDevice:
    """The device without properties that the QEMU has not, and that switch something off."""
    there = listed.get(device.type)
    if there is None:
        return device
    kept = {key: value for key, value in device.properties.items() if key in there or value not in _OFF}
    return device.model_copy(update={"properties": kept})


def _lack(device: PlacedDevice, plan: GuestPlan, binary: QemuBinary, listed: Mapping[str, Properties]) -> Lack | None:
    """Why a QEMU cannot have one device of a plan."""
    names: tuple[str, ...] = ()
    if device.type not in binary.devices:
        names = (device.type,)
    elif (there := listed.get(device.type)) is not None:
        names = tuple(f"{device.type}.{key}" for key in device.properties if key not in there)
    if names:
        return Lack(what=Lacks.RECORDED_TYPES, names=names, machine=plan.machine, qemu=binary.version)
    return lacking_program(plan.backends[name] for name in device.backends.values())


def _by_owner(plan: GuestPlan, lacks: Mapping[str, Lack], gone: Collection[str]) -> dict[str, Lack]:
    """The owners of devices that are gone, each with why: its own reason, or that of what it hangs on."""
    found: dict[str, Lack] = {}
    for device in plan.devices:
        if device.id in gone:
            own = [lacks[each.id] for each in plan.of(device.owner) if each.id in lacks]
            found.setdefault(device.owner, next(iter((*own, *lacks.values()))))
    return found
