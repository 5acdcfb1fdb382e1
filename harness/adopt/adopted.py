# SPDX-License-Identifier: GPL-2.0-or-later
"""A state pack of somebody else's saved state, with the one phase ``adopted``.

A QEMU is asked, with the machine that was planned and stopped, which sections and RAM blocks that has. What the state
has beside is left out and told: devices of the host that were not planned, and what ``-kernel`` put beside the ROMs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.adopt.describe import describe
from harness.adopt.saved import SavedState
from harness.errors import UsageError
from harness.guests.identity import GuestIdentity
from harness.guests.machine import Machine
from harness.guests.planner import PlannedGuest
from harness.names import ADOPTED
from harness.packs.manifest import DeviceModel
from harness.packs.packwriter import PackWriter
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state.owners import Owners, saved_stopped, settled
from harness.state.transforms import label_of, labels_of
from harness.stream.model import RamBlock, Stream
from harness.stream.reader import plain_configuration

#: Sections that a machine saves only in some of its states: that a stopped one has none says nothing.
_AT_TIMES = ("globalstate", "dbus", "replay", "timer")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedState:
    """What became of a saved state.

    :param refused: device to why it cannot be judged, as :class:`harness.state.owners.Owners` has it
    :param left_out: labels of sections that the planned machine does not have
    :param blocks_left_out: names of RAM blocks that it does not have
    :param beside: labels of sections that it has, and the state does not
    :param without_ram: the file has devices alone, and the RAM is that of a machine that never ran
    """

    path: Path
    owners: Owners
    left_out: tuple[str, ...]
    blocks_left_out: tuple[str, ...]
    beside: tuple[str, ...]
    without_ram: bool


def write_adopted(
    state: SavedState,
    guest: PlannedGuest,
    binary: QemuBinary,
    out: Path,
    *,
    accel: str,
    host: Mapping[str, Any] | None = None,
    scope: ProcessScope | None = None,
) -> AdoptedState:
    """Write the folder of a state pack.

    :param guest: the machine that the state was saved of, with harmless backends, and what is judged in it
    :param binary: is asked, and named as what recorded it
    :param out: must not exist yet
    :raises UsageError: the state is that of another machine; says in what they differ
    :raises QemuError: the planned machine does not start, or cannot be saved
    :raises HostError: no space
    """
    _check_machine(state, guest)
    guest, owners = settled(binary, guest, accel, scope)
    with saved_stopped(binary, Machine(plan=guest.plan.unbooted(), accel=accel), scope) as own:
        return _write(state, own, guest, owners, binary, out, accel=accel, host=host or {})


def _write(
    state: SavedState,
    own: Stream,
    guest: PlannedGuest,
    owners: Owners,
    binary: QemuBinary,
    out: Path,
    *,
    accel: str,
    host: Mapping[str, Any],
) -> AdoptedState:
    stream, there = _whole(state, own), frozenset(labels_of(own.devices))
    blocks = _unknown_blocks(state, stream.ram_blocks, own.ram_blocks)
    sections = [s for s in state.sections if label_of(s) in there or s.idstr.startswith(_AT_TIMES)]
    stream = replace(stream, configuration=plain_configuration(stream), devices=sections)
    labels = labels_of(sections)
    writer = PackWriter(out)
    try:
        writer.add(ADOPTED, stream, console="", seconds=0.0, without=blocks)
        writer.publish(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            program=f"postload {harness.__version__}",
            accel=accel,
            qemu=binary.identity(),
            host=dict(host),
            plan=guest.plan,
            guest=GuestIdentity(name=ADOPTED),
            devices=_devices(guest, owners, labels),
        )
    finally:
        writer.discard()
    return AdoptedState(
        path=out,
        owners=owners,
        left_out=tuple(label for label in labels_of(state.sections) if label not in labels),
        blocks_left_out=tuple(blocks),
        beside=tuple(label for label in labels_of(own.devices) if label not in labels),
        without_ram=not state.ram_blocks,
    )


def _check_machine(state: SavedState, guest: PlannedGuest) -> None:
    if state.machine and state.machine != guest.plan.machine:
        raise UsageError(
            f"{state.source}: the state is that of machine type {state.machine}, and the configuration says "
            f"{guest.plan.machine}: expected the configuration that the state was saved with"
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


def _devices(guest: PlannedGuest, owners: Owners, labels: Sequence[str]) -> list[DeviceModel]:
    rest = next((device.name for device in guest.devices if device.rest), None)
    owned = owners.split(labels, [device.name for device in guest.devices], rest)
    return [DeviceModel(name=each.name, sections=owned[each.name], recipe=each) for each in guest.devices]


def _whole(state: SavedState, own: Stream) -> Stream:
    """The state as a stream with RAM and a description: what it lacks is taken from the planned machine's own."""
    if state.vmdesc is not None:
        return state.stream
    assert own.vmdesc is not None  # each QEMU that is asked writes one, or its stream could not be read
    described = state.described(own.vmdesc)
    described = replace(described, vmdesc=describe(state.sections, own.vmdesc))
    if state.ram_blocks:
        return described
    return replace(own, devices=described.devices, vmdesc=described.vmdesc)
