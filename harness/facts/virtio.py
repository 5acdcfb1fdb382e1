# SPDX-License-Identifier: GPL-2.0-or-later
"""The feature bits that a virtio device offers, read the way a guest's driver reads them.

QMP has ``x-query-virtio-status`` for it since 7.2, but 5.2 has nothing, and 11.1.3 aborts in it
(``visit_start_struct: Assertion `!(v->type & VISITOR_OUTPUT) || *obj' failed``). Every version has the monitor's
``i`` and ``o``, which read and write I/O ports on a machine that stands still, and PCI config space is behind two
of them. No BAR has to be mapped, and no guest code runs::

    ports 0xcf8, 0xcfc           u32 1<<31 | bus<<16 | slot<<11 | function<<8 | register; then the register
    VIRTIO_PCI_CAP_PCI_CFG (5)   capability with a window: u8 bar at 4, u32 offset at 8, u32 length at 12, u32 data
                                 at 16 (``virtio_read_config``, ``hw/virtio/virtio-pci.c``)
    VIRTIO_PCI_CAP_COMMON_CFG    capability of type 1: where in which BAR the registers are; there u32
    (1)                          device_feature_select at 0, u32 device_feature at 4
    BAR 0 of a transitional      u32 host features, bits 0 to 31, with those that only legacy drivers see
    device, I/O space            (``VIRTIO_PCI_HOST_FEATURES``, ``virtio_ioport_read``)

A device behind a bridge is not reached: bridges have no bus numbers before firmware ran.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import QemuError
from harness.facts.model import NotKnown, WhyNotKnown
from harness.qemu.cmdline import Option
from harness.qemu.vm import Vm
from harness.stream.virtio import feature_names

VENDOR = 0x1AF4
#: 128 bits, since 10.2; older versions answer 0 beyond the first 64.
_FEATURE_WORDS = 4
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_COMMAND, _BAR0, _SUBSYSTEM, _CAP_POINTER = 0x04, 0x10, 0x2C, 0x34
_CAP_VENDOR, _CFG_COMMON, _CFG_WINDOW = 0x09, 1, 5
_MODERN_FIRST, _MODERN_LAST, _TRANSITIONAL_FIRST = 0x1040, 0x107F, 0x1000
#: Where BAR 0 goes for a moment; nothing of a PC is there.
_LEGACY_PORT = 0xC000
_TYPES = {
    1: "virtio-net", 2: "virtio-blk", 3: "virtio-console", 4: "virtio-rng", 5: "virtio-balloon", 8: "virtio-scsi",
    9: "virtio-9p", 16: "virtio-gpu", 18: "virtio-input", 19: "virtio-vsock", 20: "virtio-crypto", 23: "virtio-iommu",
    24: "virtio-mem", 25: "virtio-sound", 26: "virtio-fs", 27: "virtio-pmem",
}  # fmt: skip
# C prints a zero without 0x
_ANSWER = re.compile(r"=\s*(?:0x)?([0-9a-fA-F]+)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtioFeatures:
    """What one device offers.

    :param device: ``virtio-net``, ...
    :param id: the id of its ``-device``, or empty
    :param slot: ``00:05.0``
    :param bits: as a number
    """

    device: str
    id: str
    slot: str
    bits: int

    def to_json(self, backend: str | None) -> dict[str, Any]:
        """With names; ``backend`` is what it stands on, such as ``user`` or ``tap``."""
        return {
            "device": self.device, "id": self.id, "slot": self.slot, "backend": backend, "bits": f"{self.bits:#x}",
            "features": feature_names(self.device, self.bits),
        }  # fmt: skip


class _Config:
    """PCI config space of one device over the monitor.

    :param hmp: runs a line of the human monitor and returns what it prints
    """

    def __init__(self, hmp: Callable[[str], str], slot: int, function: int) -> None:
        self._hmp = hmp
        self._base = 1 << 31 | slot << 11 | function << 8

    def read(self, register: int) -> int:
        """Four bytes at a register that is a multiple of four."""
        self._select(register)
        return self.port_in(_CONFIG_DATA)

    def write(self, register: int, value: int) -> None:
        """The same, to write."""
        self._select(register)
        self._hmp(f"o /w {_CONFIG_DATA:#x} {value:#x}")

    def port_in(self, port: int) -> int:
        """Four bytes of an I/O port.

        :raises QemuError: the monitor printed no number
        """
        text = self._hmp(f"i /xw {port:#x}")
        match = _ANSWER.search(text)
        if match is None:
            raise QemuError(f"monitor command i: expected a number, got {text.strip()!r}")
        return int(match[1], 16)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Offset and first word of each capability."""
        at, seen = self.read(_CAP_POINTER) & 0xFC, set[int]()
        while at and at not in seen:
            seen.add(at)
            word = self.read(at)
            yield at, word
            at = word >> 8 & 0xFC

    def _select(self, register: int) -> None:
        self._hmp(f"o /w {_CONFIG_ADDRESS:#x} {self._base | register:#x}")


