# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF and bzImage files, built by hand for the tests beside this file."""

from __future__ import annotations

import struct

IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


def module_file(modinfo: bytes) -> bytes:
    """An ELF64 with the sections (null), .modinfo and .shstrtab; the section table stands at the end."""
    names = b"\0.modinfo\0.shstrtab\0"
    body_at, names_at = 64, 64 + len(modinfo)
    table_at = names_at + len(names)
    head = IDENT + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    table = bytes(64)
    table += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, body_at, len(modinfo), 0, 0, 1, 0)
    table += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return head + modinfo + names + table


def kernel_file(owner: bytes, kind: int) -> bytes:
    """An ELF64 with one PT_NOTE segment: a note of 8 bytes that is not looked for, then the given one."""
    notes = struct.pack("<III", 4, 8, 6) + b"Xen\0" + bytes(8)
    notes += struct.pack("<III", len(owner), 4, kind) + owner + bytes(-len(owner) % 4)
    notes += struct.pack("<I", 0x1000)
    head = IDENT + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), len(notes), 4)
    return head + segment + notes


PVH = kernel_file(b"Xen\0", 18)


def bzimage(payload: bytes, *, protocol: int = 0x20F, offset: int = 16) -> bytes:
    head = bytearray(512 * 3)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    head[0x206:0x208] = struct.pack("<H", protocol)
    head[0x248:0x250] = struct.pack("<II", offset, len(payload))
    return bytes(head) + bytes(offset) + payload + b"after"
