# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed saved states, unpacked piece by piece: by gzip, bzip2, xz, zstd or lzop, as libvirt and people call them.

What is unpacked is a migration stream, or it ends after its first piece. The stream's own list of RAM blocks says how
much there can be, so that a small file does not fill a disk.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from harness.errors import HostError, StreamError
from harness.stream import wire
from harness.stream.container import FileKind

_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
#: What ``zstd --long`` makes.
_MAX_WINDOW_BYTES = 1 << 27
#: A guest that ran while it was saved has sent its pages several times.
_MOST_PASSES = 8
_ALLOWANCE_BYTES = 1 << 30
#: Where no list of RAM blocks stands at the beginning.
_UNLISTED_BYTES = 64 << 30
_START_OF_RAM = b"\x03ram" + wire.INSTANCE_VERSION.pack(0, wire.RAM_VERSION)

_LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"
_LZOP_HEAD = struct.Struct(">HHHBBI")
_LZOP_HEAD_BEHIND = struct.Struct(">IIIB")
_LZOP_MIN_VERSION = 0x0940
_LZOP_ADLER_PLAIN, _LZOP_ADLER_PACKED, _LZOP_EXTRA = 0x1, 0x2, 0x40
_LZOP_CRC_PLAIN, _LZOP_CRC_PACKED, _LZOP_FILTER = 0x100, 0x200, 0x800
#: lzop writes blocks of 256 KiB.
_LZOP_MAX_BLOCK = 1 << 20


