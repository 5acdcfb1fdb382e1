# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the dirty bitmaps that a stream carries: what stands at the start of its section ``dirty-bitmap``.

One record for each bitmap, until the end flag (``send_bitmap_start`` of ``migration/block-dirty-bitmap.c``)::

    u8   flags: 0x01 end, 0x04 a bitmap's name follows, 0x08 a node's name follows, 0x10 start of a bitmap
    u8   length, and the name of the node, where flag 0x08 is set
    u8   length, and the name of the bitmap, where flag 0x04 is set
    u32  granularity in bytes
    u8   flags of the bitmap
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.stream.wire import U32

IDSTR = "dirty-bitmap"
_END, _HAS_BITMAP, _HAS_NODE, _START = 0x01, 0x04, 0x08, 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyBitmap:
    """A bitmap of a disk.

    :param granularity: bytes of the disk for each bit
    """

    node: str
    name: str
    granularity: int


def bitmaps_of(payload: bytes) -> Iterator[DirtyBitmap]:
    """Those that begin in the first part of the section, as far as it can be read."""
    at, node = 0, ""
    while at < len(payload) and payload[at] & _START and not payload[at] & _END:
        flags, at = payload[at], at + 1
        if flags & _HAS_NODE:
            node, at = _counted(payload, at)
        name, at = _counted(payload, at) if flags & _HAS_BITMAP else ("", at)
        if at + U32.size >= len(payload):
            return
        yield DirtyBitmap(node=node, name=name, granularity=U32.unpack_from(payload, at)[0])
        at += U32.size + 1


def _counted(payload: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + (payload[at] if at < len(payload) else 0)
    return payload[at + 1 : end].decode("utf-8", "replace"), end
