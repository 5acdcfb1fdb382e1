# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a guest plan came from that somebody else's VM was adopted into: what of the VM something else stands for, and
what is not judged. It goes into state packs; its sentences are made in :mod:`harness.report.adopted` alone.

By kind and shape only: no path, address or name of a file is in it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from harness.devices.backends import Model

#: Printable, on one line, and short.
Said = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=400)]
#: What a configuration called something, as far as it can be shown.
Label = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=80)]


class VmPart(StrEnum):
    """What of a VM is replaced; the value is what is stored."""

    MACHINE = "machine"  # the machine type
    CPU = "cpu"  # the CPU model
    CPUS = "cpus"  # how many there are
    MEMORY = "memory"  # how much RAM there is
    NUMA = "numa"  # nodes of CPUs and memory
    DISK = "disk"  # what a drive holds
    NETWORK = "network"
    LINE = "line"  # what a character device leads to
    SOUND = "sound"
    MEMDEV = "memdev"  # what memory of a device is made of
    FILES = "files"  # a shared folder
    CIPHERS = "ciphers"
    CANBUS = "canbus"
    TPM = "tpm"
    RANDOM = "random"  # a source of random numbers
    ROM = "rom"  # an option ROM from a file
    FIRMWARE = "firmware"
    SYSTEM = "system"  # what the VM boots
    CONSOLE = "console"  # its first serial port


class Replaced(Model):
    """One part of a VM and what stands for it.

    :param id: of the backend, or of the device that it is about; empty where there is only one
    :param was: kind and shape of it: ``qcow2 on file``, ``tap``, ``host``
    :param stands: what there is instead
    :param size_bytes: of what stands for it, where that has a size
    :param guessed: nobody said how large it was
    """

    part: VmPart
    id: Label = ""
    was: Label
    stands: Label
    size_bytes: int | None = None
    guessed: bool = False


class Without(StrEnum):
    """Why a part of a VM is not in the plan, or there and not judged; the value is what is stored."""

    HOST = "host"  # a device that stands on the host's own hardware, processes or files
    TYPE = "type"  # the QEMU has no such device type
    CPU = "cpu"  # a CPU that is plugged as a device
    BUS = "bus"  # what its bus belongs to is not there
    PROGRAM = "program"  # this host has no such program
    START = "start"  # the QEMU does not start with it
    SAVE = "save"  # the QEMU dies, or gives up, when it saves a machine that has it
    MIGRATION = "migration"  # it keeps the QEMU from migrating
    LOST = "lost"  # this program's guest is lost with it on its way to a phase
    SECTION = "section"  # it is there, and saves no section of its own: nothing of it can be judged
    UNKNOWN = "unknown"  # the QEMU has no such property
    REFUSED = "refused"  # a property, or its value, that a plan cannot hold
    OPTION = "option"  # an option that is not taken
    UNREAD = "unread"  # a part of a libvirt domain that is not known here, by its path and line
    STATE = "state"  # in the saved state, and the planned machine does not have it
    ABSENT = "absent"  # in the planned machine, and not in the saved state
    RAM = "ram"  # it looks into RAM when it is loaded, and the saved state has none
    REDACTED = "redacted"  # taken out of a pack that is given away


#: What is in the plan all the same.
THERE = frozenset({Without.SECTION, Without.UNKNOWN, Without.REFUSED})


class LeftOut(Model):
    """One part of a VM that is not judged.

    :param id: of the device; empty where it has none, or where it is no device
    :param type: of the device, ``machine``, ``cpu``, the driver of a ``global``, or the name of the option
    :param names: the properties, keys or names that it is about
    :param said: by QEMU
    """

    why: Without
    id: Label = ""
    type: Label
    names: tuple[Label, ...] = ()
    said: Said = ""


class VmOrigin(Model):
    """Of a guest plan that was made of a configuration.

    :param name: of the VM
    :param state: whether the state is the VM's own; else this program's guest was booted in its place
    """

    kind: Literal["adopted"] = "adopted"
    name: Label = ""
    state: bool = False
    replaced: tuple[Replaced, ...] = ()
    left_out: tuple[LeftOut, ...] = Field(default=())

    def plus(self, *more: LeftOut) -> VmOrigin:
        """With more that is not judged."""
        return self.model_copy(update={"left_out": (*self.left_out, *more)})


def label(text: object, most: int = 80) -> str:
    """A text as it can be shown and kept: what is not printable ASCII is a question mark, and the end is cut off."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(text))[:most]
