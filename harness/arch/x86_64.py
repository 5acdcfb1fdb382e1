# SPDX-License-Identifier: GPL-2.0-or-later
"""x86_64: machine types ``pc`` and ``q35``, SeaBIOS, a kernel by PVH."""

from __future__ import annotations

from pathlib import Path

from harness.arch.model import Architecture, BootProof, Firmware, RootBus, Witness
from harness.qemu.binary import HostProgram
from harness.qemu.cmdline import Option

_EFLAGS_IF = 0x200
_EXIT_VALUE = 0x2A
_FLOPPY_BYTES = 1474560


def _boot_sector() -> bytes:
    """A floppy whose boot sector does ``mov al, 42; out 0xf4, al; hlt``."""
    sector = bytes([0xB0, _EXIT_VALUE, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(_FLOPPY_BYTES, b"\0")


def _boot_options(image: Path) -> tuple[Option, ...]:
    return (
        Option(name="machine", first="pc"),
        Option(name="m", first="16"),
        Option(name="drive", props={"file": str(image), "format": "raw", "if": "floppy"}),
        Option(name="device", first="isa-debug-exit", props={"iobase": "0xf4", "iosize": "0x4"}),
    )


X86_64 = Architecture(
    name="x86_64",
    debian="amd64",
    program=HostProgram(name="qemu-system-x86_64", package="qemu-system-x86"),
    families={"pc-i440fx-": "pc", "pc-q35-": "q35"},
    # the first slots are left to host bridge, south bridge and display; q35's last is its chipset
    buses={
        "pc": RootBus(name="pci.0", slots=range(3, 32), has_ports=False),
        "q35": RootBus(name="pcie.0", slots=range(4, 31), has_ports=True),
    },
    cpu_sections=frozenset({"cpu", "cpu_common"}),
    # vmstate_cpu_common of cpu.c, vmstate_x86_cpu of target/i386/machine.c
    parking={
        "cpu_common": {"halted": lambda _: 1, "interrupt_request": lambda _: 0},
        "cpu": {"env.eflags": lambda value: value & ~_EFLAGS_IF},
    },
    # one byte (hw/i386/port92.c)
    leak_control="port92",
    # the second PIC's interrupt mask (hw/intc/i8259_common.c:pic_reset_common)
    witness=Witness(section="i8259#1", field="imr", value=0x5A),
    # pc first, because q35 is known to die at its first checkpoint on some builds
    probe_machines=("pc", "q35"),
    probe_memory_mib=16,
    cpu_model={},
    # isa-debug-exit ends QEMU with 2 * value + 1
    boot_proof=BootProof(image=_boot_sector(), options=_boot_options, status=2 * _EXIT_VALUE + 1),
    console="ttyS0",
    firmware=Firmware(
        device=Option(name="device", first="isa-debugcon", props={"iobase": "0x402", "chardev": "firmware"}),
        mark=b"Searching bootorder for: HALT",
    ),
    ram_base=0,
    # a 486 by itself, and with a processor of 64 bits Debian's kernel panics where there is no PCI
    without_kernel=frozenset({"isapc"}),
)
