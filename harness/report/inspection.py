# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``postload inspect`` shows: sections and fields of a stream or of a state pack."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adopt.saved import SavedState
from harness.devices.device import section_label
from harness.devices.phases import Unreached
from harness.errors import StreamError, UsageError
from harness.guests.origin import VmOrigin
from harness.packs.pack import MANIFEST, PhaseSize, StatePack
from harness.packs.packfile import GUEST_PART, SUFFIX, is_packfile
from harness.report.adopted import print_origin
from harness.report.containers import container_text, open_state
from harness.report.sentences import unreached_text
from harness.report.text import number, plural
from harness.stream.bitmaps import IDSTR, bitmaps_of
from harness.stream.fields import Field
from harness.stream.model import Command, RamSection, Section, Stream
from harness.stream.virtio import field_features
from harness.stream.vmdesc import VmDesc, decode
from harness.stream.wire import CommandType, SectionType
from harness.text import printable

SCHEMA = "postload.inspect/1"


def inspect_path(
    path: Path, *, section: str | None, phase: str | None, like: Path | None = None, snapshot: str | None = None
) -> dict[str, Any]:
    """The document for a stream file or a state pack.

    :param section: keep only sections whose idstr holds this text; fields are shown for these
    :param like: a stream or a state pack of the same machine, whose vmdesc a stream without its own is read by
    :param snapshot: name or id of an internal snapshot, where a qcow2 image has several
    :raises UsageError: no such file, phase or section
    :raises StreamError: the file is no stream, or is damaged
    :raises PackError: the pack is damaged
    """
    if _is_pack(path):
        with _pack(path) as pack:
            return _filtered(describe_pack(pack, phase=phase), section, path)
    vmdesc = _vmdesc_of(like) if like is not None else None
    with open_state(path, Path(tempfile.gettempdir()), snapshot=snapshot, vmdesc=vmdesc) as state:
        document = {"schema": SCHEMA, "path": str(path), **_stream_head(state, like)}
        document |= {"commands": _commands(state.stream), "sections": _parts(state.stream)}
        del state
    return _filtered(document, section, path)


def _is_pack(path: Path) -> bool:
    return path.is_dir() or path.name == MANIFEST or path.suffix == SUFFIX or is_packfile(path)


def _pack(path: Path) -> StatePack:
    return StatePack(path.parent if path.name == MANIFEST else path)


def _vmdesc_of(path: Path) -> VmDesc:
    """The description that a stream or a pack has of its sections."""
    if _is_pack(path):
        with _pack(path) as pack:
            return pack.recordings[pack.phases[-1]].vmdesc
    with open_state(path, Path(tempfile.gettempdir())) as state:
        vmdesc = state.vmdesc
        del state
    if vmdesc is None:
        raise UsageError(f"--like {path}: expected a stream with a vmdesc, or a state pack; it has none either")
    return vmdesc


def describe_pack(pack: StatePack, *, phase: str | None = None) -> dict[str, Any]:
    """A pack as a document: its machine, its phases, and the sections of one phase (the last by default)."""
    if phase is not None and phase not in pack.recordings:
        raise UsageError(f"{pack.source} has no phase {phase!r}: expected one of {', '.join(pack.phases)}")
    recording = pack.recordings[phase or pack.phases[-1]]
    manifest = pack.manifest
    return {
        "schema": SCHEMA,
        "path": str(pack.source),
        "machine": manifest.machine,
        "qemu": manifest.qemu,
        "phases": pack.phases,
        "phase": recording.name,
        "devices": {device.name: device.sections for device in manifest.devices},
        "unreached": {
            device.name: [asdict(lack) for lack in device.unreached] for device in manifest.devices if device.unreached
        },
        "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "packed_bytes": pack.source.stat().st_size if pack.source.is_file() else None,
        "guest_bytes": sum(manifest.files[name].size_bytes for name in manifest.guest_files()),
        "guest_packed_bytes": manifest.packed.get(GUEST_PART),
        "sizes": [_size(size) for size in pack.sizes],
        "roms": {name: rom.model_dump() for name, rom in manifest.roms.items()},
        "host": manifest.host,
        "origin": None if manifest.origin is None else manifest.origin.model_dump(mode="json"),
        "sections": [_device(s) for s in recording.sections],
    }


