# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stream is made of, once read. RAM stays where it is: pages are offsets into the stream's buffer."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.stream import wire
from harness.stream.vmdesc import DeviceDesc, VmDesc


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command between sections; ``command`` is a :class:`wire.CommandType` number."""

    offset: int
    command: int
    data: bytes

    @property
    def size(self) -> int:
        return wire.COMMAND.size + len(self.data)

    def encode(self) -> bytes:
        return wire.COMMAND.pack(wire.SectionType.COMMAND, self.command, len(self.data)) + self.data


def section_header(kind: int, section_id: int, idstr: str, instance_id: int, version_id: int) -> bytes:
    """Type byte to version_id; PART and END have no more than their section_id (``save_section_header``)."""
    head = wire.SECTION_ID.pack(kind, section_id)
    if kind not in (wire.SectionType.START, wire.SectionType.FULL):
        return head
    name = idstr.encode()
    return head + wire.U8.pack(len(name)) + name + wire.INSTANCE_VERSION.pack(instance_id, version_id)


def section_footer(section_id: int) -> bytes:
    """The five bytes behind a payload (``save_section_footer``)."""
    return wire.SECTION_ID.pack(wire.FOOTER, section_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section of a device: FULL, or START, PART and END of something iterable that is not RAM.

    ``offset`` is that of the type byte, ``header_size`` the bytes up to the payload. To send a changed
    section use ``dataclasses.replace(section, payload=...)`` and :meth:`encode`.

    ``desc`` is what the vmdesc says of this very section, None where nothing does. It belongs to the section, for
    (idstr, instance_id) need not be unique: QEMU 7.2 writes one ``slirp`` for each user network.
    """

    type: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    offset: int
    header_size: int
    payload: bytes
    footer: bool
    desc: DeviceDesc | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> tuple[str, int]:
        return (self.idstr, self.instance_id)

    @property
    def size(self) -> int:
        """Bytes from the type byte to the end of the footer."""
        return self.header_size + len(self.payload) + (wire.SECTION_ID.size if self.footer else 0)

    def encode(self) -> bytes:
        head = section_header(self.type, self.section_id, self.idstr, self.instance_id, self.version_id)
        return head + self.payload + (section_footer(self.section_id) if self.footer else b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class RamBlock:
    """A RAM block as MEM_SIZE announces it; ``address`` is there with capability x-ignore-shared only."""

    name: str
    size_bytes: int
    address: int | None = None


class RamRecord(NamedTuple):
    """A page record: index of its block, byte address in it, flags, and where its data starts in the
    buffer."""

    block: int
    address: int
    flags: int
    data_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RamSection:
    """A section ``ram``. Its page records lie in three arrays of equal length.

    ``block_index`` ('H') counts in :attr:`Stream.ram_blocks`, ``words`` ('Q') is address | flags as on the
    wire, and ``data_offset`` ('Q') is where the page, the fill byte or the compressed data starts in the
    stream. ``blocks`` is what a START announces, else empty.
    """

    type: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    offset: int
    header_size: int
    size: int
    footer: bool
    page_size: int
    blocks: tuple[RamBlock, ...]
    block_index: array[int]
    words: array[int]
    data_offset: array[int]

    @property
    def key(self) -> tuple[str, int]:
        return (self.idstr, self.instance_id)

    def __len__(self) -> int:
        return len(self.words)

    def records(self) -> Iterator[RamRecord]:
        """The page records in stream order, made one at a time."""
        mask = self.page_size - 1
        for block, word, offset in zip(self.block_index, self.words, self.data_offset, strict=True):
            yield RamRecord(block, word & ~mask, word & mask, offset)

    def encode(self, buffer: memoryview) -> Iterator[bytes | memoryview]:
        """Header, the records as they lie in ``buffer``, footer."""
        yield section_header(self.type, self.section_id, self.idstr, self.instance_id, self.version_id)
        footer = section_footer(self.section_id) if self.footer else b""
        yield buffer[self.offset + self.header_size : self.offset + self.size - len(footer)]
        yield footer


Part = Command | Section | RamSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A whole stream.

    ``parts`` is everything between ``head`` and EOF in stream order; ``devices`` and ``ram`` are picked from
    it. ``head`` is magic, version and configuration section: what a COLO primary sends first. ``vmdesc`` is
    the stream's own when ``own_vmdesc``, else the one that was handed in. ``buffer`` is what was read; RAM
    pages live in it. ``tail`` is what stands behind the stream, and is no part of it.
    """

    buffer: memoryview
    version: int
    configuration: bytes
    machine: str
    capabilities: tuple[str, ...]
    page_size: int
    parts: list[Part]
    devices: list[Section]
    ram: list[RamSection]
    ram_blocks: tuple[RamBlock, ...]
    vmdesc: VmDesc | None
    own_vmdesc: bool
    size: int
    tail: memoryview

    @property
    def head(self) -> bytes:
        return wire.FILE_HEADER.pack(wire.MAGIC, self.version) + self.configuration

    def encode(self) -> Iterator[bytes | memoryview]:
        """Buffers that together are the stream again, byte for byte."""
        yield self.head
        for part in self.parts:
            if isinstance(part, RamSection):
                yield from part.encode(self.buffer)
            else:
                yield part.encode()
        yield wire.U8.pack(wire.SectionType.EOF)
        if self.own_vmdesc and self.vmdesc is not None:
            yield self.vmdesc.raw

    def section(self, idstr: str, instance_id: int = 0) -> Section | None:
        """The first FULL section of that name."""
        key = (idstr, instance_id)
        return next((s for s in self.devices if s.key == key and s.type == wire.SectionType.FULL), None)
