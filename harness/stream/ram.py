# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM sections: their records are read into arrays, made into an image of guest memory, and written.

Layouts stand in :mod:`harness.stream.wire`; QEMU's side is ``migration/ram.c`` (``ram_save_setup``,
``save_page_header``, ``ram_load_precopy``).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count
from operator import ne

from harness.errors import StreamError, UsageError
from harness.stream import wire
from harness.stream.cursor import Cursor
from harness.stream.model import RamBlock, RamSection, Stream, section_footer, section_header

__all__ = [
    "PageRecords",
    "RamBlock",
    "RamImage",
    "RamReader",
    "encode_mem_size",
    "encode_pages",
    "encode_ram_section",
    "with_larger_block",
]

_ZERO = int(wire.RamFlag.ZERO)
_PAGE = int(wire.RamFlag.PAGE)
_CONTINUE = int(wire.RamFlag.CONTINUE)
_EOS = int(wire.RamFlag.EOS)
_MEM_SIZE = int(wire.RamFlag.MEM_SIZE)
_XBZRLE = int(wire.RamFlag.XBZRLE)
_COMPRESS = int(wire.RamFlag.COMPRESS)
_FLUSH = int(wire.RamFlag.FLUSH)
_PAGE_FLAGS = frozenset({_ZERO, _PAGE, _XBZRLE, _COMPRESS})
_MAX_BLOCKS = 0xFFFF
_ZERO_RUN = struct.Struct(">QB")
_ZERO_RUN_RECORDS = 512
_FREE_PAGES = 1 << 20
_PAGES_PER_RECORD = 16


@dataclass(slots=True, kw_only=True)
class RamRecords:
    """Page records of one section, as they are collected."""

    block_index: array[int] = field(default_factory=lambda: array("H"))
    words: array[int] = field(default_factory=lambda: array("Q"))
    data_offset: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, block: int, word: int, offset: int) -> None:
        self.block_index.append(block)
        self.words.append(word)
        self.data_offset.append(offset)


