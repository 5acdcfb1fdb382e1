# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recording holds of the state that its QEMU knows for the guest's devices: ``-dump-vmstate`` and the vmdesc
side by side.

What ``-dump-vmstate`` has for a type that is attached can be in a stream; what the vmdesc of a phase has was. The dump
says nothing of state that is registered without a device type, or written by hand: of the latter virtio's subsections
are known by their names (:mod:`harness.stream.virtio`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness.guests.plan import PlacedDevice
from harness.packs.pack import StatePack
from harness.qemu.vmstate import HEAD, Dump
from harness.results.document import DescribedState, DeviceCoverage
from harness.results.key import CellKey
from harness.state.transforms import label_of
from harness.stream.fields import Field
from harness.stream.model import Section
from harness.stream.virtio import subsections_of
from harness.stream.vmdesc import DeviceDesc, StructDesc, decode

#: A description: what it is a subsection of, empty for none, and its name.
_Name = tuple[str, str]


def coverage_of(pack: StatePack, like: CellKey, devices: Iterable[str], dump: Dump) -> tuple[DeviceCoverage, ...]:
    """What the phases of a pack hold of each device.

    :param like: any key of the same route and machine
    :param dump: what the recording QEMU says of its vmstates; empty when it said nothing
    """
    seen = _seen(pack)
    by_vmsd: dict[str, list[str]] = {}
    for type_name, entry in dump.items():
        if type_name != HEAD and "Description" in entry:
            by_vmsd.setdefault(entry["Description"]["name"], []).append(type_name)
    found = []
    for name in devices:
        places = seen.get(name, {})
        known = _known(pack.manifest.plan.of(name), places, dump, by_vmsd)
        found.append(_device(pack, name, like, places, known))
    return tuple(found)


def _device(
    pack: StatePack, name: str, like: CellKey, seen: Mapping[_Name, _Places], known: Mapping[_Name, str]
) -> DeviceCoverage:
    states = []
    for part_of, vmsd in sorted(known):
        places = seen.get((part_of, vmsd), {})
        state = DescribedState(
            name=vmsd,
            part_of=part_of,
            type=known[part_of, vmsd],
            sections=tuple(dict.fromkeys(label for label, _ in places)),
            saved=tuple(phase for phase in pack.phases if any(where == phase for _, where in places)),
        )
        states.append(state)
    return DeviceCoverage(row=replace(like, device=name).row, machine=like.machine, device=name, states=tuple(states))


def _known(
    attached: Iterable[PlacedDevice], seen: Iterable[_Name], dump: Dump, by_vmsd: Mapping[str, list[str]]
) -> dict[_Name, str]:
    """What a device can have, to the type that has it; empty where no type is known to.

    :param by_vmsd: the types of the dump by the vmsd that they have
    """
    known = dict.fromkeys(seen, "")
    types = {placed.type for placed in attached if placed.type in dump}
    for vmsd in [vmsd for part_of, vmsd in known if not part_of]:
        # a vmstate may be that of several types: of those that are attached when any is
        if types.isdisjoint(by_vmsd.get(vmsd, ())):
            types.update(by_vmsd.get(vmsd, ())[:1])
        known |= {name: "" for name in _by_hand(vmsd) if name not in known}
    for type_name in sorted(types):
        known |= dict.fromkeys(_described(dump[type_name].get("Description")), type_name)
    return known


#: Section and phase, in the order in which they were met; the values say nothing.
_Places = dict[tuple[str, str], None]


def _seen(pack: StatePack) -> dict[str, dict[_Name, _Places]]:
    """By device: the descriptions that its sections were saved with, and where."""
    owners = pack.owners
    found: dict[str, dict[_Name, _Places]] = {}
    for phase, recording in pack.recordings.items():
        for section in recording.sections:
            label = label_of(section)
            if label in owners:
                for name in _names(section):
                    found.setdefault(owners[label], {}).setdefault(name, {})[label, phase] = None
    return found


def _names(section: Section) -> Iterator[_Name]:
    desc = section.desc
    if desc is None or not desc.vmsd_name:
        yield "", section.idstr
        return
    yield "", desc.vmsd_name
    yield from _subsections(desc, desc.vmsd_name)
    if desc.open_coded:
        yield from _decoded(decode(section.payload, desc), desc.vmsd_name)


def _subsections(desc: DeviceDesc | StructDesc, top: str) -> Iterator[_Name]:
    for field in desc.fields:
        if field.struct is not None:
            yield from _subsections(field.struct, top)
    for subsection in desc.subsections:
        yield top, subsection.vmsd_name
        yield from _subsections(subsection, top)


def _decoded(fields: Iterable[Field], top: str) -> Iterator[_Name]:
    for field in fields:
        if field.type == "subsection":
            yield top, field.name
        yield from _decoded(field.children, top)


def _described(description: Mapping[str, Any] | None, top: str = "") -> Iterator[_Name]:
    """A ``Description`` of the dump with all subsections below it."""
    if description is None:
        return
    if not top:
        top = description["name"]
        yield "", top
    for field in description.get("Fields", []):
        yield from _described(field.get("Description"), top)
    for subsection in description.get("Subsections", []):
        yield top, subsection["name"]
        yield from _described(subsection, top)


def _by_hand(vmsd: str) -> list[_Name]:
    return [(vmsd, name) for name in subsections_of(vmsd)]