def print_document(document: dict[str, Any], console: Console) -> None:
    """The document for a person: a line for each section, and the fields where there are few sections."""
    keys = ("container", "snapshot", "machine", "capabilities", "phases", "phase", "size_bytes", "packed_bytes")
    for key in keys:
        if document.get(key):
            console.print(f"{key}: {_shown(_head_text(document[key]))}")
    for name, lacks in document.get("unreached", {}).items():
        for lack in lacks:
            console.print(f"{name}: {_shown(unreached_text(Unreached(**lack)))}", soft_wrap=True)
    if document.get("origin"):
        print_origin(VmOrigin.model_validate(document["origin"]), console)
    for remark in document.get("remarks", ()):
        console.print(f"note: {_shown(remark)}", soft_wrap=True)
    if "sizes" in document and not document.get("filtered"):
        _print_sizes(document, console)
    commands = [] if document.get("filtered") else document.get("commands", [])
    for part in sorted([*document["sections"], *commands], key=lambda part: part["offset"]):
        console.print(
            f"{part['offset']:>10}  {number(part['size']):>9} bytes  {part['type']:<7} {_shown(_line(part))}",
            soft_wrap=True,
        )
        if document.get("filtered"):
            _print_fields(part["fields"], console, 1)


def _head_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return number(value) if isinstance(value, int) else str(value)


def _line(part: dict[str, Any]) -> str:
    """What stands behind the size and the type of a part of the stream."""
    if part["type"] == "command":
        return f"{part['name']} {part['data']}".rstrip()
    label = f"{section_label(part['idstr'], part['instance_id'])} v{part['version_id']}"
    more = f", {plural(part['pages'], 'page')}" if "pages" in part else ""
    more += "".join(f", {bitmap['name']} of {bitmap['node']}" for bitmap in part.get("bitmaps", ()))
    return f"{label} in {plural(part['parts'], 'part')}{more}" if part.get("parts", 1) > 1 else f"{label}{more}"


def _print_sizes(document: dict[str, Any], console: Console) -> None:
    """What each phase adds, in bytes: its stream when it was recorded, in the folder, in the file."""
    table = Table(box=None, pad_edge=False)
    table.add_column("adds")
    for column in ("recorded", "in a folder", "in the file"):
        table.add_column(column, justify="right")
    rows = [("guest", None, document["guest_bytes"], document["guest_packed_bytes"])]
    rows += [(s["phase"], s["recorded_bytes"], s["folder_bytes"], s["packed_bytes"]) for s in document["sizes"]]
    for name, *sizes in rows:
        table.add_row(_shown(name), *("-" if size is None else f"{size:,}" for size in sizes))
    console.print(table)


def _size(size: PhaseSize) -> dict[str, Any]:
    return {
        "phase": size.name,
        "recorded_bytes": size.recorded_bytes,
        "folder_bytes": size.folder_bytes,
        "packed_bytes": size.packed_bytes,
    }


def _print_fields(fields: list[dict[str, Any]], console: Console, depth: int) -> None:
    for field in fields:
        value = field["value"]
        shown = "" if value is None else f" = {value} ({value:#x})" if isinstance(value, int) else f" = {_cut(value)}"
        names = "".join(f" {name.split('_F_', 1)[-1]}" for name in field.get("features", ()))
        line = f"{'  ' * depth}{_last_part(field)}: {field['type']}{shown}{names}"
        console.print(_shown(line), soft_wrap=True)
        _print_fields(field["fields"], console, depth + 1)


def _shown(text: str) -> str:
    """Text of the file for a line of the console: no markup, and what controls a terminal spelled out."""
    return escape(printable(text).replace("\n", "\\x0a"))


def _last_part(field: dict[str, Any]) -> str:
    """The field's name, with its index when it is an element of an array."""
    at = field["path"].rfind(field["name"])
    return str(field["name"] if at < 0 else field["path"][at:])


