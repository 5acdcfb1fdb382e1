# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in a guest's disks before it runs: nothing, or the pattern that it had written when it was recorded."""

from __future__ import annotations

import struct
from typing import BinaryIO

from harness.errors import HostError

#: Where the guest's ``pattern_write`` puts it, and what ``disk_life`` reads (``guests/init.sh``).
PATTERN_OFFSET_BYTES = 32 << 20
_PATTERN_LINES = 4096

_CLUSTER_BITS = 16
_CLUSTER_BYTES = 1 << _CLUSTER_BITS
_QCOW2_MAGIC = 0x514649FB
#: Entries of one table cluster, 8 bytes each.
_TABLE_ENTRIES = _CLUSTER_BYTES // 8
_QCOW2_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")


def pattern(disk: str) -> bytes:
    """The 256 KiB that the guest writes to a disk when it is bound: 4096 lines of 64 bytes, each with its number."""
    head = f"postload pattern {disk}"
    return b"".join(f"{head:<55}{number:08d}\n".encode() for number in range(_PATTERN_LINES))


def write_pattern(file: BinaryIO, disk: str | None) -> None:
    """Put the pattern of a disk, as the guest calls it, in its place; nothing for None."""
    if disk is not None:
        file.seek(PATTERN_OFFSET_BYTES)
        file.write(pattern(disk))


def empty_qcow2(size_bytes: int) -> bytes:
    """An empty qcow2 image of version 3 with clusters of 64 KiB (QEMU's ``docs/interop/qcow2.txt``).

    ======= ====================================================================
    cluster content
    ======= ====================================================================
    0       header: magic, version, no backing file, cluster bits, size, no encryption, entries and offset of the
            L1 table, offset and clusters of the refcount table, no snapshots, no features, refcount order 4
            (16 bits), header length
    1       refcount table: the offset of its one block
    2       refcount block: the first four clusters are in use
    3       L1 table, zeros: nothing is allocated
    ======= ====================================================================
    """
    covered = _TABLE_ENTRIES * _CLUSTER_BYTES
    entries = max(1, -(-size_bytes // covered))
    if entries > _TABLE_ENTRIES:
        raise HostError(f"{size_bytes} bytes are too large for an image: they need more than one cluster of L1 table")
    header = _QCOW2_HEADER.pack(
        *(_QCOW2_MAGIC, 3, 0, 0, _CLUSTER_BITS, size_bytes, 0),
        *(entries, 3 * _CLUSTER_BYTES, _CLUSTER_BYTES, 1, 0, 0),
        *(0, 0, 0, 4, _QCOW2_HEADER.size),
    )
    clusters = (header, struct.pack(">Q", 2 * _CLUSTER_BYTES), struct.pack(">4H", 1, 1, 1, 1), b"")
    return b"".join(cluster.ljust(_CLUSTER_BYTES, b"\0") for cluster in clusters)
