# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a device cannot be judged on a machine, as data. The planner, the builds and a machine that was started say it;
its sentence is made in :mod:`harness.report.lacks` alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lacks(StrEnum):
    """What is not to be had; the value is what is stored."""

    MACHINE = "machine"  # the QEMU has no such machine
    TYPES = "device-types"  # the QEMU has no device of these types
    PROGRAM = "program"  # this host has no such program, which is in that package of Debian's
    RECORDED_TYPES = "recorded-device-types"  # the recorded guest has devices of these types, and the QEMU has not
    BUS = "bus"  # no bus of the machine is known
    SLOT = "slot"  # all slots of the bus are taken
    PORTS = "pcie-ports"  # the machine has no PCIe ports
    GUEST_NAMES = "guest-names"  # another device of the guest takes these names
    IDS = "ids"  # these ids of its parts are there already
    START = "start"  # the QEMU does not run with it
    SAVE = "save"  # the QEMU dies, or gives up, when it saves a machine that has it
    MIGRATION = "migration"  # the QEMU does not migrate a machine that has it
    COLO = "colo"  # the QEMU does not start COLO with a machine that has it
    SECTION = "section"  # the machine saves no section of its own for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """One reason.

    :param names: the device types, names, ids or the bus that it is about
    :param machine: versioned machine type
    :param qemu: version of the QEMU, empty where no QEMU was asked
    :param said: by QEMU
    """

    what: Lacks
    names: tuple[str, ...] = ()
    machine: str = ""
    qemu: str = ""
    said: str = ""

    def __str__(self) -> str:
        """For the text of an error: names and QEMU's words, no sentence."""
        return ": ".join(part for part in (f"lacks {self.what}", ", ".join(self.names), self.said) if part)