def unpack(kind: FileKind, file: BinaryIO, target: Path) -> None:
    """Unpack what stands at the place of a file, up to its end.

    :param target: the file that it is written to
    :raises StreamError: it is cut, damaged, no migration stream, or far more than its RAM blocks can be; the offset is
        that in the compressed file, or close behind it
    :raises HostError: no space
    """
    try:
        with target.open("wb") as out:
            _copy(kind, file, out, target.parent)
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, MemoryError) as error:
        raise StreamError(file.tell(), f"compressed by {kind}, and cut or damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's and bzip2's own
            raise StreamError(file.tell(), f"compressed by {kind}, and damaged: {error}") from error
        raise HostError(f"cannot unpack to {target.parent}: {error.strerror}") from error


def _copy(kind: FileKind, file: BinaryIO, out: BinaryIO, folder: Path) -> None:
    head, limit = b"", _ALLOWANCE_BYTES
    free = shutil.disk_usage(folder).free
    for piece in _pieces(kind, file):
        if len(head) < _HEAD_BYTES:
            head += piece[:_HEAD_BYTES]
            _check_magic(head, kind)
            limit = _most_bytes(head)
        out.write(piece)
        if out.tell() > limit:
            raise StreamError(file.tell(), f"compressed by {kind}: more than the {limit} bytes that its RAM can have")
        if out.tell() > free - _ALLOWANCE_BYTES:
            raise HostError(f"cannot unpack to {folder}: no space for more than {out.tell()} bytes")


def _check_magic(head: bytes, kind: FileKind) -> None:
    if len(head) >= 4 and head[:4] != wire.U32.pack(wire.MAGIC):
        raise StreamError(0, f"compressed by {kind}, and no migration stream in it: it begins with {head[:8].hex(' ')}")


def _most_bytes(head: bytes) -> int:
    """What a stream with this beginning can have."""
    at = head.find(_START_OF_RAM)
    word_at = at + len(_START_OF_RAM)
    if at < 0 or word_at + wire.U64.size > len(head):
        return _UNLISTED_BYTES
    (word,) = wire.U64.unpack_from(head, word_at)
    return _MOST_PASSES * int(word) + _ALLOWANCE_BYTES


def _pieces(kind: FileKind, file: BinaryIO) -> Iterator[bytes]:
    if kind is FileKind.LZOP:
        yield from _lzop(file)
        return
    with _reader(kind, file) as reader:
        while piece := reader.read(_PIECE_BYTES):
            yield piece


def _reader(
    kind: FileKind, file: BinaryIO
) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | zstandard.ZstdDecompressionReader:
    if kind is FileKind.GZIP:
        return gzip.GzipFile(fileobj=file)
    if kind is FileKind.BZIP2:
        return bz2.BZ2File(file)
    if kind is FileKind.XZ:
        return lzma.LZMAFile(file)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    return decompressor.stream_reader(file, read_across_frames=True, closefd=False)


def _lzop(file: BinaryIO) -> Iterator[bytes]:
    """The blocks of a file of lzop's (``lzop.c``: ``read_header``, ``decompress``)::

        0   9   magic
        9   2   version, at least 0x0940
        11  2   version of the library
        13  2   version that is needed
        15  1   method
        16  1   level
        17  4   flags
        -   4   filter, where flags have 0x800
        -   12  mode, time
        -   1   n
        -   n   name
        -   4   checksum of all that
        -   -   u32 length, bytes and u32 checksum, where flags have 0x40

    Each block: u32 plain length, 0 behind the last one; u32 packed length; u32 checksums by flags; the packed bytes, or
    the plain ones where they are as long.
    """
    if _take(file, len(_LZOP_MAGIC)) != _LZOP_MAGIC:
        raise StreamError(file.tell(), "compressed by lzop: its magic is not there")
    version, _, _, _, _, flags = _LZOP_HEAD.unpack(_take(file, _LZOP_HEAD.size))
    if version < _LZOP_MIN_VERSION or flags & _LZOP_FILTER:
        raise StreamError(file.tell(), f"compressed by lzop: version 0x{version:x}, flags 0x{flags:x} are not known")
    *_, name_bytes = _LZOP_HEAD_BEHIND.unpack(_take(file, _LZOP_HEAD_BEHIND.size))
    _take(file, name_bytes + 4)
    if flags & _LZOP_EXTRA:
        raise StreamError(file.tell(), "compressed by lzop: with an extra field, which is not known")
    while plain_bytes := wire.U32.unpack(_take(file, 4))[0]:
        yield _lzop_block(file, plain_bytes, flags)


def _lzop_block(file: BinaryIO, plain_bytes: int, flags: int) -> bytes:
    (packed_bytes,) = wire.U32.unpack(_take(file, 4))
    if packed_bytes > plain_bytes or plain_bytes > _LZOP_MAX_BLOCK:
        raise StreamError(file.tell(), f"compressed by lzop: a block of {plain_bytes} bytes in {packed_bytes}")
    adler = wire.U32.unpack(_take(file, 4))[0] if flags & _LZOP_ADLER_PLAIN else None
    crc = wire.U32.unpack(_take(file, 4))[0] if flags & _LZOP_CRC_PLAIN else None
    if packed_bytes < plain_bytes:
        _take(file, 4 * (bool(flags & _LZOP_ADLER_PACKED) + bool(flags & _LZOP_CRC_PACKED)))
    block = _take(file, packed_bytes)
    if packed_bytes < plain_bytes:
        block = _lzo(block, plain_bytes, file.tell())
    if len(block) != plain_bytes or adler not in (None, zlib.adler32(block)) or crc not in (None, zlib.crc32(block)):
        raise StreamError(file.tell(), "compressed by lzop: a block does not have its checksum")
    return block


def _lzo(packed: bytes, plain_bytes: int, offset: int) -> bytes:
    # few need it, and it takes its time
    from lzallright import LZOCompressor, LZOError

    try:
        return LZOCompressor.decompress(packed, output_size_hint=plain_bytes)
    except LZOError as error:
        raise StreamError(offset, f"compressed by lzop, and damaged: {error}") from error


def _take(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) < size_bytes:
        raise StreamError(file.tell(), f"compressed by lzop, and cut: {size_bytes} bytes wanted, {len(data)} left")
    return data
