# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of a process's memory, on heaps and maps made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.experiments.memory import _walk, heap_chunks, private_memory, used_chunks


def chunks_of(heap: bytes) -> dict[int, int] | None:
    return heap_chunks(len(heap), lambda at, count: heap[at : at + count])


def chunk(size: int, *, before_used: bool) -> bytes:
    return struct.pack("<QQ", 0, size | before_used) + bytes(size - 16)


def test_chunks_in_use_are_counted_by_size() -> None:
    heap = b"".join(
        [
            chunk(32, before_used=True),
            chunk(96, before_used=True),
            chunk(64, before_used=True),  # free: the next one says so
            chunk(96, before_used=False),
            chunk(256, before_used=True),  # the top, free
        ]
    )
    assert chunks_of(heap) == {32: 1, 96: 2}
    assert used_chunks(heap) == {0: 32, 32: 96, 192: 96}


@pytest.mark.parametrize(
    "heap",
    [
        b"",
        bytes(4096),
        chunk(32, before_used=True) + struct.pack("<QQ", 0, 24) + bytes(64),
        chunk(32, before_used=True) + struct.pack("<QQ", 0, 1 << 40 | 1) + bytes(64),
    ],
)
def test_what_is_no_heap_is_not_counted(heap: bytes) -> None:
    assert chunks_of(heap) is None
    assert used_chunks(heap) is None


def test_the_insides_of_big_chunks_are_not_read() -> None:
    small, big = chunk(48, before_used=True) * 1000, chunk(10_000_000, before_used=True)
    heap = big + small + big + small + chunk(64, before_used=True)
    read: list[int] = []

    def counted(at: int, count: int) -> bytes:
        read.append(count)
        return heap[at : at + count]

    assert heap_chunks(len(heap), counted) == {48: 2000, 10_000_000: 2}
    assert sum(read) < 300_000


def test_a_heap_that_shrinks_while_it_is_read_is_not_counted() -> None:
    heap = chunk(48, before_used=True) * 1000 + chunk(64, before_used=True)
    assert heap_chunks(len(heap), lambda at, count: heap[:20_000][at : at + count]) is None


def test_a_heap_that_is_no_longer_mapped_is_not_counted() -> None:
    # QEMU trims its heap now and then, between a look at its map and one at its heap
    assert _walk(Path("/proc/self/mem"), (4096, 1 << 16)) is None


SMAPS = """\
55d0c0000000-55d0c0200000 r-xp 00000000 08:01 123 /usr/bin/qemu
Size:               2048 kB
Private_Dirty:        16 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me sd
55d0c1000000-55d0c1400000 rw-p 00000000 00:00 0 [heap]
Size:               4096 kB
Private_Clean:         4 kB
Private_Dirty:      3000 kB
Swap:                100 kB
SwapPss:             100 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Private_Dirty:    262144 kB
Swap:                  0 kB
7f0020000000-7f0020801000 rw-p 00000000 00:00 0
Private_Dirty:        40 kB
Swap:                  0 kB
7f0030000000-7f0034000000 rwxp 00000000 00:00 0
Private_Dirty:      5000 kB
Swap:                  0 kB
"""


def test_private_memory_leaves_out_ram_and_code() -> None:
    total, inside, heap = private_memory(SMAPS, frozenset({256 << 20}))
    assert heap == (0x55D0C1000000, 0x55D0C1400000)
    assert inside == 3100 * 1024
    assert total == 3140 * 1024


def test_ram_is_left_out_because_of_its_size() -> None:
    total, _, _ = private_memory(SMAPS, frozenset())
    assert total == (3140 + 262144) * 1024


def test_an_empty_memory_map_is_an_error() -> None:
    with pytest.raises(HarnessError):
        private_memory("", frozenset())
