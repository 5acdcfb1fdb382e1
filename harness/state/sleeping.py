# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a guest suspend its machine to RAM (ACPI's S3).

A machine that sleeps has run state ``suspended``: its CPUs stand behind the instruction that put it to sleep. QEMU
before 9.0 does not stop such a machine, and wakes it before it saves it (``migration_completion``): what is saved there
is a machine that was just reset.

Its guest ends here, for nobody can wake it when it was saved. 10.0.13 aborts where it is let go on behind that
("invalid runstate transition: 'postmigrate' -> 'suspended'"). And to wake a machine resets it, which writes the kernel
into its memory once more where QEMU loaded that as an ELF (``rom_reset``, ``hw/core/loader.c``): the guest ends in a
triple fault.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.guests.console import Console
from harness.names import SUSPENDED
from harness.qemu.vm import Vm

#: For the kernel to stop all tasks, for 20 s at most, and all devices.
SUSPEND_TIMEOUT_S = 90.0

_COMMAND = "suspend"
_REFUSED = "refused "


@dataclass(frozen=True, slots=True, kw_only=True)
class AwakeStill:
    """The guest did not suspend its machine.

    :param path: in its sysfs, of the device whose driver refused; empty where it was none's doing
    :param said: by its kernel; empty where it slept and woke up by itself
    """

    path: str
    said: str


def suspend(vm: Vm, console: Console) -> AwakeStill | None:
    """Let the guest suspend a machine that runs; None when it sleeps.

    :raises GuestError: the guest was lost
    """
    console.begin(_COMMAND)
    answer = console.answer(_COMMAND, SUSPEND_TIMEOUT_S, instead=lambda: _sleeps(vm))
    if answer is None:
        return None
    first, _, rest = answer.said.partition("\n")
    if first.startswith(_REFUSED):
        return AwakeStill(path=first.removeprefix(_REFUSED).strip(), said=rest.strip())
    return AwakeStill(path="", said=answer.said)


def stopped_in_sleep(vm: Vm) -> bool:
    """Stop a machine that sleeps; false for a QEMU that does not do that."""
    vm.qmp("stop")
    return not _sleeps(vm)


def _sleeps(vm: Vm) -> bool:
    return bool(vm.qmp("query-status")["status"] == SUSPENDED)
