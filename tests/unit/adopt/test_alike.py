# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs of the same devices are one machine, whatever they are called; others are not."""

from __future__ import annotations

import pytest

from harness.adopt.alike import likeness
from harness.devices.backends import Backend, Disk, Netdev
from harness.guests.plan import GuestPlan, PlacedDevice


def plan(prefix: str = "a", size: int = 1 << 30, **more: object) -> GuestPlan:
    """Two root ports, a disk behind the second, and a network card."""
    devices = (
        PlacedDevice(id=f"{prefix}.1", type="pcie-root-port", bus="pcie.0", slot="02.0", properties={"chassis": 1}),
        PlacedDevice(id=f"{prefix}.2", type="pcie-root-port", bus="pcie.0", slot="02.1", properties={"chassis": 2}),
        PlacedDevice(
            id=f"{prefix}-disk",
            type="virtio-blk-pci",
            bus=f"{prefix}.2",
            slot="00.0",
            properties={"serial": prefix * 4, "num-queues": 4},
            backends={"drive": f"{prefix}-drive"},
        ),
        PlacedDevice(
            id=f"{prefix}-net",
            type="virtio-net-pci",
            bus="pcie.0",
            slot="03.0",
            properties={"mac": f"52:54:00:00:00:0{len(prefix)}"},
            backends={"netdev": f"{prefix}-network"},
        ),
    )
    backends: dict[str, Backend] = {f"{prefix}-drive": Disk(size_bytes=size), f"{prefix}-network": Netdev()}
    base = GuestPlan(machine="pc-q35-7.2", family="q35", cpus=2, memory_mib=256, devices=devices, backends=backends)
    return base.model_copy(update=more)


def changed(index: int, **update: object) -> GuestPlan:
    devices = list(plan().devices)
    devices[index] = devices[index].model_copy(update=update)
    return plan(devices=tuple(devices))


def test_names_addresses_serials_and_sizes_of_disks_do_not_count() -> None:
    assert likeness(plan("web")) == likeness(plan("database", size=1 << 40))


@pytest.mark.parametrize(
    "other",
    [
        changed(2, bus="a.1"),
        changed(2, properties={"serial": "aaaa", "num-queues": 8}),
        changed(3, slot="04.0"),
        changed(3, type="e1000e"),
        plan(cpus=4),
        plan(memory_mib=512),
        plan(machine="pc-q35-7.1"),
        plan(devices=plan().devices[:3]),
    ],
    ids=["bus", "property", "slot", "type", "cpus", "memory", "machine", "fewer"],
)
def test_what_a_load_depends_on_counts(other: GuestPlan) -> None:
    assert likeness(other) != likeness(plan())
