# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams built by hand, byte by byte, without the writer under test."""

from __future__ import annotations

import json
import struct
from typing import Any

PAGE = bytes(range(256)) * 16
BLOCKS = (("pc.ram", 0x8000), ("vga.rom", 0x1000))

TOY: dict[str, Any] = {
    "name": "toy",
    "instance_id": 3,
    "vmsd_name": "toy",
    "version": 2,
    "fields": [
        {"name": "count", "type": "uint32", "size": 4},
        {"name": "step", "type": "int32 le", "size": 4},
        {"name": "on", "type": "bool", "size": 1},
        {"name": "pirq", "array_len": 2, "type": "uint8", "size": 1},
        {
            "name": "port",
            "index": 0,
            "type": "struct",
            "struct": {
                "vmsd_name": "port",
                "version": 1,
                "fields": [{"name": "irq", "type": "uint16", "size": 2}],
            },
            "size": 2,
        },
        {
            "name": "port",
            "index": 1,
            "type": "struct",
            "struct": {
                "vmsd_name": "port",
                "version": 1,
                "fields": [{"name": "irq", "type": "uint16", "size": 2}],
                "subsections": [
                    {
                        "vmsd_name": "port/x",
                        "version": 1,
                        "fields": [{"name": "x", "type": "uint8", "size": 1}],
                    }
                ],
            },
            "size": 15,
        },
        {"name": "blob", "type": "buffer", "size": 3},
    ],
    "subsections": [{"vmsd_name": "toy/late", "version": 7, "fields": [{"name": "t", "type": "timer", "size": 8}]}],
}
TOY_PAYLOAD = (
    struct.pack(">I", 5)
    + struct.pack(">i", -2)
    + b"\x01\x0a\x0b"
    + struct.pack(">H", 100)
    + struct.pack(">H", 101)
    + b"\x05\x06port/x\x00\x00\x00\x01\x2a"
    + b"\xde\xad\xbe"
    + b"\x05\x08toy/late\x00\x00\x00\x07"
    + b"\xff" * 8
)
OLD: dict[str, Any] = {
    "name": "slirp",
    "instance_id": 0,
    "size": 4,
    "fields": [{"name": "data", "size": 4, "type": "buffer"}],
}


def vmdesc(*devices: dict[str, Any], page_size: int = 4096) -> bytes:
    text = json.dumps({"page_size": page_size, "devices": list(devices)}).encode()
    return struct.pack(">BI", 6, len(text)) + text


def head(machine: bytes = b"pc-i440fx-7.2", subsections: bytes = b"") -> bytes:
    return b"QEVM\x00\x00\x00\x03" + b"\x07" + struct.pack(">I", len(machine)) + machine + subsections


def footer(section_id: int) -> bytes:
    return b"\x7e" + struct.pack(">I", section_id)


def full(section_id: int, idstr: bytes, instance_id: int, version_id: int, payload: bytes) -> bytes:
    header = struct.pack(">BIB", 4, section_id, len(idstr)) + idstr + struct.pack(">II", instance_id, version_id)
    return header + payload + footer(section_id)


def ram_start(blocks: tuple[tuple[str, int], ...] = BLOCKS) -> bytes:
    records = struct.pack(">Q", sum(size for _, size in blocks) | 4)
    for name, size in blocks:
        records += bytes([len(name)]) + name.encode() + struct.pack(">Q", size)
    records += struct.pack(">Q", 0x10)
    return struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4) + records + footer(2)


def ram_more(kind: int, records: bytes) -> bytes:
    return struct.pack(">BI", kind, 2) + records + struct.pack(">Q", 0x10) + footer(2)


def zero(address: int, block: bytes | None = None, fill: int = 0) -> bytes:
    return _page_header(address, 0x02, block) + bytes([fill])


def page(address: int, data: bytes = PAGE, block: bytes | None = None) -> bytes:
    return _page_header(address, 0x08, block) + data


def _page_header(address: int, flag: int, block: bytes | None) -> bytes:
    if block is None:
        return struct.pack(">Q", address | flag | 0x20)
    return struct.pack(">Q", address | flag) + bytes([len(block)]) + block


def toy_section(section_id: int = 9, payload: bytes = TOY_PAYLOAD) -> bytes:
    return full(section_id, b"toy", 3, 2, payload)


def old_section() -> bytes:
    return full(4, b"slirp", 0, 1, b"\x01\x02\x03\x04")


RAM_RECORDS = page(0, block=b"pc.ram") + zero(0x1000) + zero(0x2000) + page(0x3000) + zero(0, block=b"vga.rom")


def body() -> bytes:
    """Everything between the head and EOF."""
    return (
        ram_start()
        + b"\x08\x00\x08\x00\x00"
        + ram_more(2, RAM_RECORDS)
        + ram_more(3, struct.pack(">Q", 0x200) + page(0, bytes(4096), block=b"pc.ram"))
        + b"\x08\x00\x02\x00\x04ping"
        + old_section()
        + toy_section()
    )


def small() -> bytes:
    """A stream with one of everything."""
    return head() + body() + b"\x00" + vmdesc(OLD, TOY)


def without_ram() -> bytes:
    """The same without the pages: small enough to be cut at every byte."""
    pages = zero(0, block=b"pc.ram") + zero(0x1000) + zero(0, block=b"vga.rom")
    parts = ram_start() + b"\x08\x00\x08\x00\x00" + ram_more(3, pages) + old_section() + toy_section()
    return head() + parts + b"\x00" + vmdesc(OLD, TOY)
