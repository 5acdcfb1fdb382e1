# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a migration stream, or a COLO device buffer, from bytes or a mapped file.

The length of a FULL section is not on the wire. The vmdesc at the end of the stream gives it, so that is
found first, from the end; then the stream is read forward, and the footer behind each section checks the
length (``migration/savevm.c``: ``qemu_loadvm_state_main``).
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from harness.errors import StreamError, UsageError
from harness.stream import wire
from harness.stream.cursor import Cursor, find, rfind_byte
from harness.stream.model import Command, Part, RamSection, Section, Stream
from harness.stream.ram import RamReader
from harness.stream.vmdesc import DeviceDesc, VmDesc

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
_BEHIND_FOOTER = frozenset({0, 1, 2, 3, 4, 8})


def read_stream(buf: Buffer, *, vmdesc: VmDesc | None = None) -> Stream:
    """Read a whole stream.

    :param buf: from the magic to the last byte of the vmdesc, and not one more
    :param vmdesc: for a stream without its own, such as that of xen-save-devices-state
    :raises StreamError: no stream, cut, padded, damaged, or without vmdesc
    """
    view = buf if isinstance(buf, memoryview) else memoryview(buf)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    return _StreamReader(view, vmdesc).read()


def read_devices(buf: Buffer, *, vmdesc: VmDesc, start: int = 0) -> list[Section]:
    """Read a COLO device buffer: FULL sections and EOF, without file header and vmdesc.

    The same section may stand in it many times.

    :param start: offset of the first section; the buffer must end right behind EOF
    :raises StreamError: cut, padded, damaged, or other than the vmdesc says
    """
    cursor = Cursor(memoryview(buf), start)
    sections = _SectionReader(cursor, vmdesc)
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
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise StreamError(0, f"{path} is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    view = memoryview(mapped)
    try:
        yield read_stream(view, vmdesc=vmdesc)
    finally:
        # a page that the caller still holds keeps the mapping alive until it is dropped
        with contextlib.suppress(BufferError):
            view.release()
            mapped.close()


class _SectionReader:
    """Reads device sections at a cursor; remembers whether this stream has footers."""

    def __init__(self, cursor: Cursor, vmdesc: VmDesc | None) -> None:
        self.cursor = cursor
        self.vmdesc = vmdesc
        self._footers: bool | None = None

    def footer(self, section_id: int) -> bool:
        """Read a footer if there is one. All sections of a stream have one, or none has."""
        start = self.cursor.pos
        here = self.cursor.peek() == wire.FOOTER
        if self._footers is None:
            self.cursor.need(1, "footer")
            self._footers = here
        if here != self._footers:
            self.cursor.need(1, "footer")
            raise StreamError(start, f"section {section_id} does not end where the vmdesc says: no footer")
        if here:
            _, found = self.cursor.unpack(wire.SECTION_ID, "footer")
            if found != section_id:
                raise StreamError(start, f"footer of section {found} behind section {section_id}")
        return here

    def identity(self) -> tuple[int, str, int, int]:
        """section_id, idstr, instance_id and version_id of a START or FULL section."""
        _, section_id = self.cursor.unpack(wire.SECTION_ID, "section header")
        idstr = self.cursor.name("idstr")
        instance_id, version_id = self.cursor.unpack(wire.INSTANCE_VERSION, "section header")
        return section_id, idstr, instance_id, version_id

    def full(self) -> Section:
        start = self.cursor.pos
        section_id, idstr, instance_id, version_id = self.identity()
        desc = self._describe(start, idstr, instance_id, version_id)
        header_size = self.cursor.pos - start
        payload = self.cursor.take(desc.size_bytes, f"section {idstr!r}")
        return Section(
            type=wire.SectionType.FULL,
            section_id=section_id,
            idstr=idstr,
            instance_id=instance_id,
            version_id=version_id,
            offset=start,
            header_size=header_size,
            payload=payload,
            footer=self.footer(section_id),
        )

    def _describe(self, start: int, idstr: str, instance_id: int, version_id: int) -> DeviceDesc:
        if self.vmdesc is None:
            raise StreamError(
                start,
                f"the length of section {idstr!r} needs a vmdesc, and none ends where the stream does: "
                "it is cut, padded, or was made without one",
            )
        desc = self.vmdesc.device(idstr, instance_id)
        if desc is None:
            raise StreamError(start, f"section {idstr!r} instance {instance_id} is not in the vmdesc")
        if desc.version is not None and desc.version != version_id:
            raise StreamError(start, f"section {idstr!r} has version {version_id}, in the vmdesc {desc.version}")
        return desc


class _StreamReader:
    """The state of one :func:`read_stream`."""

    def __init__(self, view: memoryview, vmdesc: VmDesc | None) -> None:
        self.cursor = Cursor(view)
        self.given = vmdesc
        self.parts: list[Part] = []
        self.started: dict[int, tuple[str, int, int]] = {}
        self.capabilities: tuple[str, ...] = ()
        self.page_bits: int | None = None

    def read(self) -> Stream:
        cursor = self.cursor
        version = self._file_header()
        own = _find_vmdesc(cursor.view)
        vmdesc = own or self.given
        machine, configuration = self._configuration()
        page_size = self._page_size(vmdesc)
        self.sections = _SectionReader(cursor, vmdesc)
        self.ram_reader = RamReader(page_size=page_size, ignore_shared=_IGNORE_SHARED in self.capabilities)
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
            size=cursor.end,
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

    def _configuration_subsection(self) -> None:
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
        if _MAPPED_RAM in self.capabilities:
            raise StreamError(start, "a stream with capability mapped-ram keeps its pages elsewhere: not supported")

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
        if command == wire.Command.PACKAGED:
            raise StreamError(start, "a packaged stream is that of a postcopy: not supported")
        return Command(offset=start, command=command, data=self.cursor.take(length, "data of command"))

    def _iterable(self, start: int, kind: int, section_id: int) -> Part:
        idstr, instance_id, version_id = self.started[section_id]
        if idstr == wire.RAM_IDSTR:
            return self._ram(start, kind, section_id)
        cursor = self.cursor
        body = cursor.pos
        payload = cursor.take(self._opaque_size(section_id, idstr), f"section {idstr!r}")
        return Section(
            type=kind,
            section_id=section_id,
            idstr=idstr,
            instance_id=instance_id,
            version_id=version_id,
            offset=start,
            header_size=body - start,
            payload=payload,
            footer=self.sections.footer(section_id),
        )

    def _opaque_size(self, section_id: int, idstr: str) -> int:
        """Bytes up to the footer: nothing describes what an iterable section other than RAM holds."""
        cursor = self.cursor
        pattern = wire.SECTION_ID.pack(wire.FOOTER, section_id)
        at = find(cursor.view, pattern, cursor.pos)
        while at >= 0 and at + len(pattern) < cursor.end:
            if cursor.view[at + len(pattern)] in _BEHIND_FOOTER:
                return at - cursor.pos
            at = find(cursor.view, pattern, at + 1)
        raise StreamError(cursor.pos, f"section {idstr!r} has no footer")

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
            self._complete(eof, own)
        elif self.given is None:
            raise StreamError(cursor.pos, "the stream ends without a vmdesc: it is cut, or was made without one")
        elif cursor.left:
            raise StreamError(cursor.pos, f"{cursor.left} bytes behind the end of the stream")

    def _complete(self, eof: int, own: VmDesc) -> None:
        """A stream's own vmdesc is written along with its sections: each is there once."""
        seen: set[tuple[str, int]] = set()
        for part in self.parts:
            if isinstance(part, Section) and part.type == wire.SectionType.FULL:
                if part.key in seen:
                    raise StreamError(part.offset, f"section {part.idstr!r} stands in the stream twice")
                seen.add(part.key)
        missing = [device.name for device in own.devices if device.key not in seen]
        if missing:
            raise StreamError(eof, f"section {missing[0]!r} of the vmdesc is not in the stream")


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
