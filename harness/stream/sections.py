# SPDX-License-Identifier: GPL-2.0-or-later
"""Device sections at a place in a buffer. Their length is not on the wire: it is told, or it is looked for.

Told: the vmdesc has it, and the footer behind the payload proves it. Looked for: the payload ends at the next footer
that has the section's number and a part of a stream behind it; machine types before 2.4 write no footers, and there it
ends at the next header of a section.
"""

from __future__ import annotations

import re
from collections import Counter

from harness.errors import StreamError
from harness.stream import wire
from harness.stream.cursor import Cursor, find
from harness.stream.model import Section
from harness.stream.vmdesc import DeviceDesc, VmDesc

_BEHIND_FOOTER = frozenset({0, 1, 2, 3, 4, 8})
#: Type, section_id below 65,536, and the length of an idstr.
_HEADER = re.compile(rb"[\x01\x04]\x00\x00[\x00-\xff]{2}[\x01-\xff]")
_IDSTR = re.compile(rb"[!-~][ -~]*")
#: section_id, idstr, instance_id and version_id.
Identity = tuple[int, str, int, int]
#: QEMU's own are below 100.
_MAX_VERSION = 0xFFFF


class SectionReader:
    """Reads device sections at a cursor; remembers whether this stream has footers.

    :param vmdesc: describes the sections, each name's in stream order
    :param search: look for ends where the vmdesc is missing or other than the stream
    :param bare: there may be no footers, for nothing speaks of a machine type from 2.4 on
    """

    def __init__(self, cursor: Cursor, vmdesc: VmDesc | None, *, search: bool = False, bare: bool = False) -> None:
        self.cursor = cursor
        self.vmdesc = vmdesc
        self.search = search
        self.bare = bare
        self._footers: bool | None = None
        self._met: Counter[tuple[str, int]] = Counter()

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

    def identity(self) -> Identity:
        """Of a START or FULL section."""
        _, section_id = self.cursor.unpack(wire.SECTION_ID, "section header")
        idstr = self.cursor.name("idstr")
        instance_id, version_id = self.cursor.unpack(wire.INSTANCE_VERSION, "section header")
        return section_id, idstr, instance_id, version_id

    def full(self) -> Section:
        """A FULL section.

        :raises StreamError: cut, or other than described; with ``search``, nothing ends it
        """
        start = self.cursor.pos
        identity = self.identity()
        section_id, idstr, instance_id, version_id = identity
        desc = self._desc(start, section_id, (idstr, instance_id), version_id)
        return self._section(wire.SectionType.FULL, start, identity, self._size(desc, section_id, idstr), desc)

    def opaque(self, kind: int, start: int, identity: Identity) -> Section:
        """A part of a section that nothing describes; its header is read.

        :param start: offset of the header
        :raises StreamError: cut, or nothing ends it
        """
        section_id, idstr, _, _ = identity
        return self._section(kind, start, identity, self._opaque_size(section_id, idstr), None)

    def _section(self, kind: int, start: int, identity: Identity, size: int, desc: DeviceDesc | None) -> Section:
        section_id, idstr, instance_id, version_id = identity
        header_size = self.cursor.pos - start
        return Section(
            type=kind,
            section_id=section_id,
            idstr=idstr,
            instance_id=instance_id,
            version_id=version_id,
            offset=start,
            header_size=header_size,
            payload=self.cursor.take(size, f"section {idstr!r}"),
            footer=self.footer(section_id),
            desc=desc,
        )

    def _opaque_size(self, section_id: int, idstr: str) -> int:
        """Bytes up to the footer, or up to what follows where this stream has none.

        :raises StreamError: neither is there
        """
        start = self.cursor.pos
        end = -1 if self._footers is False else self._next_footer(section_id)
        if end < 0 and (self._footers is False or (self._footers is None and self.bare)):
            end = self._next_header()
        if end < 0:
            footer = wire.SECTION_ID.pack(wire.FOOTER, section_id).hex(" ")
            left = f"{self.cursor.left} bytes that are left"
            raise StreamError(start, f"section {idstr!r} has no end: its footer, {footer}, is not in the {left}")
        return end - start

    def _desc(self, start: int, section_id: int, key: tuple[str, int], version_id: int) -> DeviceDesc | None:
        """What describes the section: the nth of a name where the name stands in the stream for the nth time."""
        idstr, instance_id = key
        known = () if self.vmdesc is None else self.vmdesc.named(*key)
        number, self._met[key] = self._met[key], self._met[key] + 1
        if known:
            turn = number % len(known)
            in_turn = (*known[turn:], *known[:turn])
            desc = next((d for d in in_turn if self._ends_at(self.cursor.pos + d.size_bytes, section_id)), in_turn[0])
            if desc.version in (None, version_id):
                return desc
        if self.search:
            return None
        if self.vmdesc is None:
            raise StreamError(
                start,
                f"the length of section {idstr!r} needs a vmdesc, and none ends where the stream does: "
                "it is cut, padded, or was made without one",
            )
        if not known:
            raise StreamError(start, f"section {idstr!r} instance {instance_id} is not in the vmdesc")
        raise StreamError(start, f"section {idstr!r} has version {version_id}, in the vmdesc {known[0].version}")

    def _size(self, desc: DeviceDesc | None, section_id: int, idstr: str) -> int:
        if desc is not None and (not self.search or self._ends_at(self.cursor.pos + desc.size_bytes, section_id)):
            return desc.size_bytes
        return self._opaque_size(section_id, idstr)

    def _ends_at(self, at: int, section_id: int) -> bool:
        """Whether a payload can end there."""
        footer, view = wire.SECTION_ID.pack(wire.FOOTER, section_id), self.cursor.view
        if self._footers is not False and view[at : at + len(footer)] == footer:
            at += len(footer)
            return at < self.cursor.end and view[at] in _BEHIND_FOOTER
        return not self._footers and _begins_part(view, at)

    def _next_footer(self, section_id: int) -> int:
        view, pattern = self.cursor.view, wire.SECTION_ID.pack(wire.FOOTER, section_id)
        at = find(view, pattern, self.cursor.pos)
        while at >= 0 and at + len(pattern) < self.cursor.end:
            if view[at + len(pattern)] in _BEHIND_FOOTER:
                return at
            at = find(view, pattern, at + 1)
        return -1

    def _next_header(self) -> int:
        """Where the next header of a section stands, else the EOF that ends the buffer; -1 where neither does."""
        view = self.cursor.view
        match = _HEADER.search(view, self.cursor.pos)
        while match:
            if _is_header(view, match.start()):
                return match.start()
            match = _HEADER.search(view, match.start() + 1)
        last = self.cursor.end - 1
        return last if last >= self.cursor.pos and view[last] == wire.SectionType.EOF else -1


def _begins_part(view: memoryview, at: int) -> bool:
    """Whether a part of a stream begins there, or the stream ends: a payload without a footer has no other end."""
    head = bytes(view[at : at + 3])
    if head[:1] == bytes([wire.SectionType.EOF]):
        return at + 1 == len(view)
    if head[:1] in (bytes([wire.SectionType.START]), bytes([wire.SectionType.FULL])):
        return _is_header(view, at)
    # PART, END and COMMAND: the number of a section, or of a command, whose first byte is 0
    return len(head) == 3 and head[0] in _BEHIND_FOOTER and head[1] == 0


def _is_header(view: memoryview, at: int) -> bool:
    """Whether a printable idstr and a small version follow."""
    start = at + wire.SECTION_ID.size + 1
    stop = start + view[start - 1]
    if stop + wire.INSTANCE_VERSION.size > len(view) or not _IDSTR.fullmatch(view[start:stop]):
        return False
    _, version_id = wire.INSTANCE_VERSION.unpack_from(view, stop)
    return int(version_id) <= _MAX_VERSION
