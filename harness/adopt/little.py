# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a VM with little memory: what is saved of a device does not depend on how much there is."""

from __future__ import annotations

from typing import Any, Final

from harness.devices.backends import Memdev
from harness.guests.plan import GuestPlan, PlacedDevice

#: Memory that is plugged in as a device: a guest has to keep books of it in its own.
MOST_MEMDEV_BYTES: Final = 128 << 20
_MOST_SLOTS: Final = 16
_MEMORY_KEYS: Final = frozenset({"memdev", "persistent-memdev", "volatile-memdev"})


def with_little_memory(plan: GuestPlan, memory_mib: int) -> GuestPlan:
    """The same devices with so much memory in one node, and little in what brings memory of its own."""
    own = {*plan.memory_backends()}
    backends = {
        name: backend.model_copy(update={"size_bytes": min(backend.size_bytes, MOST_MEMDEV_BYTES)})
        if isinstance(backend, Memdev)
        else backend
        for name, backend in plan.backends.items()
        if name not in own
    }
    sizes = [backend.size_bytes for backend in backends.values() if isinstance(backend, Memdev)]
    # twice: a DIMM may have to begin at a multiple of a large number
    room_mib = min(plan.memory_room_mib, 2 * sum(sizes) >> 20)
    update: dict[str, Any] = {
        "ram": None,
        "numa": (),
        "devices": tuple(_on_one_node(each) for each in plan.devices),
        "backends": backends,
        "memory_mib": memory_mib,
        "memory_room_mib": room_mib,
        "memory_slots": max(min(plan.memory_slots, _MOST_SLOTS), len(sizes)) if room_mib else 0,
    }
    return GuestPlan.model_validate(plan.model_copy(update=update).model_dump())


def _on_one_node(placed: PlacedDevice) -> PlacedDevice:
    if not _MEMORY_KEYS & placed.backends.keys():
        return placed
    return placed.model_copy(
        update={"properties": {key: value for key, value in placed.properties.items() if key != "node"}}
    )
