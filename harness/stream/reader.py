# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a migration stream, or a COLO device buffer, from bytes or a mapped file.

The length of a FULL section is not on the wire. The vmdesc at the end of the stream gives it, so that is
found first, from the end; then the stream is read forward, and the footer behind each section checks the
length (``migration/savevm.c``: ``qemu_loadvm_state_main``). A stream that somebody else made may have no vmdesc, or
bytes behind it: :func:`read_foreign` looks for the ends of its sections.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.errors import StreamError, UsageError
from harness.stream import wire
from harness.stream.cursor import Cursor, rfind_byte
from harness.stream.model import Command, Part, RamSection, Section, Stream
from harness.stream.ram import RamReader
from harness.stream.sections import SectionReader
from harness.stream.vmdesc import VmDesc

Buffer = bytes | bytearray | memoryview | mmap.mmap

_CAPABILITIES = "configuration/capabilities"
_PAGE_BITS = "configuration/target-page-bits"
_UUID = "configuration/uuid"
_IGNORE_SHARED = "x-ignore-shared"
_MAPPED_RAM = "mapped-ram"
_MAX_CAPABILITIES = 256
# a source makes a RAM section each 50 ms at most (MAX_WAIT in migration/ram.c): this is hours of them
_MAX_PARTS = 1 << 18
_MAX_VMDESC_BYTES = 16 << 20


def read_stream(buf: Buffer, *, vmdesc: VmDesc | None = None) -> Stream:
    """Read a whole stream.

    :param buf: from the magic to the last byte of the vmdesc, and not one more
    :param vmdesc: for a stream without its own, such as that of xen-save-devices-state
    :raises StreamError: no stream, cut, padded, damaged, or without vmdesc
    """
    return _StreamReader(_bytes_of(buf), vmdesc).read()


def read_foreign(buf: Buffer, *, vmdesc: VmDesc | None = None, file_offset: int = 0) -> Stream:
    """Read a stream that need not end with its vmdesc: one made with ``suppress-vmdesc``, by a machine type before
    2.4, by ``xen-save-devices-state``, or that has something behind its end, such as the padding of a snapshot.

    A stream that ends with its vmdesc is held to it.

    :param vmdesc: for a stream without its own; may be that of another machine, and is used where it fits
    :param file_offset: where the buffer starts in its file; mapped RAM names its places in the file
    :raises StreamError: no stream, cut, or damaged
    """
    view = _bytes_of(buf)
    stream = _StreamReader(view, vmdesc, search=True, file_offset=file_offset).read()
    if not stream.tail or stream.tail[0] != wire.SectionType.VMDESCRIPTION:
        return stream
    cursor = Cursor(view, stream.size)
    _, length = cursor.unpack(wire.VMDESC, "vmdesc")
    cursor.skip(length, "vmdesc")
    return replace(_StreamReader(view[: cursor.pos], None, file_offset=file_offset).read(), tail=view[cursor.pos :])


def plain_configuration(stream: Stream) -> bytes:
    """The configuration section without what a destination would hold against its own settings: capabilities such as
    ``mapped-ram`` (``configuration_validate_capabilities``), and the UUID."""
    if not stream.configuration:
        return b""
    reader = _StreamReader(memoryview(stream.configuration), None)
    return reader.plain_configuration()


def _bytes_of(buf: Buffer) -> memoryview:
    view = buf if isinstance(buf, memoryview) else memoryview(buf)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def read_devices(buf: Buffer, *, vmdesc: VmDesc, start: int = 0) -> list[Section]:
    """Read a COLO device buffer: FULL sections and EOF, without file header and vmdesc.

    The same section may stand in it many times.

    :param vmdesc: where it has several sections of one name, they come in turn
    :param start: offset of the first section; the buffer must end right behind EOF
    :raises StreamError: cut, padded, damaged, or other than the vmdesc says
    """
    cursor = Cursor(memoryview(buf), start)
    sections = SectionReader(cursor, vmdesc)
    found: list[Section] = []
    while (kind := cursor.peek()) != wire.SectionType.EOF:
        if kind != wire.SectionType.FULL:
            cursor.need(1, "section type")
            raise StreamError(cursor.pos, f"section type {kind} in a device buffer")
        found.append(sections.full())
    cursor.skip(1, "EOF")
    if cursor.left:
        raise StreamError(cursor.pos, f"{cursor.left} bytes behind the end of the device buffer")
    return found


@contextlib.contextmanager
def open_stream(path: Path, *, vmdesc: VmDesc | None = None) -> Iterator[Stream]:
    """Map a file and read it; the stream and images of its RAM are good until the context ends.

    :raises UsageError: the file cannot be read
    :raises StreamError: as :func:`read_stream`
    """
    with mapped(path) as view:
        yield read_stream(view, vmdesc=vmdesc)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, good until the context ends.

    :raises UsageError: the file cannot be read
    :raises StreamError: it is empty
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise StreamError(0, f"{path} is empty")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    view = memoryview(mapping)
    try:
        yield view
    finally:
        # a page that the caller still holds keeps the mapping alive until it is dropped
        with contextlib.suppress(BufferError):
            view.release()
            mapping.close()


