# SPDX-License-Identifier: GPL-2.0-or-later
"""What a postcopy source sends besides sections, and what comes back to it: bytes only, no sockets.

Commands (:mod:`harness.stream.wire` has the header that stands before each)::

    POSTCOPY_ADVISE (``qemu_savevm_send_postcopy_advise``)
    0       8      u64    all page sizes of RAM blocks, or-ed together
    8       8      u64    size of a target page

    POSTCOPY_RAM_DISCARD (``qemu_savevm_send_postcopy_ram_discard``), up to 12 ranges
    0       1      u8     version, 0
    1       1      u8     n
    2       n      bytes  RAM block's idstr
    2+n     1      u8     0
    3+n     8      u64    start in bytes      } for each
    11+n    8      u64    length in bytes     } range

    PING (``qemu_savevm_send_ping``)
    0       4      u32    value, comes back in a PONG

    PACKAGED (``qemu_savevm_send_packaged``)
    0       4      u32    n, at most 16 MiB
    4       n      bytes  a piece of stream, behind the command and not counted in its length

Return path (``migration/migration.c``: ``source_return_path_thread``, ``migration/migration.h``:
``enum mig_rp_message_type``)::

    0       2      u16    type
    2       2      u16    n
    4       n      bytes  SHUT u32 status; PONG u32 value; REQ_PAGES_ID u64 start, u32 length, u8 m, m bytes of
                          block name; REQ_PAGES u64 start, u32 length, in the block of the request before
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from harness.errors import StreamError, UsageError
from harness.stream import wire
from harness.stream.writer import encode_command

#: Ranges of one discard command (``migration/postcopy-ram.c:MAX_DISCARDS_PER_COMMAND``).
DISCARDS_PER_COMMAND = 12
#: ``migration/savevm.h:MAX_VM_CMD_PACKAGED_SIZE``.
PACKAGE_LIMIT_BYTES = 1 << 24
_RANGE = struct.Struct(">QQ")
_REQUEST = struct.Struct(">QI")
_HEADER = struct.Struct(">HH")


class ReturnMessage(IntEnum):
    """``enum mig_rp_message_type``, as far as a destination sends it here."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4


class Ping(IntEnum):
    """The values that QEMU's own source sends (``migration/migration.c``: ``migration_thread``, ``postcopy_start``).

    DEVICES_LOADED stands in the package behind the last device: its PONG says that they were all loaded.
    PACKAGED_LOADED says the same to the sources of newer builds (``migration/savevm.h``).
    """

    SETUP = 1
    PRECOPY_DONE = 2
    DEVICES_LOADED = 3
    PACKAGE_SENT = 4
    PACKAGED_LOADED = 0x42


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """A destination asks for guest memory that it was not sent yet."""

    block: str
    start: int
    length_bytes: int


def encode_advise(page_size: int = wire.PAGE_SIZE) -> bytes:
    """POSTCOPY_ADVISE for RAM blocks of ordinary pages."""
    return encode_command(wire.CommandType.POSTCOPY_ADVISE, wire.U64.pack(page_size) + wire.U64.pack(page_size))


def encode_ping(value: int) -> bytes:
    """PING; the return path has to be open."""
    return encode_command(wire.CommandType.PING, wire.U32.pack(value))


def encode_discards(block: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """POSTCOPY_RAM_DISCARD commands for byte ranges (start, length) of one block."""
    name = block.encode()
    head = b"\0" + wire.U8.pack(len(name)) + name + b"\0"
    left = list(ranges)
    for at in range(0, len(left), DISCARDS_PER_COMMAND):
        data = b"".join(_RANGE.pack(*pair) for pair in left[at : at + DISCARDS_PER_COMMAND])
        yield encode_command(wire.CommandType.POSTCOPY_RAM_DISCARD, head + data)


def encode_package(devices: bytes) -> bytes:
    """PACKAGED with LISTEN, the device sections, the pings that their load is known by, and RUN.

    :param devices: FULL sections, without an EOF
    :raises UsageError: QEMU takes no package of that size
    """
    package = b"".join(
        (
            encode_command(wire.CommandType.POSTCOPY_LISTEN),
            devices,
            encode_ping(Ping.DEVICES_LOADED),
            encode_ping(Ping.PACKAGED_LOADED),
            encode_command(wire.CommandType.POSTCOPY_RUN),
        )
    )
    if len(package) > PACKAGE_LIMIT_BYTES:
        raise UsageError(f"a device state of {len(package)} bytes is too large for postcopy's package")
    return encode_command(wire.CommandType.PACKAGED, wire.U32.pack(len(package))) + package


def runs_of(addresses: Sequence[int], page_size: int = wire.PAGE_SIZE) -> Iterator[tuple[int, int]]:
    """Ascending page addresses as (start, length) of contiguous runs, in bytes."""
    start = end = -1
    for address in addresses:
        if address != end:
            if end > start:
                yield start, end - start
            start = address
        end = address + page_size
    if end > start:
        yield start, end - start


class ReturnPath:
    """Cuts the bytes of a return path into messages; they may come in any pieces."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offset = 0
        self._block: str | None = None

    def feed(self, data: bytes) -> Iterator[tuple[int, int | PageRequest]]:
        """Messages that are whole by now: SHUT and PONG with their value, requests as :class:`PageRequest`.

        :raises StreamError: an unknown message, a wrong length, or a request that names no block
        """
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._data)
            if len(self._data) < _HEADER.size + length:
                return
            body = bytes(self._data[_HEADER.size : _HEADER.size + length])
            message = self._message(kind, body)
            del self._data[: _HEADER.size + length]
            self._offset += _HEADER.size + length
            yield message

    def _message(self, kind: int, body: bytes) -> tuple[int, int | PageRequest]:
        if kind in (ReturnMessage.SHUT, ReturnMessage.PONG):
            self._check(len(body) == wire.U32.size, kind, body)
            return kind, wire.U32.unpack(body)[0]
        if kind == ReturnMessage.REQ_PAGES_ID:
            self._check(len(body) > _REQUEST.size and len(body) == _REQUEST.size + 1 + body[_REQUEST.size], kind, body)
            self._block = body[_REQUEST.size + 1 :].decode("ascii", "backslashreplace")
        elif kind == ReturnMessage.REQ_PAGES:
            self._check(len(body) == _REQUEST.size, kind, body)
        else:
            raise StreamError(self._offset, f"return path: message {kind} is not known here ({body[:16].hex()})")
        if self._block is None:
            raise StreamError(self._offset, "return path: a request that names no RAM block")
        start, length = _REQUEST.unpack_from(body)
        return kind, PageRequest(block=self._block, start=start, length_bytes=length)

    def _check(self, good: bool, kind: int, body: bytes) -> None:
        if not good:
            name = ReturnMessage(kind).name
            raise StreamError(self._offset, f"return path: {name} with {len(body)} bytes")
