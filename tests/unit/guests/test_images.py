# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in the images."""

from __future__ import annotations

import struct

import pytest

from harness.errors import HostError
from harness.guests.images import empty_qcow2, pattern

MIB = 1 << 20
CLUSTER = 65536


def test_the_pattern_is_256_kib_and_no_two_lines_are_alike() -> None:
    data = pattern("sda")
    assert len(data) == 256 * 1024
    lines = [data[start : start + 64] for start in range(0, len(data), 64)]
    assert len(set(lines)) == 4096
    assert lines[0] == b"postload pattern sda" + b" " * 35 + b"00000000\n"
    assert lines[4095].endswith(b" 00004095\n")
    other = pattern("vda")
    assert not set(lines) & {other[start : start + 64] for start in range(0, len(other), 64)}


def test_an_empty_qcow2() -> None:
    data = empty_qcow2(64 * MIB)
    assert len(data) == 4 * 65536
    magic, version, backing, _, bits, size, crypt = struct.unpack_from(">IIQIIQI", data)
    assert (magic, version, backing, bits, size, crypt) == (0x514649FB, 3, 0, 16, 64 * MIB, 0)
    l1_entries, l1, refcounts, refcount_clusters = struct.unpack_from(">IQQI", data, 36)
    assert (l1_entries, l1, refcounts, refcount_clusters) == (1, 3 * 65536, 65536, 1)
    assert struct.unpack_from(">II", data, 96) == (4, 104)
    assert struct.unpack_from(">Q", data, 65536) == (2 * 65536,)
    assert struct.unpack_from(">5H", data, 2 * 65536) == (1, 1, 1, 1, 0)
    assert not any(data[3 * 65536 :])


@pytest.mark.parametrize(("size", "l1"), [(1 << 20, 1), (512 << 20, 1), ((512 << 20) + 1, 2), (64 << 30, 128)])
def test_an_empty_image_is_qcow2_as_its_specification_has_it(size: int, l1: int) -> None:
    image = empty_qcow2(size)
    assert image[:8] == b"QFI\xfb\x00\x00\x00\x03"
    assert struct.unpack_from(">QI", image, 8) == (0, 0)
    bits, disk, crypt, l1_size = struct.unpack_from(">IQII", image, 20)
    assert (bits, disk, crypt, l1_size) == (16, size, 0, l1)
    l1_offset, table, clusters, snapshots = struct.unpack_from(">QQII", image, 40)
    assert (clusters, snapshots) == (1, 0)
    (block,) = struct.unpack_from(">Q", image, table)
    counts = struct.unpack_from(f">{len(image) // CLUSTER}H", image, block)
    assert counts == (1,) * len(counts)
    assert not any(image[block + 2 * len(counts) : block + CLUSTER])
    assert not any(image[l1_offset : l1_offset + 8 * l1_size])
    assert len({0, table, block, l1_offset}) == 4


def test_an_image_too_large_for_one_table_is_refused() -> None:
    with pytest.raises(HostError, match="too large"):
        empty_qcow2((4 << 40) + 1)
