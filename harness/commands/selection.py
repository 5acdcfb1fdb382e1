# SPDX-License-Identifier: GPL-2.0-or-later
"""Which devices ``--device`` means, on each machine of each QEMU.

Recipes are known without a QEMU. What else a QEMU has is asked and tried only when a name is not that of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.markup import escape

from harness.arch import architecture_of
from harness.commands.output import err
from harness.commands.resolve import run_scope
from harness.devices.device import Device, known_names, select_devices, unknown_device
from harness.devices.rules import Status
from harness.errors import UsageError
from harness.qemu.binary import QemuBinary
from harness.report.catalogue import tried_text, underived_text
from harness.state.catalogue import DeviceTrial, Offer, TriedDevice, offer_of
from harness.state.recordings import machine_names

#: What a device that was named has a cell for: one that blocks migration has the answer that it does.
_WORTH_NAMING = (Status.JUDGED, Status.UNMIGRATABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSelection:
    """What was asked for.

    :param binaries: knowing the types of what was derived
    :param recipes: names of devices that have a recipe
    :param derived: by hash of a QEMU and versioned machine type: devices that have none
    """

    binaries: tuple[QemuBinary, ...]
    recipes: tuple[str, ...]
    derived: Mapping[tuple[str, str], tuple[Device, ...]] = field(default_factory=dict)

    def planned_with(self, recipes: Mapping[str, Device]) -> tuple[Device, ...]:
        """The recipes that guests are planned with: the usual ones, and those that were asked for."""
        return tuple(device for device in recipes.values() if device.default or device.name in self.recipes)

    def on(self, binary: QemuBinary, machine: str, recipes: Mapping[str, Device]) -> list[Device]:
        """All of it on one machine."""
        derived = self.derived.get((binary.sha256, machine_names(binary, machine)[1]), ())
        return [*derived, *(recipes[name] for name in self.recipes)]


def select(
    binaries: Sequence[QemuBinary],
    machines: Sequence[str],
    recipes: Mapping[str, Device],
    names: Sequence[str],
    accel: str,
    jobs: int,
) -> DeviceSelection:
    """Find the devices of some names.

    :raises UsageError: a name fits nothing, or only what cannot be judged; the message says why
    """
    if set(names) <= set(known_names(recipes.values())):
        chosen = select_devices(recipes, names)
        return DeviceSelection(binaries=tuple(binaries), recipes=tuple(device.name for device in chosen))
    offers = {binary.sha256: offer_of(binary, recipes) for binary in binaries}
    able = tuple(replace(b, devices=b.devices | offers[b.sha256].types.keys()) for b in binaries)
    places = list(_places(able, machines, offers))
    wanted: dict[str, Device] = {}
    for name in names:
        found = [device for place in places for device in place.offer.named(name)]
        if not found:
            raise _not_found(name, list(offers.values()))
        wanted |= {device.name: device for device in found}
    derived = _tried(places, names, accel, jobs)
    chosen_names = tuple(name for name in recipes if name in wanted)
    if not chosen_names and not any(derived.values()):
        raise UsageError(f"none of {', '.join(names)} is judged on {', '.join(machines)}: see the notes above")
    return DeviceSelection(binaries=able, recipes=chosen_names, derived=derived)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MachinePlace:
    binary: QemuBinary
    machine: str
    offer: Offer

    @property
    def key(self) -> tuple[str, str]:
        return self.binary.sha256, machine_names(self.binary, self.machine)[1]


def _places(
    binaries: Sequence[QemuBinary], machines: Sequence[str], offers: Mapping[str, Offer]
) -> Iterator[_MachinePlace]:
    for binary in binaries:
        for machine in machines:
            if binary.machine(machine) is not None and architecture_of(machine).name == binary.target:
                yield _MachinePlace(binary=binary, machine=machine, offer=offers[binary.sha256])


def _tried(
    places: Sequence[_MachinePlace], names: Sequence[str], accel: str, jobs: int
) -> dict[tuple[str, str], tuple[Device, ...]]:
    """The derived devices that are judged on each machine."""
    kept: dict[tuple[str, str], tuple[Device, ...]] = {}
    for place in places:
        chosen = {d.name: d for name in names for d in place.offer.named(name) if d.name not in place.offer.recipes}
        if not chosen or place.key in kept:
            continue
        trial = DeviceTrial(binary=place.binary, machine=place.machine, accel=accel, scope=run_scope())
        tried = trial.run(list(chosen.values()), jobs, told(f"{place.key[1]}: trying", len(chosen)))
        kept[place.key] = tuple(device for name, device in chosen.items() if _kept(place, name, names, tried[name]))
    return kept


def _kept(place: _MachinePlace, name: str, names: Sequence[str], found: TriedDevice) -> bool:
    if found.status is Status.JUDGED:
        return True
    named = name in names
    if named:
        err.print(escape(f"{place.key[1]}: {name}: {found.status}: {tried_text(found)}"), soft_wrap=True)
    return named and found.status in _WORTH_NAMING


def told(what: str, total: int) -> Callable[[str], None]:
    """Says now and then how many of many were tried."""
    count = 0

    def done(_: str) -> None:
        nonlocal count
        count += 1
        if count % 50 == 0 or count == total > 50:
            err.print(f"{what} {count} of {total} devices", soft_wrap=True)

    return done


def _not_found(name: str, offers: Sequence[Offer]) -> UsageError:
    known = {each: None for offer in offers for each in (*known_names(offer.devices.values()), *offer.types)}
    for offer in offers:
        why = offer.derived.underived.get(name)
        if why is not None:
            return UsageError(f"device {name!r} cannot be judged: {why.status}: {underived_text(why)}")
    return unknown_device(name, list(known))