def _cut(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:64]}... ({len(text) // 2} bytes)"


def _stream_head(state: SavedState, like: Path | None) -> dict[str, Any]:
    stream = state.stream
    return {
        "container": container_text(state.container) if state.container else None,
        "snapshot": state.snapshot or None,
        "machine": stream.machine,
        "capabilities": list(stream.capabilities),
        "size_bytes": stream.size,
        "own_vmdesc": stream.own_vmdesc,
        "tail_bytes": len(stream.tail),
        "remarks": list(_remarks(stream, like)),
    }


def _remarks(stream: Stream, like: Path | None) -> Iterator[str]:
    """What is missing from the stream, or stands in it besides."""
    if not stream.own_vmdesc:
        ends = "footers" if all(section.footer for section in stream.devices) else "the headers of the next ones"
        names = f"their fields are named as those of {like}, where these fit" if like else "their fields have no names"
        yield (
            f"the stream has no vmdesc (suppress-vmdesc, xen-save-devices-state, or a machine type before 2.4): "
            f"sections were found by {ends}, and {names}"
        )
    if not stream.machine:
        yield "the stream does not say its machine type: those before 2.4 and xen-save-devices-state do not"
    if stream.tail:
        zeros = ", all zeros" if not any(stream.tail) else ""
        yield f"{plural(len(stream.tail), 'byte')} behind the end of the stream are no part of it{zeros}"


def _commands(stream: Stream) -> list[dict[str, Any]]:
    return [
        {
            "type": "command",
            "offset": part.offset,
            "size": part.size,
            "command": part.command,
            "name": CommandType(part.command).name,
            "data": part.data.hex(),
        }
        for part in stream.parts
        if isinstance(part, Command)
    ]


def _parts(stream: Stream) -> list[dict[str, Any]]:
    """An entry for each FULL section, and one for all parts of an iterable one: dirty bitmaps have 30,000."""
    entries: list[dict[str, Any]] = []
    iterables: dict[int, dict[str, Any]] = {}
    for part in stream.parts:
        if isinstance(part, Command):
            continue
        entry = _ram(part) if isinstance(part, RamSection) else _device(part)
        if part.type == SectionType.FULL:
            entries.append(entry)
        elif part.section_id in iterables:
            _add(iterables[part.section_id], entry)
        else:
            iterables[part.section_id] = {**entry, "type": "parts", "parts": 1, **_bitmaps(part)}
            entries.append(iterables[part.section_id])
    return entries


def _bitmaps(part: Section | RamSection) -> dict[str, Any]:
    if isinstance(part, RamSection) or part.idstr != IDSTR:
        return {}
    return {"bitmaps": [asdict(bitmap) for bitmap in bitmaps_of(part.payload)]}


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    whole["parts"] += 1
    whole["size"] += part["size"]
    if "pages" in part:
        whole["pages"] += part["pages"]


def _ram(part: RamSection) -> dict[str, Any]:
    return {
        **_head(part),
        "pages": len(part),
        "fields": [],
    }


def _head(part: Section | RamSection) -> dict[str, Any]:
    return {
        "idstr": part.idstr,
        "instance_id": part.instance_id,
        "version_id": part.version_id,
        "type": SectionType(part.type).name.lower(),
        "offset": part.offset,
        "size": part.size,
    }


def _device(section: Section) -> dict[str, Any]:
    desc, fields = section.desc, []
    # a description that is not of this stream need not fit
    with contextlib.suppress(StreamError):
        fields = decode(section.payload, desc) if desc else []
    return {**_head(section), "fields": _fields(fields, desc.vmsd_name if desc else "")}


def _fields(fields: Iterable[Field], kind: str) -> list[dict[str, Any]]:
    """The fields of a device of this vmsd; with the names of the features where a field holds feature bits."""
    return [
        {
            "name": field.name,
            "path": field.path,
            "offset": field.offset,
            "size": field.size,
            "type": field.type,
            "value": field.value,
            **({"features": names} if (names := _features(field, kind)) else {}),
            "fields": _fields(field.children, kind),
        }
        for field in fields
    ]


def _features(field: Field, kind: str) -> list[str]:
    return field_features(kind, field) if kind.startswith("virtio-") else []


def _filtered(document: dict[str, Any], section: str | None, path: Path) -> dict[str, Any]:
    if section is None:
        return document
    chosen = [entry for entry in document["sections"] if section in entry["idstr"]]
    if not chosen:
        names = ", ".join(dict.fromkeys(entry["idstr"] for entry in document["sections"]))
        raise UsageError(f"{path}: no section {section!r}; there are {names}")
    return {**document, "filtered": section, "sections": chosen}
