# SPDX-License-Identifier: GPL-2.0-or-later
"""Which adopted guests are one machine: equal once what names them is taken away, and what no load depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from harness.devices.backends import Backend, Disk
from harness.guests.plan import GuestPlan, PlacedDevice

#: Properties that say which one of many a device is, and nothing of what it does.
IDENTITY = frozenset({"mac", "serial", "wwn", "port_wwn", "guid", "uuid", "device_id", "drive-id", "nqn", "eui64"})
_BUS_TAIL = re.compile(r"(\.[0-9]{1,3})?$")


def likeness(plan: GuestPlan) -> str:
    """A hash that two guests share when they are one machine.

    Ids, MAC addresses, serials and sizes of disks are left out; slots, buses, CPUs, memory and all other properties
    count, and so does the order of devices: QEMU gives free slots by it.
    """
    ids = {device.id: f"device{number}" for number, device in enumerate(plan.devices)}
    backends = {name: f"backend{number}" for number, name in enumerate(plan.backends)}
    bare = plan.model_dump(mode="json", exclude={"devices", "backends"})
    bare["devices"] = [_bare_device(device, ids, backends) for device in plan.devices]
    bare["backends"] = {backends[name]: _bare_backend(backend) for name, backend in plan.backends.items()}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _bare_device(device: PlacedDevice, ids: Mapping[str, str], backends: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": device.type,
        "bus": None if device.bus is None else _renamed(device.bus, ids),
        "slot": device.slot,
        "properties": {key: value for key, value in device.properties.items() if key not in IDENTITY},
        "backends": {key: backends[name] for key, name in device.backends.items()},
        "references": {key: ids.get(name, name) for key, name in device.references.items()},
    }


def _renamed(bus: str, ids: Mapping[str, str]) -> str:
    """A bus of a device by the device's new name; one of the machine by its own."""
    tail = _BUS_TAIL.search(bus)
    number = tail[0] if tail else ""
    return f"{ids[owner]}{number}" if (owner := bus.removesuffix(number)) in ids else ids.get(bus, bus)


def _bare_backend(backend: Backend) -> dict[str, Any]:
    bare = backend.model_dump(mode="json")
    if isinstance(backend, Disk):
        bare.pop("size_bytes")
    return bare
