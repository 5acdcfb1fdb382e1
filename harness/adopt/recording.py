# SPDX-License-Identifier: GPL-2.0-or-later
"""This program's guest in the place of somebody's VM: the same devices, with less memory and fewer CPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.adopt.little import with_little_memory
from harness.adopt.rows import SettledGuest
from harness.guests.build import Guest
from harness.guests.origin import Replaced, VmOrigin, VmPart
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.state.recorder import Plan
from harness.state.recordings import booting, reached

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
