# SPDX-License-Identifier: GPL-2.0-or-later
"""The vmdesc, QEMU's own description of the device sections of a stream, and the bytes it names.

Written as JSON by ``migration/vmstate.c`` (``vmstate_save_state_v``, ``vmsd_desc_field_start``) and
``migration/savevm.c`` (``vmstate_save``, ``vmstate_save_old_style``)::

    {"page_size": 4096, "configuration": {...}, "devices": [
        {"name": idstr, "instance_id": n, "vmsd_name": s, "version": n,
         "fields": [...], "subsections": [...]},
        {"name": idstr, "instance_id": n, "size": n,
         "fields": [{"name": "data", "size": n, "type": "buffer"}]}]}

A field has ``name``, ``type`` and ``size``, the bytes of one element on the wire. ``array_len`` stands for
that many alike elements in a row, ``index`` marks one element of an array whose elements may differ. A
``struct`` holds its fields and subsections in ``"struct"``; ``vstruct`` and ``tmp`` hold them in the field
itself. ``qtailq``, ``qlist`` and ``gtree`` repeat the keys of one object and put markers between their
elements: they stay raw.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from harness.errors import StreamError
from harness.stream import wire
from harness.stream.fields import Field, field_value, is_number
from harness.stream.virtio import decode_virtio

#: Names the inside of a payload that QEMU's code writes by hand, given the section's vmsd name.
Codec = Callable[[bytes, str], list[Field]]
#: By name: a recipe may ask for one of them, and ``virtio`` is what QEMU calls the field of each virtio device.
CODECS: dict[str, Codec] = {"virtio": decode_virtio}
_MAX_DEPTH = 64
_SUBSECTION_FIXED_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDesc:
    """One field: ``size_bytes`` is one element's; ``struct`` is None where its inside is not described."""

    name: str
    type: str
    size_bytes: int
    array_len: int | None
    index: int | None
    struct: StructDesc | None

    @property
    def wire_bytes(self) -> int:
        return self.size_bytes * (1 if self.array_len is None else self.array_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructDesc:
    """Fields and subsections of a vmsd. ``size_bytes`` leaves out a subsection's own header."""

    vmsd_name: str
    version: int | None
    fields: tuple[FieldDesc, ...]
    subsections: tuple[StructDesc, ...]
    size_bytes: int

    @property
    def as_subsection_bytes(self) -> int:
        return _SUBSECTION_FIXED_BYTES + len(self.vmsd_name.encode()) + self.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDesc:
    """One FULL section. ``vmsd_name`` is "" and ``version`` None for an old-style section without vmsd.

    :param decoder: what names the inside of its opaque field, where the device's recipe says
    """

    name: str
    instance_id: int
    vmsd_name: str
    version: int | None
    fields: tuple[FieldDesc, ...]
    subsections: tuple[StructDesc, ...]
    size_bytes: int
    decoder: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return (self.name, self.instance_id)

    @property
    def open_coded(self) -> bool:
        """True when the payload is one opaque field: an old-style section's ``data``, or ``virtio``."""
        if len(self.fields) != 1 or self.subsections:
            return False
        field = self.fields[0]
        return field.struct is None and field.array_len is None and not is_number(field.type, field.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDesc:
    """A whole vmdesc; ``raw`` is its section as it stands in the stream: u8 6, u32 length, JSON.

    ``by_key`` has the descriptions of one name and instance in the order in which their sections were written.
    """

    raw: bytes
    page_size: int
    devices: list[DeviceDesc]
    by_key: dict[tuple[str, int], tuple[DeviceDesc, ...]]

    @classmethod
    def parse(cls, raw: bytes, *, offset: int = 0) -> VmDesc:
        """Read a vmdesc section.

        :param raw: u8 6, u32 length, JSON, and nothing else
        :param offset: where ``raw`` stands in its stream, for messages
        :raises StreamError: it is cut, padded, no JSON, or not a vmdesc
        """
        if len(raw) < wire.VMDESC.size:
            raise StreamError(offset, "vmdesc: cut")
        kind, length = wire.VMDESC.unpack_from(raw)
        if kind != wire.SectionType.VMDESCRIPTION or length != len(raw) - wire.VMDESC.size:
            raise StreamError(offset, f"vmdesc: type {kind} and length {length} do not fit {len(raw)} bytes")
        parser = _Parser(offset)
        try:
            page_size, devices = parser.document(json.loads(raw[wire.VMDESC.size :]))
        except (ValueError, RecursionError) as error:
            raise StreamError(offset + wire.VMDESC.size, f"vmdesc: no JSON: {error}") from error
        by_key: dict[tuple[str, int], tuple[DeviceDesc, ...]] = {}
        for device in devices:
            by_key[device.key] = (*by_key.get(device.key, ()), device)
        return cls(raw=raw, page_size=page_size, devices=devices, by_key=by_key)

    @classmethod
    def from_json(cls, text: bytes) -> VmDesc:
        """The same from the JSON alone."""
        return cls.parse(wire.VMDESC.pack(wire.SectionType.VMDESCRIPTION, len(text)) + text)

    @property
    def text(self) -> bytes:
        """The JSON alone."""
        return self.raw[wire.VMDESC.size :]

    def only(self, keys: Collection[tuple[str, int]]) -> VmDesc:
        """The description of the sections of some names and instances alone."""
        document = json.loads(self.text)
        document["devices"] = [d for d in document["devices"] if (d["name"], d["instance_id"]) in keys]
        return VmDesc.from_json(json.dumps(document, separators=(",", ":")).encode())

    def named(self, idstr: str, instance_id: int) -> tuple[DeviceDesc, ...]:
        """What describes the sections of that name: nothing, one, or one for each that has it."""
        return self.by_key.get((idstr, instance_id), ())


class _Parser:
    """Turns untrusted JSON into descriptions; whatever is not as QEMU writes it is a StreamError."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def error(self, message: str) -> StreamError:
        return StreamError(self.offset, f"vmdesc: {message}")

    def integer(self, source: dict[str, Any], key: str, where: str) -> int:
        value = source.get(key)
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise self.error(f"{where}: {key!r} is {value!r:.40}, not a count")
        return value

    def optional(self, source: dict[str, Any], key: str, where: str) -> int | None:
        return self.integer(source, key, where) if key in source else None

    def string(self, source: dict[str, Any], key: str, where: str) -> str:
        value = source.get(key)
        if not isinstance(value, str) or not value.isascii():
            raise self.error(f"{where}: {key!r} is {value!r:.40}, not a name")
        return value

    def objects(self, source: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
        value = source.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"{where}: {key!r} is not a list of objects")
        return value

    def document(self, document: Any) -> tuple[int, list[DeviceDesc]]:
        if not isinstance(document, dict) or "devices" not in document:
            raise self.error("no list of devices")
        page_size = self.integer(document, "page_size", "vmdesc") if "page_size" in document else wire.PAGE_SIZE
        if not 1024 <= page_size <= 1 << 20 or page_size & (page_size - 1):
            raise self.error(f"page size {page_size}")
        return page_size, [self.device(item) for item in self.objects(document, "devices", "vmdesc")]

    def device(self, source: dict[str, Any]) -> DeviceDesc:
        name = self.string(source, "name", "device")
        inside = self.struct(source, name, 0)
        size = source.get("size", inside.size_bytes)
        if size != inside.size_bytes:
            raise self.error(f"{name}: size {size!r:.40}, its fields have {inside.size_bytes}")
        return DeviceDesc(
            name=name,
            instance_id=self.integer(source, "instance_id", name),
            vmsd_name=inside.vmsd_name,
            version=inside.version,
            fields=inside.fields,
            subsections=inside.subsections,
            size_bytes=inside.size_bytes,
        )

    def struct(self, source: dict[str, Any], where: str, depth: int) -> StructDesc:
        if depth > _MAX_DEPTH:
            raise self.error(f"{where}: nested deeper than {_MAX_DEPTH}")
        fields = tuple(self.field(item, where, depth) for item in self.objects(source, "fields", where))
        subsections = tuple(self.subsection(s, where, depth) for s in self.objects(source, "subsections", where))
        size = sum(f.wire_bytes for f in fields) + sum(s.as_subsection_bytes for s in subsections)
        return StructDesc(
            vmsd_name=self.string(source, "vmsd_name", where) if "vmsd_name" in source else "",
            version=self.optional(source, "version", where),
            fields=fields,
            subsections=subsections,
            size_bytes=size,
        )

    def subsection(self, source: dict[str, Any], where: str, depth: int) -> StructDesc:
        inside = self.struct(source, where, depth + 1)
        if not 0 < len(inside.vmsd_name) < 256 or inside.version is None:
            raise self.error(f"{where}: a subsection without name or version")
        return inside

    def field(self, source: dict[str, Any], where: str, depth: int) -> FieldDesc:
        name = self.string(source, "name", where)
        where = f"{where}/{name}" if len(where) < 200 else where
        size = self.integer(source, "size", where)
        return FieldDesc(
            name=name,
            type=self.string(source, "type", where),
            size_bytes=size,
            array_len=self.optional(source, "array_len", where),
            index=self.optional(source, "index", where),
            struct=self.inside(source, where, size, depth),
        )

    def inside(self, source: dict[str, Any], where: str, size_bytes: int, depth: int) -> StructDesc | None:
        """The description of a field's inside, where it accounts for all of the field's bytes."""
        nested = source.get("struct", source)
        if not isinstance(nested, dict):
            raise self.error(f"{where}: 'struct' is not an object")
        if "fields" not in nested:
            return None
        inside = self.struct(nested, where, depth + 1)
        return inside if inside.size_bytes == size_bytes else None


def decode(payload: bytes | memoryview, desc: DeviceDesc) -> list[Field]:
    """Name the bytes of a device section's payload.

    What is one opaque field to the vmdesc is named by a codec where that understands it, whatever size the vmdesc has
    for it: by the one of the device, else by the one that is called as the field.

    :return: fields in wire order; bytes behind the described ones are one field of type ``raw``
    :raises StreamError: the payload is shorter than described, or a subsection is not where the vmdesc has
        it; the offset counts from the start of the payload
    """
    if desc.open_coded and (codec := CODECS.get(desc.decoder or desc.fields[0].type)):
        with contextlib.suppress(StreamError):
            return codec(bytes(payload), desc.vmsd_name)
    decoder = _Decoder(bytes(payload))
    fields = decoder.fields(desc.fields, "") + decoder.subsections(desc.subsections, "")
    if decoder.pos < len(decoder.payload):
        fields.append(decoder.leaf("raw", "raw", "raw", len(decoder.payload) - decoder.pos))
    return fields


class _Decoder:
    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.pos = 0

    def leaf(self, name: str, path: str, kind: str, size_bytes: int) -> Field:
        start = self.pos
        if size_bytes > len(self.payload) - start:
            raise StreamError(start, f"field {path}: {size_bytes} bytes wanted, {len(self.payload) - start} left")
        self.pos += size_bytes
        value = field_value(kind, self.payload[start : self.pos])
        return Field(name=name, path=path, offset=start, size=size_bytes, type=kind, value=value)

    def parent(self, name: str, path: str, kind: str, start: int, children: list[Field]) -> Field:
        size = self.pos - start
        return Field(name=name, path=path, offset=start, size=size, type=kind, value=None, children=tuple(children))

    def fields(self, descs: tuple[FieldDesc, ...], prefix: str) -> list[Field]:
        """All fields of a vmsd; the elements of one array become the children of one field."""
        found: list[Field] = []
        at = 0
        while at < len(descs):
            stop = at + 1
            if _is_array(descs[at]):
                while stop < len(descs) and descs[stop].name == descs[at].name and _is_array(descs[stop]):
                    stop += 1
                found.append(self.array(descs[at:stop], prefix))
            else:
                found.append(self.element(descs[at], prefix + descs[at].name))
            at = stop
        return found

    def array(self, descs: tuple[FieldDesc, ...], prefix: str) -> Field:
        name, start, number = descs[0].name, self.pos, 0
        elements: list[Field] = []
        for desc in descs:
            if desc.index is not None:
                number = desc.index
            # elements without bytes are not worth a list of their own, however many are claimed
            count = desc.array_len if desc.array_len is not None and desc.size_bytes else 1
            for _ in range(count):
                elements.append(self.element(desc, f"{prefix}{name}[{number}]"))
                number += 1
        return self.parent(name, prefix + name, "array", start, elements)

    def element(self, desc: FieldDesc, path: str) -> Field:
        if desc.struct is None:
            return self.leaf(desc.name, path, desc.type, desc.size_bytes)
        start = self.pos
        children = self.fields(desc.struct.fields, path + ".")
        children += self.subsections(desc.struct.subsections, path + ".")
        return self.parent(desc.name, path, desc.type, start, children)

    def subsections(self, descs: tuple[StructDesc, ...], prefix: str) -> list[Field]:
        return [self.subsection(desc, prefix + desc.vmsd_name) for desc in descs]

    def subsection(self, desc: StructDesc, path: str) -> Field:
        start, name = self.pos, desc.vmsd_name.encode()
        header = (
            bytes([wire.SectionType.SUBSECTION, len(name)]) + name + wire.U32.pack((desc.version or 0) & 0xFFFFFFFF)
        )
        if not self.payload.startswith(header, start):
            raise StreamError(start, f"subsection {path} version {desc.version} is not here")
        self.pos += len(header)
        children = self.fields(desc.fields, path + "/")
        children += self.subsections(desc.subsections, path + "/")
        return self.parent(desc.vmsd_name, path, "subsection", start, children)


def _is_array(desc: FieldDesc) -> bool:
    return desc.array_len is not None or desc.index is not None
