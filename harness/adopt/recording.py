# SPDX-License-Identifier: GPL-2.0-or-later
"""This program's guest in the place of somebody's VM: the same devices, with less memory and fewer CPUs.

A guest that is lost on its way is recorded without the device that it is lost by: that one costs itself alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from harness.adopt.little import with_little_memory
from harness.adopt.rows import SettledGuest
from harness.errors import HarnessError, HostError, Stopped
from harness.guests.build import Guest
from harness.guests.origin import Replaced, VmOrigin, VmPart
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbed
from harness.state.owners import short
from harness.state.recorder import CutShort, Plan
from harness.state.recordings import booting, reached

T = TypeVar("T")

#: What a device does does not depend on more, and each one is a thread of the host's.
MOST_CPUS: Final = 4


def for_our_guest(judged: PlannedGuest, origin: VmOrigin, memory_mib: int) -> tuple[PlannedGuest, VmOrigin]:
    """A VM's guest with as much memory and as many CPUs as ours is recorded with.

    :param memory_mib: what our guest needs
    """
    plan, replaced = judged.plan, []
    if plan.memory_mib != memory_mib:
        replaced.append(Replaced(part=VmPart.MEMORY, was=f"{plan.memory_mib} MiB", stands=f"{memory_mib} MiB"))
    if plan.numa:
        replaced.append(Replaced(part=VmPart.NUMA, was=f"nodes: {len(plan.numa)}", stands="1"))
    if plan.cpus > MOST_CPUS:
        replaced.append(Replaced(part=VmPart.CPUS, was=str(plan.cpus), stands=str(MOST_CPUS)))
        plan = plan.model_copy(update={"cpus": MOST_CPUS, "topology": None})
    told = origin.model_copy(update={"replaced": (*origin.replaced, *replaced)})
    return replace(judged, plan=with_little_memory(plan, memory_mib)), told


def recording_of(
    settled: SettledGuest, guest: Guest, binary: QemuBinary, accel: str, phases: tuple[str, ...], source: Path
) -> Plan:
    """What the recorder records of a VM.

    :param guest: that is booted in it: the one with all drivers
    :param source: of the VM, named in errors
    """
    return Plan(
        binary=binary,
        accel=accel,
        guest=guest,
        planned=booting(settled.guest, guest),
        phases=tuple(reached(settled.guest, phases)),
        foreign=source,
        origin=settled.origin,
        owners=settled.owners,
    )


def without_lost(
    settled: SettledGuest,
    phases: Sequence[str],
    record: Callable[[SettledGuest, Sequence[str]], T],
    lost: Callable[[SettledGuest, Sequence[str]], HarnessError | None],
) -> tuple[SettledGuest, T]:
    """Have a VM's guest recorded, without the devices that it is lost by.

    :param phases: all of them
    :param record: makes the recording
    :param lost: how a guest is lost on its way through some phases, None for one that gets through them
    :returns: the guest as it was recorded, and what ``record`` gave
    :raises HarnessError: it is lost without any of its devices too; what ``record`` raised
    """
    while True:
        try:
            return settled, record(settled, phases)
        except (HostError, Stopped, Disturbed):
            raise
        except HarnessError as error:
            name = _culprit(settled, phases, error, lost)
            if name is None:
                raise
            settled = settled.without_lost(name, short(error))


def loss(record: Callable[[], object]) -> HarnessError | None:
    """How a guest is lost by being recorded, None for one that gets there.

    :raises HostError: the host has no space
    :raises Disturbed: it disturbed each try
    :raises Stopped: the run was told to stop
    """
    try:
        record()
    except (HostError, Stopped, Disturbed):
        raise
    except HarnessError as error:
        return error
    return None


def _culprit(
    settled: SettledGuest,
    phases: Sequence[str],
    error: HarnessError,
    lost: Callable[[SettledGuest, Sequence[str]], HarnessError | None],
) -> str | None:
    """The device that a guest is lost by: the first with which it is, of those in front of it and itself."""
    names, cut = settled.guest.names, error if isinstance(error, CutShort) else None
    if cut is not None and cut.device in names:
        return cut.device
    until = phases[: 1 + phases.index(cut.phase)] if cut is not None and cut.phase in phases else phases

    def is_lost(count: int) -> bool:
        return lost(settled.first(count), until) is not None

    if not names or is_lost(0):
        return None
    return names[bisect_left(range(1, len(names)), True, key=is_lost)]
