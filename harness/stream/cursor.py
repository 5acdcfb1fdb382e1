# SPDX-License-Identifier: GPL-2.0-or-later
"""A place in a buffer: every read is checked against the end first, so no length field can ask for memory."""

from __future__ import annotations

import struct

from harness.errors import StreamError
from harness.stream import wire

_SEARCH_CHUNK_BYTES = 1 << 20


class Cursor:
    """Reads big-endian fields from a buffer.

    Every method raises :class:`StreamError`, with the offset of the field, when the buffer is too short.
    """

    __slots__ = ("end", "pos", "view")

    def __init__(self, view: memoryview, pos: int = 0) -> None:
        self.view = view
        self.pos = pos
        self.end = len(view)

    @property
    def left(self) -> int:
        return self.end - self.pos

    def need(self, size_bytes: int, what: str) -> None:
        """Check that ``size_bytes`` more bytes are there."""
        if size_bytes > self.end - self.pos:
            raise StreamError(self.pos, f"{what}: {size_bytes} bytes wanted, {self.left} left")

    def unpack(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        self.need(layout.size, what)
        values: tuple[int, ...] = layout.unpack_from(self.view, self.pos)
        self.pos += layout.size
        return values

    def u8(self, what: str) -> int:
        return self.unpack(wire.U8, what)[0]

    def u16(self, what: str) -> int:
        return self.unpack(wire.U16, what)[0]

    def u32(self, what: str) -> int:
        return self.unpack(wire.U32, what)[0]

    def u64(self, what: str) -> int:
        return self.unpack(wire.U64, what)[0]

    def peek(self) -> int:
        """The next byte, or -1 at the end."""
        return self.view[self.pos] if self.pos < self.end else -1

    def take(self, size_bytes: int, what: str) -> bytes:
        """A copy of the next bytes."""
        self.need(size_bytes, what)
        self.pos += size_bytes
        return bytes(self.view[self.pos - size_bytes : self.pos])

    def skip(self, size_bytes: int, what: str) -> None:
        self.need(size_bytes, what)
        self.pos += size_bytes

    def text(self, size_bytes: int, what: str) -> str:
        """A name. Anything but UTF-8 is damage: QEMU's names are ASCII."""
        start = self.pos
        raw = self.take(size_bytes, what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise StreamError(start, f"{what}: not text: {raw[:32]!r}") from error

    def name(self, what: str) -> str:
        """u8 n and n bytes of name (``qemu_put_counted_string``)."""
        return self.text(self.u8(f"length of {what}"), what)


def find(view: memoryview, pattern: bytes, start: int) -> int:
    """Offset of ``pattern`` at or after ``start``, or -1; copies one chunk at a time."""
    step = _SEARCH_CHUNK_BYTES
    while start < len(view):
        found = bytes(view[start : start + step + len(pattern) - 1]).find(pattern)
        if found >= 0:
            return start + found
        start += step
    return -1


def rfind_byte(view: memoryview, value: int) -> int:
    """Offset of the last byte equal to ``value``, or -1; copies one chunk at a time."""
    stop = len(view)
    while stop > 0:
        start = max(0, stop - _SEARCH_CHUNK_BYTES)
        found = bytes(view[start:stop]).rfind(bytes([value]))
        if found >= 0:
            return start + found
        stop = start
    return -1
