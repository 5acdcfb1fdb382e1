# SPDX-License-Identifier: GPL-2.0-or-later
"""What several folders of unit tests share: small migration streams built by hand, packs of them, a QEMU on paper."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.devices.backends import Disk
from harness.devices.device import Device
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.packs.pack import DeviceModel, PackWriter
from harness.qemu.binary import MachineType, QemuBinary
from harness.stream.reader import read_stream

PAGE_BYTES = 4096
#: Name and pages.
BLOCKS = (("pc.ram", 4), ("vga.rom", 1))
AHCI = "0000:00:03.0/ich9_ahci"
BLK = "0000:00:04.0/virtio-blk"
SECTIONS = ("cpu_common", "cpu", "i8259", "i8259#1", AHCI, BLK)

Pages = Mapping[tuple[str, int], bytes]


def _field(name: str, kind: str, size: int) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size}


#: idstr, instance_id, version_id, fields
_DEVICES: tuple[tuple[str, int, int, list[dict[str, Any]]], ...] = (
    ("cpu_common", 0, 1, [_field("halted", "uint32", 4), _field("interrupt_request", "uint32", 4)]),
    ("cpu", 0, 12, [_field("env.eip", "uint64", 8), _field("env.eflags", "uint64", 8)]),
    ("i8259", 0, 1, [_field("imr", "uint8", 1), _field("irr", "uint8", 1)]),
    ("i8259", 1, 1, [_field("imr", "uint8", 1), _field("irr", "uint8", 1)]),
    (AHCI, 0, 1, [_field("data", "buffer", 4)]),
    (BLK, 0, 1, [_field("virtio", "virtio", 8)]),
)
VMDESC = json.dumps(
    {
        "page_size": PAGE_BYTES,
        "devices": [
            {"name": idstr, "instance_id": instance, "vmsd_name": idstr, "version": version, "fields": fields}
            for idstr, instance, version, fields in _DEVICES
        ],
    }
).encode()
HEAD = b"QEVM\x00\x00\x00\x03\x07" + struct.pack(">I", 13) + b"pc-i440fx-7.2"


def payload(number: int, mark: int) -> bytes:
    """State of the device at a place in :data:`SECTIONS`; ``mark`` tells phases apart."""
    if number == 0:
        return struct.pack(">II", 0, 0x100 | mark)
    if number == 1:
        return struct.pack(">QQ", 0xFFF0 + mark, 0x246)
    size = sum(f["size"] for f in _DEVICES[number][3])
    return bytes([mark] * size)


def full(number: int, mark: int) -> bytes:
    """The FULL section of a device."""
    idstr, instance, version, _ = _DEVICES[number]
    head = struct.pack(">BIB", 4, 10 + number, len(idstr)) + idstr.encode() + struct.pack(">II", instance, version)
    return head + payload(number, mark) + struct.pack(">BI", 0x7E, 10 + number)


def devices(mark: int) -> bytes:
    """All FULL sections."""
    return b"".join(full(number, mark) for number in range(len(_DEVICES)))


def ram_start() -> bytes:
    """START of section 2, ``ram``, with the block list."""
    records = struct.pack(">Q", sum(n for _, n in BLOCKS) * PAGE_BYTES | 0x04)
    for name, count in BLOCKS:
        records += bytes([len(name)]) + name.encode() + struct.pack(">Q", count * PAGE_BYTES)
    head = struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4)
    return head + records + struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)


def ram_end(pages: Pages) -> bytes:
    """END with a record for every page: those that are not named are zero."""
    records = b""
    for name, count in BLOCKS:
        block = bytes([len(name)]) + name.encode()
        for number in range(count):
            content = pages.get((name, number))
            flag = 0x02 if content is None else 0x08
            records += struct.pack(">Q", number * PAGE_BYTES | flag) + block + (b"\0" if content is None else content)
    return struct.pack(">BI", 3, 2) + records + struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)


def stream(pages: Pages, mark: int) -> bytes:
    """A whole migration stream."""
    vmdesc = struct.pack(">BI", 6, len(VMDESC)) + VMDESC
    return HEAD + ram_start() + ram_end(pages) + devices(mark) + b"\0" + vmdesc


def page(byte: int) -> bytes:
    """A page that is not zero."""
    return bytes([byte]) + bytes(PAGE_BYTES - 2) + bytes([byte])


#: Phase name to pages and mark. From kernel to bound: one page changes, one is zeroed, one appears, two stay.
PHASES: dict[str, tuple[Pages, int]] = {
    "kernel": ({("pc.ram", 0): page(1), ("pc.ram", 1): page(2), ("pc.ram", 3): page(4)}, 0x11),
    "bound": ({("pc.ram", 0): page(1), ("pc.ram", 1): page(9), ("vga.rom", 0): page(5)}, 0x22),
    "busy": ({("pc.ram", 0): page(1), ("pc.ram", 1): page(9), ("vga.rom", 0): page(5)}, 0x33),
}

DESCRIBED: dict[str, Any] = {
    "created": "2026-01-05T09:30:12+00:00",
    "program": "postload test",
    "accel": "tcg",
    "qemu": {"version": "7.2.22", "build": "Debian", "path": "/usr/bin/qemu", "sha256": "12345678" * 8},
    "plan": GuestPlan(
        machine="pc-i440fx-7.2",
        family="pc",
        memory_mib=16,
        devices=(PlacedDevice(id="blk", type="virtio-blk-pci", slot="04.0", backends={"drive": "a"}),),
        backends={"a": Disk(size_bytes=1 << 20)},
    ),
    "guest": {"kernel": {"sha256": "cd" * 32, "size_bytes": 6}},
    "devices": [
        DeviceModel(name=name, sections=sections, recipe=Device(name=name, about="", rest=name == "platform"))
        for name, sections in (
            ("ahci", [AHCI]),
            ("virtio-blk", [BLK]),
            ("platform", ["cpu_common", "cpu", "i8259", "i8259#1"]),
        )
    ],
}


@dataclass(frozen=True, kw_only=True)
class Handmade:
    """The builders of this module, for tests in other folders."""

    phases: dict[str, tuple[Pages, int]] = field(default_factory=lambda: dict(PHASES))
    described: dict[str, Any] = field(default_factory=lambda: dict(DESCRIBED))
    blocks: tuple[tuple[str, int], ...] = BLOCKS
    sections: tuple[str, ...] = SECTIONS
    ahci: str = AHCI
    blk: str = BLK
    head: bytes = HEAD
    vmdesc: bytes = VMDESC
    ram_start: Callable[[], bytes] = ram_start
    ram_end: Callable[[Pages], bytes] = ram_end
    stream: Callable[[Pages, int], bytes] = stream
    devices: Callable[[int], bytes] = devices
    full: Callable[[int, int], bytes] = full
    payload: Callable[[int, int], bytes] = payload
    page: Callable[[int], bytes] = page

    def ram(self, phase: str) -> dict[tuple[str, int], bytes]:
        """Every page of a phase with its content."""
        pages = self.phases[phase][0]
        every = [(name, number) for name, count in self.blocks for number in range(count)]
        return {where: pages.get(where, bytes(PAGE_BYTES)) for where in every}


@pytest.fixture(scope="session")
def handmade() -> Handmade:
    return Handmade()


@pytest.fixture
def make_pack(tmp_path: Path) -> Callable[..., Path]:
    """Writes a pack of the hand-made phases: ``make_pack("name", "kernel", "bound")``."""

    def make(name: str = "pack", *phases: str) -> Path:
        writer = PackWriter(tmp_path / name)
        for phase in phases or PHASES:
            pages, mark = PHASES[phase]
            writer.add(phase, read_stream(stream(pages, mark)), console=f"{phase} console\n", seconds=1.25)
        writer.publish(**DESCRIBED)
        writer.discard()
        return tmp_path / name

    return make


@pytest.fixture
def binary() -> QemuBinary:
    """A QEMU that is there on paper only."""
    return QemuBinary(
        path="/nowhere/qemu-system-x86_64",
        version="7.2.22",
        build="Debian",
        target="x86_64",
        sha256="12345678" * 8,
        machines=(
            MachineType(name="pc-i440fx-7.2", alias="pc", deprecated=False),
            MachineType(name="pc-q35-7.2", alias="q35", deprecated=False),
            MachineType(name="pc-q35-6.0", alias=None, deprecated=False),
            MachineType(name="microvm", alias=None, deprecated=False),
        ),
        devices=frozenset({"ich9-ahci", "ide-hd", "virtio-blk-pci", "virtio-net-pci"}),
        capabilities=frozenset({"x-colo", "return-path"}),
    )


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no QEMU named by the environment."""
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POSTLOAD_QEMU", raising=False)
    return tmp_path / "cache"
