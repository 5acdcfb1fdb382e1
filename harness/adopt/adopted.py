# SPDX-License-Identifier: GPL-2.0-or-later
"""A state pack of somebody else's saved state, with the one phase ``adopted``.

A QEMU is asked, with the machine that was planned and stopped, which sections and RAM blocks that has. What the state
has beside is left out and told: devices of the host that were not planned, and what ``-kernel`` put beside the ROMs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.adopt.describe import describe
from harness.adopt.rows import SettledGuest
from harness.adopt.saved import SavedState, check_ram
from harness.errors import UsageError
from harness.guests.identity import GuestIdentity
from harness.guests.machine import Machine
from harness.guests.origin import LeftOut, VmOrigin, VmPart, Without, label
from harness.names import ADOPTED
from harness.packs.manifest import DeviceModel
from harness.packs.packwriter import PackWriter
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state.owners import saved_stopped
from harness.state.transforms import label_of, labels_of
from harness.stream.model import RamBlock, Section, Stream
from harness.stream.reader import plain_configuration
from harness.stream.wire import SectionType

#: Sections that a machine saves only in some of its states: that a stopped one has none says nothing.
_AT_TIMES = ("globalstate", "dbus", "replay", "timer")
#: Sections of devices that look into the guest's RAM when they are loaded, at rings and tables that they have there:
#: zeros stand in their place where a file has no RAM.
_LOOKS_INTO_RAM = re.compile(r"kvm-tpr-opt|(.*/)?(virtio-\w+|xhci|ahci|nvme)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedState:
    """What became of a saved state.

    :param left_out: labels of sections that the planned machine does not have, or that look into RAM that is not there
    :param blocks_left_out: names of RAM blocks that it does not have
    :param beside: labels of sections that it has, and the state does not
    :param absent: devices that the state has no section of, though none was left out
    :param without_ram: the file has devices alone, and the RAM is that of a machine that never ran
    """

    path: Path
    left_out: tuple[str, ...]
    blocks_left_out: tuple[str, ...]
    beside: tuple[str, ...]
    absent: tuple[str, ...]
    without_ram: bool

    @property
    def told(self) -> tuple[LeftOut, ...]:
        """The same as an origin has it."""
        why = Without.RAM if self.without_ram else Without.STATE
        parts = {("section", why): self.left_out, ("RAM", Without.STATE): self.blocks_left_out}
        return (
            *(
                LeftOut(why=reason, type=kind, names=tuple(map(label, names)))
                for (kind, reason), names in parts.items()
                if names
            ),
            *(LeftOut(why=Without.ABSENT, type=label(name)) for name in self.absent),
        )


def write_adopted(
    state: SavedState,
    settled: SettledGuest,
    binary: QemuBinary,
    out: Path,
    *,
    accel: str,
    source: Path | None = None,
    host: Mapping[str, Any] | None = None,
    scope: ProcessScope | None = None,
) -> AdoptedState:
    """Write the folder of a state pack.

    :param settled: the machine that the state was saved of, with harmless backends, and what is judged in it
    :param binary: is asked, and named as what recorded it
    :param out: must not exist yet
    :param source: of the guest's plan, when that is not this program
    :raises UsageError: the state is that of another machine, or its RAM is not in it; says in what they differ
    :raises QemuError: the planned machine does not start, or cannot be saved
    :raises HostError: no space
    """
    check_state(state, settled.guest.plan.machine)
    machine = Machine(plan=settled.guest.plan.unbooted(), accel=accel, foreign=source)
    described = {"accel": accel, "qemu": binary.identity(), "host": dict(host or {})}
    with saved_stopped(binary, machine, scope) as own:
        found = _write(state, own, settled, out, described)
        del own
    return found


def _write(
    state: SavedState, own: Stream, settled: SettledGuest, out: Path, described: Mapping[str, Any]
) -> AdoptedState:
    """Write what the planned machine has of a state.

    :param own: that machine, saved before it ran
    """
    stream, there = _whole(state, own), frozenset(labels_of(own.devices))
    blocks = _unknown_blocks(state, stream.ram_blocks, own.ram_blocks)
    sections = [section for section in stream.devices if _is_there(section, there) and _is_loadable(section, state)]
    stream = replace(stream, configuration=plain_configuration(stream), devices=sections)
    labels = labels_of(sections)
    left_out = tuple(label for label in labels_of(state.sections) if label not in labels)
    devices = _devices(settled, labels, left_out)
    judged = {device.name for device in devices}
    found = AdoptedState(
        path=out,
        left_out=left_out,
        blocks_left_out=tuple(blocks),
        beside=tuple(label for label in labels_of(own.devices) if label not in labels),
        absent=tuple(
            name
            for name, own in settled.owners.sections.items()
            if name not in judged and name in settled.guest.names and not set(own) & set(left_out)
        ),
        without_ram=not state.ram_blocks,
    )
    writer = PackWriter(out)
    try:
        writer.add(ADOPTED, stream, console="", seconds=0.0, without=blocks)
        writer.publish(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            program=f"postload {harness.__version__}",
            plan=settled.guest.plan,
            guest=GuestIdentity(name=ADOPTED),
            origin=_origin(settled.origin, found),
            devices=devices,
            **described,
        )
    finally:
        writer.discard()
    return found


def _origin(origin: VmOrigin, found: AdoptedState) -> VmOrigin:
    """What is told of the VM: nothing is booted in the place of its own system."""
    replaced = tuple(each for each in origin.replaced if each.part is not VmPart.SYSTEM)
    return origin.plus(*found.told).model_copy(update={"state": True, "replaced": replaced})


def _is_there(section: Section, there: frozenset[str]) -> bool:
    return label_of(section) in there or section.idstr.startswith(_AT_TIMES)


def _is_loadable(section: Section, state: SavedState) -> bool:
    return bool(state.ram_blocks) or not _LOOKS_INTO_RAM.fullmatch(section.idstr)


def check_state(state: SavedState, machine: str) -> None:
    """What can be held against a state before a QEMU is asked.

    :raises UsageError: it is that of another machine type, or its RAM is not in it
    """
    check_ram(state)
    if state.machine and state.machine != machine:
        raise UsageError(
            f"{state.source}: the state is that of machine type {state.machine}, and the configuration says "
            f"{machine}: expected the configuration that the state was saved with"
        )


def _unknown_blocks(state: SavedState, blocks: Sequence[RamBlock], own: Sequence[RamBlock]) -> list[str]:
    """Names of the RAM blocks that the planned machine does not have.

    :raises UsageError: the guest's memory is one of them
    """
    sizes = {block.name: block.size_bytes for block in own}
    memory = max(blocks, key=lambda block: block.size_bytes)
    if sizes.get(memory.name) != memory.size_bytes:
        there = ", ".join(f"{name} of {size}" for name, size in sizes.items())
        raise UsageError(
            f"{state.source}: the state has RAM {memory.name!r} of {memory.size_bytes} bytes, and the machine of the "
            f"configuration does not: it has {there}; expected the configuration that the state was saved with"
        )
    return [block.name for block in blocks if block.name not in sizes]


def _devices(settled: SettledGuest, labels: Sequence[str], left_out: Sequence[str]) -> list[DeviceModel]:
    """Those that have a section, and all that the state has of them: of others nothing would be loaded, or their user
    network alone, and nothing could go wrong."""
    lost = {name for name, own in settled.owners.sections.items() if set(own) & set(left_out)}
    devices = [device for device in settled.guest.devices if device.name not in lost]
    rest = next((device.name for device in devices if device.rest), None)
    owned = settled.owners.split(labels, [device.name for device in devices], rest)
    return [DeviceModel(name=each.name, sections=owned[each.name], recipe=each) for each in devices if owned[each.name]]


def _whole(state: SavedState, own: Stream) -> Stream:
    """The state as a stream with RAM and a description: what it lacks is taken from the planned machine's own."""
    if state.vmdesc is not None:
        return replace(state.stream, devices=state.sections)
    assert own.vmdesc is not None  # each QEMU that is asked writes one, or its stream could not be read
    described = state.described(own.vmdesc)
    sections = [section for section in described.devices if section.type == SectionType.FULL]
    described = replace(described, devices=sections, vmdesc=describe(sections, own.vmdesc))
    if state.ram_blocks:
        return described
    return replace(own, devices=described.devices, vmdesc=described.vmdesc)
