# SPDX-License-Identifier: GPL-2.0-or-later
"""Two pages of memory that no guest knows of: with them TCG loses nothing of what a guest writes while it migrates.

Whoever migrates takes the bits of dirty pages again and again (``cpu_physical_memory_sync_dirty_bitmap`` in
``include/exec/ram_addr.h``). A page whose bit was taken has to be looked at once more when the guest writes to it, so
the TLB of the guest's CPUs must forget that it is dirty. Where the length of a block is a multiple of 64 pages, 5.2 and
7.2 take the bits a word at a time and leave the TLB as it is; 10.0 resets it. What the guest then writes goes unseen,
and the other side keeps the page's old content: on 7.2 the guest of a secondary panicked within ten checkpoints in
each of eight real pairs. In a block of any other length they take the bits page by page, and reset the TLB for each.

So where a guest may run in a QEMU that sends its memory, that block is made longer than the recorded one, at both
ends. The guest was told of its memory when it booted, and no device state has its size.
"""

from __future__ import annotations

from harness.errors import HarnessError
from harness.guests.machine import SPARE_BYTES, Machine
from harness.packs.pack import StatePack
from harness.qemu.cmdline import Option
from harness.stream.model import RamBlock
from harness.stream.ram import with_larger_block


def spare_of(machine: Machine) -> int:
    """Bytes that a machine has to have more than were recorded: KVM tells of each page that was written, and memory
    that is shared was recorded with them."""
    return SPARE_BYTES if machine.accel == "tcg" and not machine.plan.shares_memory else 0


def memory_option(machine: Machine, spare_bytes: int) -> Option:
    """The option that gives a machine so much more; the last of its kind holds."""
    return Option(name="m", first=f"{(machine.plan.memory_mib << 10) + (spare_bytes >> 10)}k")


def setup_with_spare(pack: StatePack, phase: str, spare_bytes: int) -> bytes:
    """The block list of a recording, for a machine that has so much more.

    :raises HarnessError: no block of the recording is the guest's memory
    """
    size = pack.manifest.plan.memory_mib << 20
    for block in pack.manifest.blocks:
        if block.size_bytes == size:
            found = RamBlock(name=block.name, size_bytes=size)
            return with_larger_block(pack.recordings[phase].setup, found, spare_bytes)
    raise HarnessError(f"{pack.source}: no RAM block has the {size} bytes of the guest's memory")