def offered(vm: Vm) -> tuple[list[VirtioFeatures], dict[str, NotKnown]]:
    """All virtio devices of a machine that stands still and never ran, in order of their slots.

    :return: what could be read, and the id or slot of the others with why not
    :raises QemuError: QEMU ended, or its monitor does not answer
    """
    found: list[VirtioFeatures] = []
    missed: dict[str, NotKnown] = {}

    def hmp(line: str) -> str:
        return str(vm.qmp("human-monitor-command", command_line=line))

    for device in sorted(_virtio(vm.qmp("query-pci")), key=lambda d: (d["bus"], d["slot"], d["function"])):
        slot = f"{device['bus']:02x}:{device['slot']:02x}.{device['function']:x}"
        name = device["qdev_id"] or slot
        if device["bus"] != 0 or device.get("behind"):
            missed[name] = {"why": WhyNotKnown.BEHIND_BRIDGE, "said": slot}
            continue
        config = _Config(hmp, device["slot"], device["function"])
        bits = read_features(config)
        if bits is None:
            missed[name] = {"why": WhyNotKnown.NO_INTERFACE, "said": slot}
            continue
        kind = _type_of(device["id"]["device"], config.read(_SUBSYSTEM) >> 16)
        found.append(VirtioFeatures(device=kind, id=device["qdev_id"], slot=slot, bits=bits))
    return found, missed


def read_features(config: _Config) -> int | None:
    """Feature bits by both interfaces; None when there is neither."""
    modern, legacy = _modern(config), _legacy(config)
    if modern is None and legacy is None:
        return None
    return (modern or 0) | (legacy or 0)


def backends(options: Sequence[Option]) -> dict[str, str]:
    """Device id to what it stands on: a netdev's type, a blockdev's driver, ``vhost`` added where it is on."""
    by_id: dict[str, str] = {}
    for option in options:
        if option.name == "netdev":
            vhost = "+vhost" if option.props.get("vhost") in ("on", True) else ""
            by_id[str(option.props.get("id"))] = f"{option.first}{vhost}"
        elif option.name == "blockdev":
            by_id[str(option.props.get("node-name"))] = str(option.first)
        elif option.name in ("chardev", "drive"):
            by_id[str(option.props.get("id"))] = str(option.first or option.props.get("format") or option.name)
    found = {}
    for option in options:
        if option.name == "device" and "id" in option.props:
            named = [str(option.props[key]) for key in ("netdev", "drive", "chardev") if key in option.props]
            if named:
                found[str(option.props["id"])] = by_id.get(named[0], named[0])
    return found


def _virtio(buses: Any, *, behind: bool = False) -> Iterator[dict[str, Any]]:
    """The virtio entries of ``query-pci``, those behind bridges marked."""
    for bus in buses:
        for device in bus.get("devices", ()):
            ids = device["id"]
            if ids["vendor"] == VENDOR and _TRANSITIONAL_FIRST <= ids["device"] <= _MODERN_LAST:
                yield {"qdev_id": "", **device, "behind": behind}
            inner = device.get("pci_bridge", {}).get("devices", ())
            if inner:
                yield from _virtio([{"devices": inner}], behind=True)


def _modern(config: _Config) -> int | None:
    common = window = None
    for at, word in config.capabilities():
        if word & 0xFF == _CAP_VENDOR and word >> 24 == _CFG_COMMON:
            common = at
        elif word & 0xFF == _CAP_VENDOR and word >> 24 == _CFG_WINDOW:
            window = at
    if common is None or window is None:
        return None
    bar, offset = config.read(common + 4) & 0xFF, config.read(common + 8)
    config.write(window + 4, bar)
    config.write(window + 12, 4)
    bits = 0
    for word_number in range(_FEATURE_WORDS):
        config.write(window + 8, offset)
        config.write(window + 16, word_number)
        config.write(window + 8, offset + 4)
        bits |= config.read(window + 16) << 32 * word_number
    return bits


def _legacy(config: _Config) -> int | None:
    if not config.read(_BAR0) & 1:
        return None
    config.write(_BAR0, _LEGACY_PORT)
    config.write(_COMMAND, 1)
    bits = config.port_in(_LEGACY_PORT)
    config.write(_COMMAND, 0)
    return bits


def _type_of(device_id: int, subsystem: int) -> str:
    number = device_id - _MODERN_FIRST if device_id >= _MODERN_FIRST else subsystem
    return _TYPES.get(number, f"virtio type {number}")