class _StreamReader:
    """The state of one :func:`read_stream`.

    :param search: where no vmdesc ends the stream, look for the ends of sections, and leave what stands behind EOF
    """

    def __init__(self, view: memoryview, vmdesc: VmDesc | None, *, search: bool = False, file_offset: int = 0) -> None:
        self.cursor = Cursor(view)
        self.given = vmdesc
        self.search = search
        self.file_offset = file_offset
        self.parts: list[Part] = []
        self.started: dict[int, tuple[str, int, int]] = {}
        self.capabilities: tuple[str, ...] = ()
        self.page_bits: int | None = None

    def read(self) -> Stream:
        cursor = self.cursor
        version = self._file_header()
        own = _find_vmdesc(cursor.view)
        self.search = self.search and own is None
        vmdesc = own or self.given
        machine, configuration = self._configuration()
        page_size = self._page_size(vmdesc)
        self.sections = SectionReader(cursor, vmdesc, search=self.search, bare=not configuration)
        self.ram_reader = RamReader(
            page_size=page_size,
            ignore_shared=_IGNORE_SHARED in self.capabilities,
            mapped=_MAPPED_RAM in self.capabilities,
            file_offset=self.file_offset,
        )
        while cursor.peek() != wire.SectionType.EOF:
            self.parts.append(self._part())
            if len(self.parts) > _MAX_PARTS:
                raise StreamError(cursor.pos, f"more than {_MAX_PARTS} sections")
        self._end(own)
        return Stream(
            buffer=cursor.view,
            version=version,
            configuration=configuration,
            machine=machine,
            capabilities=self.capabilities,
            page_size=page_size,
            parts=self.parts,
            devices=[part for part in self.parts if isinstance(part, Section)],
            ram=[part for part in self.parts if isinstance(part, RamSection)],
            ram_blocks=tuple(self.ram_reader.blocks),
            vmdesc=vmdesc,
            own_vmdesc=own is not None,
            size=cursor.pos,
            tail=cursor.view[cursor.pos :],
        )

    def _file_header(self) -> int:
        magic, version = self.cursor.unpack(wire.FILE_HEADER, "file header")
        if magic != wire.MAGIC:
            raise StreamError(0, f"not a migration stream: magic 0x{magic:08x}, not 0x{wire.MAGIC:08x}")
        if version != wire.VERSION:
            raise StreamError(4, f"stream version {version}, only {wire.VERSION} is known")
        return version

    def _configuration(self) -> tuple[str, bytes]:
        """Machine type and raw bytes of the configuration section; empty for machine types before 2.4."""
        cursor, start = self.cursor, self.cursor.pos
        if cursor.peek() != wire.SectionType.CONFIGURATION:
            return "", b""
        cursor.skip(1, "configuration")
        machine = cursor.text(cursor.u32("length of machine type"), "machine type")
        while cursor.peek() == wire.SectionType.SUBSECTION:
            self._configuration_subsection()
        return machine, bytes(cursor.view[start : cursor.pos])

    def plain_configuration(self) -> bytes:
        """What the section has but for capabilities and UUID."""
        cursor = self.cursor
        cursor.skip(1, "configuration")
        cursor.text(cursor.u32("length of machine type"), "machine type")
        kept = [bytes(cursor.view[: cursor.pos])]
        while cursor.peek() == wire.SectionType.SUBSECTION:
            start = cursor.pos
            if self._configuration_subsection() == _PAGE_BITS:
                kept.append(bytes(cursor.view[start : cursor.pos]))
        return b"".join(kept)

    def _configuration_subsection(self) -> str:
        """``migration/savevm.c``: ``vmstate_target_page_bits``, ``vmstate_capabilites``, ``vmstate_uuid``."""
        cursor, start = self.cursor, self.cursor.pos
        cursor.skip(1, "subsection")
        name = cursor.name("subsection")
        cursor.u32("version of subsection")
        if name == _PAGE_BITS:
            self.page_bits = cursor.u32(name)
        elif name == _CAPABILITIES:
            count = cursor.u32(name)
            if count > _MAX_CAPABILITIES:
                raise StreamError(start, f"configuration: {count} capabilities")
            self.capabilities = tuple(cursor.name("capability") for _ in range(count))
        elif name == _UUID:
            cursor.skip(16, name)
        else:
            raise StreamError(start, f"configuration: unknown subsection {name!r}")
        return name

    def _page_size(self, vmdesc: VmDesc | None) -> int:
        described = vmdesc.page_size if vmdesc else None
        if self.page_bits is None:
            return described or wire.PAGE_SIZE
        if not 10 <= self.page_bits <= 20 or described not in (None, 1 << self.page_bits):
            raise StreamError(self.cursor.pos, f"configuration: {self.page_bits} page bits")
        return 1 << self.page_bits

    def _part(self) -> Part:
        cursor = self.cursor
        kind = cursor.peek()
        if kind == wire.SectionType.FULL:
            return self.sections.full()
        if kind == wire.SectionType.COMMAND:
            return self._command()
        if kind == wire.SectionType.START:
            start = cursor.pos
            section_id, idstr, instance_id, version_id = self.sections.identity()
            if section_id in self.started:
                raise StreamError(start, f"section {section_id} starts twice")
            self.started[section_id] = (idstr, instance_id, version_id)
            return self._iterable(start, kind, section_id)
        if kind in (wire.SectionType.PART, wire.SectionType.END):
            start = cursor.pos
            _, section_id = cursor.unpack(wire.SECTION_ID, "section header")
            if section_id not in self.started:
                raise StreamError(start, f"section {section_id} goes on without having started")
            return self._iterable(start, kind, section_id)
        cursor.need(1, "section type")
        raise StreamError(cursor.pos, f"section type {kind} has no place here")

    def _command(self) -> Command:
        start = self.cursor.pos
        _, command, length = self.cursor.unpack(wire.COMMAND, "command")
        if command == wire.CommandType.PACKAGED:
            raise StreamError(start, "a packaged stream is that of a postcopy: not supported")
        return Command(offset=start, command=command, data=self.cursor.take(length, "data of command"))

    def _iterable(self, start: int, kind: int, section_id: int) -> Part:
        identity = (section_id, *self.started[section_id])
        if identity[1] == wire.RAM_IDSTR:
            return self._ram(start, kind, section_id)
        return self.sections.opaque(kind, start, identity)

    def _ram(self, start: int, kind: int, section_id: int) -> RamSection:
        idstr, instance_id, version_id = self.started[section_id]
        if version_id != wire.RAM_VERSION:
            raise StreamError(start, f"RAM section of version {version_id}, only {wire.RAM_VERSION} is known")
        cursor, known = self.cursor, len(self.ram_reader.blocks)
        body = cursor.pos
        records = self.ram_reader.read(cursor)
        footer = self.sections.footer(section_id)
        return RamSection(
            type=kind,
            section_id=section_id,
            idstr=idstr,
            instance_id=instance_id,
            version_id=version_id,
            offset=start,
            header_size=body - start,
            size=cursor.pos - start,
            footer=footer,
            page_size=self.ram_reader.page_size,
            blocks=tuple(self.ram_reader.blocks[known:]),
            block_index=records.block_index,
            words=records.words,
            data_offset=records.data_offset,
        )

    def _end(self, own: VmDesc | None) -> None:
        """EOF, the vmdesc if it is there, and then the end of the buffer."""
        cursor, eof = self.cursor, self.cursor.pos
        cursor.skip(1, "EOF")
        if own is not None:
            if cursor.left != len(own.raw):
                raise StreamError(cursor.pos, "EOF, and the vmdesc does not follow")
            cursor.skip(len(own.raw), "vmdesc")
            self._complete(eof, own)
        elif self.search:
            return
        elif self.given is None:
            raise StreamError(cursor.pos, "the stream ends without a vmdesc: it is cut, or was made without one")
        elif cursor.left:
            raise StreamError(cursor.pos, f"{cursor.left} bytes behind the end of the stream")

    def _complete(self, eof: int, own: VmDesc) -> None:
        """A stream's own vmdesc is written along with its sections: each is there as often as it is described."""
        missing = Counter(device.key for device in own.devices)
        for part in self.parts:
            if isinstance(part, Section) and part.type == wire.SectionType.FULL:
                if not missing[part.key]:
                    raise StreamError(part.offset, f"section {part.idstr!r} stands in the stream once too often")
                missing[part.key] -= 1
        for idstr, instance_id in missing.elements():
            raise StreamError(eof, f"section {idstr!r} instance {instance_id} of the vmdesc is not in the stream")


def _find_vmdesc(view: memoryview) -> VmDesc | None:
    """The vmdesc that ends at the end of the buffer, or None.

    JSON has no NUL byte, so the last one of the buffer is either the EOF byte before the vmdesc, or one of
    the four bytes of its length.
    """
    last = rfind_byte(view, 0)
    for at in range(max(wire.FILE_HEADER.size, last - 4), last + 2):
        if at + wire.VMDESC.size >= len(view) or view[at - 1] != wire.SectionType.EOF:
            continue
        kind, length = wire.VMDESC.unpack_from(view, at)
        whole = length == len(view) - at - wire.VMDESC.size
        if kind == wire.SectionType.VMDESCRIPTION and whole and view[at + wire.VMDESC.size] == ord("{"):
            if length > _MAX_VMDESC_BYTES:
                raise StreamError(at, f"vmdesc: {length} bytes of JSON")
            return VmDesc.parse(bytes(view[at:]), offset=at)
    return None
