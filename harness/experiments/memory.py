# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a process, seen from outside: how much is in use, and what else it holds.

Bytes in use of a heap that glibc keeps in one piece (:data:`harness.experiments.leak.MALLOC_ENV`) are known exactly,
all else is counted by the page. Hundreds of looks are made at a process: of a heap of 60 MB those windows alone are
read that hold the head of a chunk.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

#: What is read of a heap at a time: most of it is in big chunks, whose insides are left out.
_WINDOW_BYTES = 16384
#: Where a chunk has its size, and the smallest chunk with a head behind it.
_HEAD_BYTES, LEAST_CHUNK_BYTES = 16, 32
#: ``proc(5)``: the first line of a mapping, and the lines of it that matter here.
_SMAPS = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)\n"
    r"(?:[A-Z].*\n)*?Private_Dirty: +(\d+) kB\n(?:[A-Z].*\n)*?Swap: +(\d+) kB$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a process holds at one moment.

    :param private_bytes: dirty private pages, without guest RAM and executable memory
    :param outside_bytes: of these, those outside of the heap
    :param chunks: allocations of the heap, size with overhead to number; None where it was not or cannot be walked
    """

    private_bytes: int
    outside_bytes: int
    chunks: dict[int, int] | None
    descriptors: int
    threads: int

    @property
    def heap_bytes(self) -> int | None:
        """Allocated bytes of the heap, exactly."""
        return None if self.chunks is None else sum(size * number for size, number in self.chunks.items())

    @property
    def known_bytes(self) -> int:
        """As exactly as it is known."""
        return self.private_bytes if self.heap_bytes is None else self.heap_bytes + self.outside_bytes


def look_at_memory(pid: int, ram_sizes: frozenset[int], *, walk: bool) -> Memory:
    """Look at a process.

    :param ram_sizes: sizes of mappings that are guest RAM
    :param walk: count what is in use in its heap
    :raises OSError: it is gone
    """
    folder = Path(f"/proc/{pid}")
    private, heap_pages, heap = private_memory((folder / "smaps").read_text(), ram_sizes)
    return Memory(
        private_bytes=private,
        outside_bytes=private - heap_pages,
        chunks=_walk(folder / "mem", heap) if heap and walk else None,
        descriptors=_entries(folder / "fd"),
        threads=_entries(folder / "task"),
    )


def private_bytes(pid: int, ram_sizes: frozenset[int]) -> int:
    """Dirty private pages of a process, without guest RAM and executable memory.

    :raises OSError: it is gone
    """
    return private_memory(Path(f"/proc/{pid}/smaps").read_text(), ram_sizes)[0]


def _entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def private_memory(smaps: str, ram_sizes: frozenset[int]) -> tuple[int, int, tuple[int, int] | None]:
    """Sum up ``/proc/PID/smaps``.

    Guest RAM, told by its size, and executable memory (QEMU's own code, translated code) are left out.

    :return: bytes that are dirty and private, those of them in ``[heap]``, and where that begins and ends
    :raises HarnessError: the text is not a process's memory map
    """
    total = inside = 0
    heap = None
    for start, end, mode, name, dirty_kib, swapped_kib in _SMAPS.findall(smaps):
        first, last = int(start, 16), int(end, 16)
        counted = last - first not in ram_sizes and "x" not in mode
        size_bytes = (int(dirty_kib) + int(swapped_kib)) * 1024 if counted else 0
        total += size_bytes
        if name == "[heap]":
            inside, heap = inside + size_bytes, (first, last)
    if not smaps:
        raise HarnessError("the memory map of the process is empty")
    return total, inside, heap


def _walk(memory: Path, heap: tuple[int, int]) -> dict[int, int] | None:
    start, end = heap
    try:
        with memory.open("rb", buffering=0) as file:
            return heap_chunks(end - start, lambda at, count: os.pread(file.fileno(), count, start + at))
    except OSError:
        return None  # not allowed, or it shrank (EIO): a process that is gone is told by its other files


def heap_chunks(size_bytes: int, read: Callable[[int, int], bytes]) -> dict[int, int] | None:
    """Walk a heap of glibc and count the chunks in use by their size.

    ======  =====  ==========================================================================
    offset  width  field of a chunk (``malloc/malloc.c``, ``struct malloc_chunk``, 64 bits)
    ======  =====  ==========================================================================
    0       8      size of the chunk before, when that is free
    8       8      size of this one, a multiple of 16; bit 0: the chunk before is in use
    16             what the program was given
    ======  =====  ==========================================================================

    The last chunk reaches to the end of the heap and is free.

    :param read: gives so many bytes from an offset on, fewer at the end
    :return: size in bytes to number of chunks; None when this is not such a heap
    """
    in_use: list[int] = []
    at = size = 0
    while at + _HEAD_BYTES <= size_bytes:
        window = read(at, min(_WINDOW_BYTES, size_bytes - at))
        if len(window) < _HEAD_BYTES:
            return None  # it shrank
        words = memoryview(window)[: len(window) & ~7].cast("Q")
        here, count = 1, len(words)
        while here < count:  # some ten thousand times a look
            head = words[here]
            if head & 1:
                in_use.append(size)
            size = head & ~7
            if size < LEAST_CHUNK_BYTES or size & 15:
                return None
            here += size >> 3
        at += (here - 1) << 3
    if not size or at != size_bytes:
        return None
    chunks = Counter(in_use)
    del chunks[0]  # what the first head says of one before it
    return dict(chunks)


def chunks_in_use(pid: int) -> dict[int, int] | None:
    """Which chunks of its heap a process uses: what the program was given to the size in bytes with overhead.

    :return: None where the heap cannot be walked just now
    :raises OSError: the process is gone
    """
    folder = Path(f"/proc/{pid}")
    _, _, heap = private_memory((folder / "smaps").read_text(), frozenset())
    if heap is None:
        return None
    with (folder / "mem").open("rb", buffering=0) as file:
        found = used_chunks(os.pread(file.fileno(), heap[1] - heap[0], heap[0]))
    return None if found is None else {heap[0] + at + _HEAD_BYTES: size for at, size in found.items()}


def used_chunks(heap: bytes) -> dict[int, int] | None:
    """The chunks in use of a whole heap (see :func:`heap_chunks`): offset to size, both in bytes; None when this is not
    such a heap."""
    words = memoryview(heap[: len(heap) & ~7]).cast("Q")
    used: dict[int, int] = {}
    at = size = 0
    while at + 1 < len(words):
        if words[at + 1] & 1 and size:
            used[(at << 3) - size] = size
        size = words[at + 1] & ~7
        if size < LEAST_CHUNK_BYTES or size & 15:
            return None
        at += size >> 3
    return used if size and at << 3 == len(heap) else None
