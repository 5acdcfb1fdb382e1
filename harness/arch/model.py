# SPDX-License-Identifier: GPL-2.0-or-later
"""What this program has to know of an architecture; the modules beside this one fill it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.qemu.binary import HostProgram
from harness.qemu.cmdline import Option

#: Field of a section's state, to the value that it gets from the value that it had.
Changes = Mapping[str, Callable[[int], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """Firmware that says how far it is.

    :param device: the port that it writes its log to; its chardev is called ``firmware``
    :param mark: in that log when the devices are set up and nothing has been booted yet
    """

    device: Option
    mark: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BootProof:
    """A few instructions that end QEMU in a way in which nothing else ends it.

    :param image: bytes of the file that is booted
    :param options: the machine, for the path of that file
    :param status: QEMU's exit status when the code ran
    """

    image: bytes
    options: Callable[[Path], tuple[Option, ...]]
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A register that no parked guest touches and that a reset of the machine clears.

    :param section: label of its section
    :param value: what the probe puts there
    """

    section: str
    field: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RootBus:
    """The PCI bus that devices are added to.

    :param name: what QEMU calls it
    :param slots: that are free on it
    :param has_ports: whether PCIe root ports can be added
    """

    name: str
    slots: range
    has_ports: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture of guests.

    :param name: as QEMU has it in ``query-target``
    :param debian: Debian's name for it
    :param program: the emulator
    :param families: what versioned machine types begin with, to their alias, which profiles and users call them by
    :param buses: by such an alias
    :param cpu_sections: idstr of the sections that are a CPU, one instance for each CPU
    :param parking: by idstr, what makes a CPU of a recording one that is halted and takes no interrupt
    :param leak_control: label of a section whose load allocates nothing
    :param probe_machines: what COLO is probed with: the first of them that a build has
    :param probe_memory_mib: as little as will do
    :param cpu_model: by accelerator, for ``-cpu``; the machine's own where there is none
    :param console: the guest's name of its serial port
    :param firmware: None where a kernel is started without any, so that there is no phase ``firmware``
    :param without_kernel: machine types that no guest's kernel boots on: their guests end with firmware
    :param ram_base: guest address of the largest RAM block
    """

    name: str
    debian: str
    program: HostProgram
    families: Mapping[str, str]
    buses: Mapping[str, RootBus]
    cpu_sections: frozenset[str]
    parking: Mapping[str, Changes]
    leak_control: str
    witness: Witness
    probe_machines: tuple[str, ...]
    probe_memory_mib: int
    cpu_model: Mapping[str, str]
    boot_proof: BootProof
    console: str
    firmware: Firmware | None
    ram_base: int
    without_kernel: frozenset[str] = frozenset()

    def cpu_options(self, accel: str) -> tuple[Option, ...]:
        """``-cpu`` where the machine's own model does not do."""
        model = self.cpu_model.get(accel)
        return (Option(name="cpu", first=model),) if model else ()

    def has_phase(self, phase: str) -> bool:
        """Whether its guests go through a phase."""
        return phase != "firmware" or self.firmware is not None