class RamReader:
    """Reads the payloads of the RAM sections of one stream, in order.

    The block of the last record outlives its section: CONTINUE may be the first record of the next one.

    :param ignore_shared: the stream has capability x-ignore-shared
    :param mapped: it has mapped-ram: pages have a fixed place in the file, behind the entry of their block, and no
        records. They are recorded as if they had, and the START section spans them.
    :param file_offset: where the buffer starts in the file that mapped pages have their places in
    """

    def __init__(self, *, page_size: int, ignore_shared: bool, mapped: bool = False, file_offset: int = 0) -> None:
        self.page_size = page_size
        self.ignore_shared = ignore_shared
        self.mapped = mapped
        self.file_offset = file_offset
        self.blocks: list[RamBlock] = []
        self._by_name: dict[str, int] = {}
        self._block = -1

    def read(self, cursor: Cursor) -> RamRecords:
        """Read records up to and with EOS.

        :raises StreamError: cut, an unknown block, a page outside of its block, or flags not of precopy
        """
        records = RamRecords()
        mask = self.page_size - 1
        while True:
            start = cursor.pos
            word = cursor.u64("RAM record")
            flags = word & mask
            kind = flags & ~_CONTINUE
            if kind in _PAGE_FLAGS:
                self._page_record(cursor, records, start, word)
                if flags == _ZERO | _CONTINUE:
                    self._zero_run(cursor, records)
            elif flags == _MEM_SIZE:
                self._block_list(cursor, records, word & ~mask)
            elif flags == _EOS:
                return records
            elif flags != _FLUSH:
                raise StreamError(start, f"RAM record: flags 0x{flags:x} are not those of a precopy stream")

    def _page_record(self, cursor: Cursor, records: RamRecords, start: int, word: int) -> None:
        if not word & _CONTINUE:
            name = cursor.name("RAM block")
            block = self._by_name.get(name)
            if block is None:
                raise StreamError(start, f"RAM record: block {name!r} was not announced")
            self._block = block
        if self._block < 0:
            raise StreamError(start, "RAM record: continues a block, and there was none")
        limit = self.blocks[self._block].size_bytes
        if word & ~(self.page_size - 1) >= limit:
            name = self.blocks[self._block].name
            raise StreamError(start, f"RAM record: address 0x{word:x} is outside of {name!r}, {limit} bytes")
        records.add(self._block, word, self._skip_data(cursor, word & (self.page_size - 1) & ~_CONTINUE))

    def _skip_data(self, cursor: Cursor, kind: int) -> int:
        """Pass over a page's data and return where it starts."""
        if kind == _XBZRLE:
            at = cursor.pos
            if cursor.u8("XBZRLE header") != wire.XBZRLE_ENCODING:
                raise StreamError(at, "XBZRLE header: unknown encoding")
            size = cursor.u16("XBZRLE length")
        elif kind == _COMPRESS:
            size = cursor.u32("length of compressed page")
        else:
            size = self.page_size if kind == _PAGE else 1
        start = cursor.pos
        cursor.skip(size, "page")
        return start

    def _zero_run(self, cursor: Cursor, records: RamRecords) -> None:
        """Zero pages come by the ten thousand: take a run of them without the care others need."""
        wanted, mask = _ZERO | _CONTINUE, self.page_size - 1
        limit, block, size = self.blocks[self._block].size_bytes, self._block, _ZERO_RUN.size
        while True:
            start = cursor.pos
            count = min(_ZERO_RUN_RECORDS, cursor.left // size)
            offset = start
            for word, _ in _ZERO_RUN.iter_unpack(cursor.view[start : start + count * size]):
                if word & mask != wanted or word >= limit:
                    break
                records.add(block, word, offset + 8)
                offset += size
            cursor.pos = offset
            if not count or offset - start < count * size:
                return

    def _block_list(self, cursor: Cursor, records: RamRecords, total_bytes: int) -> None:
        if self.blocks:
            raise StreamError(cursor.pos, "RAM block list: a second one")
        while total_bytes > 0:
            start = cursor.pos
            name = cursor.name("RAM block")
            size = cursor.u64("RAM block's size")
            address = cursor.u64("RAM block's address") if self.ignore_shared else None
            if not 0 < size <= total_bytes or size % self.page_size:
                raise StreamError(start, f"RAM block {name!r}: {size} bytes of the {total_bytes} that are left")
            if name in self._by_name or len(self.blocks) >= _MAX_BLOCKS:
                raise StreamError(start, f"RAM block {name!r}: announced twice, or one too many")
            self._by_name[name] = len(self.blocks)
            self.blocks.append(RamBlock(name=name, size_bytes=size, address=address))
            total_bytes -= size
            if self.mapped:
                self._mapped_pages(cursor, records, self.blocks[-1])

    def _mapped_pages(self, cursor: Cursor, records: RamRecords, block: RamBlock) -> None:
        """The pages of a block that are in the file, by its bitmap (``mapped_ram_setup_ramblock``)."""
        start, pages = cursor.pos, block.size_bytes // self.page_size
        version, page_size, *places = cursor.unpack(wire.MAPPED_RAM, "header of mapped pages")
        bitmap_at, pages_at = (place - self.file_offset for place in places)
        bitmap_bytes = (pages + 63) // 64 * 8
        if version != wire.MAPPED_RAM_VERSION or page_size != self.page_size:
            raise StreamError(start, f"mapped pages of {block.name!r}: version {version}, pages of {page_size} bytes")
        if bitmap_at != cursor.pos or pages_at < bitmap_at + bitmap_bytes:
            raise StreamError(start, f"mapped pages of {block.name!r}: bitmap at {bitmap_at}, pages at {pages_at}")
        cursor.need(pages_at - bitmap_at + block.size_bytes, f"mapped pages of {block.name!r}")
        bitmap = cursor.take(bitmap_bytes, "bitmap of mapped pages")
        for number in range(pages):
            if bitmap[number >> 3] >> (number & 7) & 1:
                offset = number * self.page_size
                records.add(len(self.blocks) - 1, offset | _PAGE, pages_at + offset)
        cursor.pos = pages_at + block.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RamImage:
    """Guest memory at the end of a stream, as offsets into the stream's buffer.

    ``pages`` has an array ('q') for each block: where the data of each page starts, or -1 for a page of
    zeros or one that was never sent. The image lives as long as the stream's buffer does.
    """

    buffer: memoryview
    page_size: int
    blocks: tuple[RamBlock, ...]
    pages: tuple[array[int], ...]

    @classmethod
    def from_stream(cls, stream: Stream) -> RamImage:
        """Apply all records in order: the last one of a page wins.

        :raises StreamError: XBZRLE or compressed pages, a fill byte other than 0, or blocks far larger than
            the pages that were sent
        """
        _check_sizes(stream)
        pages = tuple(array("q", [-1]) * (b.size_bytes // stream.page_size) for b in stream.ram_blocks)
        for section in stream.ram:
            _apply(section, stream.buffer, pages)
        return cls(buffer=stream.buffer, page_size=stream.page_size, blocks=stream.ram_blocks, pages=pages)

    def without(self, names: Collection[str]) -> RamImage:
        """The same without some blocks."""
        kept = [number for number, block in enumerate(self.blocks) if block.name not in names]
        return replace(
            self, blocks=tuple(self.blocks[n] for n in kept), pages=tuple(self.pages[number] for number in kept)
        )

    def page(self, block: int, number: int) -> memoryview | None:
        """Content of one page, None for zeros."""
        offset = self.pages[block][number]
        return None if offset < 0 else self.buffer[offset : offset + self.page_size]

    def content(self) -> Iterator[tuple[str, int, memoryview | None]]:
        """Every page as :func:`encode_pages` takes it: block name, byte address, content or None."""
        for index, block in enumerate(self.blocks):
            for number in range(len(self.pages[index])):
                yield block.name, number * self.page_size, self.page(index, number)

    def changed(self, base: RamImage) -> Iterator[tuple[str, int, memoryview | None]]:
        """The pages whose content is not that of ``base``, as :func:`encode_pages` takes them.

        :raises UsageError: the two do not have the same blocks
        """
        if self.blocks != base.blocks or self.page_size != base.page_size:
            raise UsageError("RAM images of different machines cannot be compared")
        zeros = bytes(self.page_size)
        for index, block in enumerate(self.blocks):
            for number, (ours, theirs) in enumerate(zip(self.pages[index], base.pages[index], strict=True)):
                if ours < 0 and theirs < 0:
                    continue
                page, old = self.page(index, number), base.page(index, number)
                if bytes(page or zeros) != bytes(old or zeros):
                    yield block.name, number * self.page_size, page


def _check_sizes(stream: Stream) -> None:
    """Precopy sends each page once at least: a block list far beyond the records is damage."""
    wanted = sum(block.size_bytes for block in stream.ram_blocks) // stream.page_size
    records = sum(len(section) for section in stream.ram)
    if wanted > _FREE_PAGES + _PAGES_PER_RECORD * records:
        offset = stream.ram[0].offset if stream.ram else 0
        raise StreamError(offset, f"RAM blocks claim {wanted} pages, and {records} page records are there")


def _apply(section: RamSection, buffer: memoryview, pages: tuple[array[int], ...]) -> None:
    shift = section.page_size.bit_length() - 1
    mask = (section.page_size - 1) & ~_CONTINUE
    for block, word, offset in zip(section.block_index, section.words, section.data_offset, strict=True):
        kind = word & mask
        if kind == _PAGE:
            pages[block][word >> shift] = offset
        elif kind == _ZERO and buffer[offset] == 0:
            pages[block][word >> shift] = -1
        else:
            raise StreamError(offset, f"RAM image: cannot apply a page with flags 0x{kind:x}")


def encode_mem_size(blocks: Iterable[RamBlock]) -> bytes:
    """The MEM_SIZE record with its block list, for a START section."""
    listed = list(blocks)
    total = sum(block.size_bytes for block in listed)
    parts = [wire.U64.pack(total | _MEM_SIZE)]
    for block in listed:
        parts.append(_counted(block.name) + wire.U64.pack(block.size_bytes))
        if block.address is not None:
            parts.append(wire.U64.pack(block.address))
    return b"".join(parts)


def with_larger_block(start: bytes, block: RamBlock, more_bytes: int) -> bytes:
    """A START section of ``ram`` whose block list has one block longer than it was.

    :raises UsageError: it lists no such block
    """
    listed = _counted(block.name) + wire.U64.pack(block.size_bytes)
    at = start.find(listed)
    if at < 0:
        raise UsageError(f"no RAM block {block.name!r} of {block.size_bytes} bytes is listed")
    total_at = len(section_header(wire.SectionType.START, 0, wire.RAM_IDSTR, 0, wire.RAM_VERSION))
    (total,) = wire.U64.unpack_from(start, total_at)
    longer = bytearray(start)
    wire.U64.pack_into(longer, total_at, total + more_bytes)
    wire.U64.pack_into(longer, at + len(listed) - wire.U64.size, block.size_bytes + more_bytes)
    return bytes(longer)


def encode_pages(
    pages: Iterable[tuple[str, int, bytes | memoryview | None]], *, page_size: int = wire.PAGE_SIZE
) -> list[bytes | memoryview]:
    """Page records.

    :param pages: block name, byte address within it, and the page's content or None for zeros
    :return: buffers to be sent one behind the other; page content is not copied
    :raises UsageError: an address or a content that is not one page
    """
    buffers: list[bytes | memoryview] = []
    last: str | None = None
    for name, address, content in pages:
        if address < 0 or address % page_size or (content is not None and len(content) != page_size):
            raise UsageError(f"page at 0x{address:x} of {name!r} is not one page of {page_size} bytes")
        flags = (_ZERO if content is None else _PAGE) | (_CONTINUE if name == last else 0)
        header = wire.U64.pack(address | flags) + (b"" if name == last else _counted(name))
        last = name
        if content is None:
            buffers.append(header + b"\0")
        else:
            buffers += (header, content)
    return buffers


class PageRecords:
    """Records of the pages of some blocks: each is made once, and all sections that send it have it in common.

    :param blocks: their names and bytes, in the order of an index
    :param contents: of the pages that an index names, counted from 1; 0 is a page of zeros
    """

    def __init__(self, blocks: Iterable[tuple[str, int]], contents: Sequence[memoryview]) -> None:
        self._contents = contents
        self._blocks: list[_BlockRecords] = []
        start = 0
        for name, size_bytes in blocks:
            self._blocks.append(_BlockRecords(name, start, size_bytes // wire.PAGE_SIZE))
            start += size_bytes // wire.PAGE_SIZE

    def of(
        self, index: array[int], base: array[int] | None = None, *, empty: Collection[str] = ()
    ) -> list[bytes | memoryview]:
        """Records of every page, or of those only whose content is not that of ``base``, as :func:`encode_pages` makes
        them.

        :param index: for each page of all blocks the number of its content
        :param empty: blocks of which only the pages that are not zeros are sent
        """
        found: list[bytes | memoryview] = []
        for block in self._blocks:
            ours = index[block.start : block.end]
            theirs = None if base is None else base[block.start : block.end]
            if theirs is not None:
                places: Iterable[int] = compress(count(), map(ne, ours, theirs)) if ours != theirs else ()
            else:
                places = compress(count(), ours) if block.name in empty else range(len(ours))
            at, first = len(found), -1
            for place in places:
                first = place if first < 0 else first
                number = ours[place]
                if number:
                    found += (block.heads[place], self._contents[number - 1])
                else:
                    found.append(block.zeros[place])
            if first >= 0:
                # it names its block, which those behind it continue
                content = self._contents[ours[first] - 1] if ours[first] else None
                found[at] = encode_pages([(block.name, first * wire.PAGE_SIZE, content)])[0]
        return found


class _BlockRecords:
    """What stands before the pages of one block, when it is not the first of a section.

    :param start: its first page in an index
    """

    def __init__(self, name: str, start: int, pages: int) -> None:
        self.name = name
        self.start = start
        self.end = start + pages
        addresses = range(0, pages * wire.PAGE_SIZE, wire.PAGE_SIZE)
        self.heads = [wire.U64.pack(address | _PAGE | _CONTINUE) for address in addresses]
        self.zeros = [wire.U64.pack(address | _ZERO | _CONTINUE) + b"\0" for address in addresses]


def encode_ram_section(
    type: int,
    section_id: int,
    records: bytes,
    *,
    idstr: str = wire.RAM_IDSTR,
    instance_id: int = 0,
    version_id: int = wire.RAM_VERSION,
    footer: bool = True,
) -> bytes:
    """A RAM section around records; adds EOS, header (with idstr for START only) and footer."""
    head = section_header(type, section_id, idstr, instance_id, version_id)
    return head + records + wire.U64.pack(_EOS) + (section_footer(section_id) if footer else b"")


def ram_section_buffers(
    type: int, section_id: int, pages: Iterable[tuple[str, int, bytes | memoryview | None]], *, footer: bool = True
) -> list[bytes | memoryview]:
    """A PART or END section as buffers to be sent one behind the other; page content is not copied.

    :param pages: as :func:`encode_pages` takes them
    """
    return ram_section_of(type, section_id, encode_pages(pages), footer=footer)


def ram_section_of(
    type: int, section_id: int, records: Iterable[bytes | memoryview], *, footer: bool = True
) -> list[bytes | memoryview]:
    """The same, of page records."""
    start = section_header(type, section_id, wire.RAM_IDSTR, 0, wire.RAM_VERSION)
    return [start, *records, wire.U64.pack(_EOS) + (section_footer(section_id) if footer else b"")]


def _counted(name: str) -> bytes:
    raw = name.encode()
    return wire.U8.pack(len(raw)) + raw
