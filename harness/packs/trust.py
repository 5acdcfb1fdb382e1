# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack of unknown origin may not reach for the host it is replayed on.

Its guest is a typed plan: every backend is one of a few kinds that touch nothing but scratch files, and names have a
grammar. What is left to check is what a QEMU device can do by itself: types that open the host's own devices, and
properties that are strings, of which some open files (``romfile``, ``sdrfile``, ``frudatafile``).
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from harness.devices.backends import Netdev
from harness.errors import PackError
from harness.guests.plan import GuestPlan
from harness.packs.manifest import Manifest

#: Types that stand on the host's own hardware, processes or files.
_HOST_TYPES = ("vfio*", "vhost*", "xen*", "usb-host*", "usb-mtp", "u2f-*", "ivshmem*", "*loader", "*passthr*", "tpm*")
#: Properties whose strings are no more than strings.
_STRINGS = frozenset({"mac", "serial", "model", "ver", "wwn", "drive-id", "product_id", "vendor"})
#: Values of enumerations that many properties share.
_WORDS = frozenset({"on", "off", "auto", "default", "none", "enable", "disable"})
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+-]{0,63}")
#: Properties of machines that are about the machine alone.
_MACHINE = frozenset({"acpi", "hpet", "i8042", "kernel-irqchip", "nvdimm", "pcspk", "pit", "sata", "smbus", "smm"})
_ACCELS = frozenset({"kvm", "tcg"})


def refuse_host_access(manifest: Manifest) -> None:
    """Check what a pack of unknown origin would have QEMU do.

    :raises PackError: a part of its plan that could run a program of this host, or read or write a file outside of the
        pack and the folder of the process
    """
    if manifest.accel not in _ACCELS:
        raise PackError(f"accel: {manifest.accel!r}: expected one of {', '.join(sorted(_ACCELS))}")
    _check_machine(manifest.plan)
    for name, backend in manifest.plan.backends.items():
        if isinstance(backend, Netdev) and backend.type != "user":
            raise PackError(f"plan: backend {name}: a {backend.type} device belongs to the host that recorded")
    for device in manifest.plan.devices:
        if any(fnmatchcase(device.type, pattern) for pattern in _HOST_TYPES):
            raise PackError(f"plan: device {device.id}: {device.type} stands on the host's own hardware or files")
        for key, value in device.properties.items():
            if isinstance(value, str) and not _is_plain(key, value):
                raise PackError(f"plan: device {device.id}: {key}={value!r} has no place in a pack that travels")


def _check_machine(plan: GuestPlan) -> None:
    for key in plan.machine_properties:
        if key not in _MACHINE:
            raise PackError(f"plan: machine: property {key!r} has no place in a pack that travels")


def _is_plain(key: str, value: str) -> bool:
    return value in _WORDS or (key in _STRINGS and _WORD.fullmatch(value) is not None)
