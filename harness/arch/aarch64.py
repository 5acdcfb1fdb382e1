# SPDX-License-Identifier: GPL-2.0-or-later
"""aarch64: machine type ``virt``, whose kernel is an Image that starts without firmware."""

from __future__ import annotations

import struct
from pathlib import Path

from harness.arch.model import Architecture, BootProof, RootBus, Witness
from harness.qemu.binary import HostProgram
from harness.qemu.cmdline import Option

#: ``PSCI_OFF`` of ``enum arm_psci_state`` (``target/arm/cpu.h``). A masked interrupt still wakes a CPU that waits
#: for one; this is what ``arm_cpu_has_work`` asks first.
_PSCI_OFF = 1
#: ``QEMU_PSCI_0_2_FN_SYSTEM_OFF`` (``include/hw/arm`` and the PSCI specification).
_SYSTEM_OFF = 0x84000008
#: TCG's models: cortex-a57 was the first of 64 bits, and every version has it; ``max`` differs between versions.
_CPU_MODEL = {"tcg": "cortex-a57", "kvm": "host"}


def _power_off() -> bytes:
    """``movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .``: asks QEMU's PSCI to turn the machine off."""
    low, high = _SYSTEM_OFF & 0xFFFF, _SYSTEM_OFF >> 16
    return struct.pack("<4I", 0x52800000 | low << 5, 0x72A00000 | high << 5, 0xD4000002, 0x14000000)


def _boot_options(image: Path) -> tuple[Option, ...]:
    return (
        Option(name="machine", first="virt"),
        Option(name="m", first="16"),
        Option(name="kernel", first=str(image)),
    )


AARCH64 = Architecture(
    name="aarch64",
    debian="arm64",
    program=HostProgram(name="qemu-system-aarch64", package="qemu-system-arm"),
    families={"virt-": "virt"},
    buses={"virt": RootBus(name="pcie.0", slots=range(3, 32), has_ports=True)},
    cpu_sections=frozenset({"cpu", "cpu_common"}),
    # vmstate_cpu_common of cpu.c, vmstate_arm_cpu of target/arm/machine.c
    parking={
        "cpu_common": {"halted": lambda _: 1, "interrupt_request": lambda _: 0},
        "cpu": {"power_state": lambda _: _PSCI_OFF},
    },
    # integers alone, no post_load (hw/gpio/pl061.c)
    leak_control="pl061",
    # which edge interrupts, while no line is asked for (hw/gpio/pl061.c:pl061_enter_reset)
    witness=Witness(section="pl061", field="iev", value=0x5A),
    probe_machines=("virt",),
    # with 32 a COLO secondary of 10.0 and 11.1 dies while it begins, in tlb_reset_dirty_range_all
    probe_memory_mib=64,
    cpu_model=_CPU_MODEL,
    # nothing else here ends QEMU with 0: there is no guest that could, and no triple fault
    boot_proof=BootProof(image=_power_off(), options=_boot_options, status=0),
    console="ttyAMA0",
    firmware=None,
    ram_base=0x40000000,
)
