# SPDX-License-Identifier: GPL-2.0-or-later
"""Which field of which section a failed load fell over, with its value on both sides.

Three sources speak: what QEMU printed, the recorded section as its own vmdesc describes it, and the state that a QEMU
of the loading build saves of the same machine before it has run. That last one has its own description and its own
values: what the loading side would have.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.devices.device import section_label
from harness.errors import StreamError
from harness.guests.machine import Machine, firmware_sink
from harness.packs.pack import Recording, StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm, migrate_to_socket
from harness.qualify.explained import (
    CONFIGURATION,
    RAM,
    STREAM,
    Differs,
    FieldEvidence,
    SetAlike,
    StructureDifference,
)
from harness.qualify.features import features_of
from harness.state.transforms import label_of
from harness.stream.fields import Field, find
from harness.stream.model import RamBlock, Section
from harness.stream.reader import open_stream
from harness.stream.virtio import decode_virtio
from harness.stream.vmdesc import DeviceDesc, FieldDesc, StructDesc, decode

SAVE_TIMEOUT_S = 60.0
_FEATURES = "guest_features"
_SHOWN_CHARS = 40
#: Numbers of the registers in the section of an ARM CPU (``target/arm/machine.c``), u64 big-endian each; it refuses to
#: load one that it does not know (``cpu_post_load``).
_REGISTERS = "cpreg_vmstate_indexes"
_SHOWN_REGISTERS = 4

_DEVICE = re.compile(r"error while loading state for instance 0x([0-9a-f]+) of device '([^']+)'")
_FAILED = (
    re.compile(r"Failed to load ([^:\s]+):(\S+)"),
    re.compile(r"Failed to load element of type (.+?) for ([^\s;:]+)"),
    re.compile(r"Input validation failed: ([^/\s]+)/(\S+)"),
    re.compile(r"VM subsection '([^']+)' in '([^']+)' does not exist"),
)
_PROGRAM = re.compile(r"^\S*qemu\S*: ")
#: 11.1 says all in one line, and 10.0 only the first half of it.
_OVER = re.compile(r"^load of migration failed: [^:]+: ")
_NOISE = re.compile(
    r"\bwarning: |^load of migration failed|^Failed to load device state|^Section footer error|^rom: file "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadError:
    """One thing that a log complains of.

    :param section: label of the section, or None when the log does not name it
    :param field: as QEMU names it, or a path into the decoded section; None when the log names none
    :param said: QEMU's own words
    :param recorded: the value in the stream, where the words have it
    :param loading: the value on the loading side, where the words have it
    :param setting: what has to be set alike, where that is known
    """

    section: str | None
    said: str
    field: str | None = None
    recorded: str | None = None
    loading: str | None = None
    setting: SetAlike | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phrase:
    """A text of QEMU with values in it.

    :param path: what it is about; ``{name}`` stands for a group
    :param section: label of the section; ``{name}`` stands for a group, "" where the text does not tell
    :param setting: what has to be set alike
    :param hexadecimal: the values are, though nothing in front of them says so
    """

    pattern: re.Pattern[str]
    path: str
    section: str = ""
    setting: SetAlike | None = None
    hexadecimal: bool = False

    def values(self, groups: Mapping[str, str]) -> dict[str, str | None]:
        """The two values, as far as the text has them."""
        found = {key: groups.get(key) for key in ("recorded", "loading")}
        return {key: str(int(text, 16)) if text and self.hexadecimal else text for key, text in found.items()}


#: ``migration/vmstate.c``, ``migration/savevm.c``, ``migration/ram.c``, ``hw/virtio/virtio.c``, ``hw/pci/pci.c``;
#: groups ``recorded`` and ``loading`` are the two values.
_PHRASES = (
    _Phrase(
        pattern=re.compile(r"VQ (?P<n>\d+) vring\.num (?P<recorded>\d+) exceeds allocated max (?P<loading>\d+)"),
        path="vq[{n}].vring.num",
        setting=SetAlike.QUEUE_SIZE,
    ),
    _Phrase(pattern=re.compile(r"VQ (?P<n>\d+) (?:size|address) "), path="vq[{n}].last_avail_idx"),
    _Phrase(
        pattern=re.compile(r"Features (?P<recorded>0x[0-9a-f]+) unsupported\. Allowed features: (?P<loading>0x\w+)"),
        path=_FEATURES,
    ),
    _Phrase(
        pattern=re.compile(r"Bad config data: i=(?P<at>0x[0-9a-f]+) read: (?P<recorded>\w+) device: (?P<loading>\w+)"),
        path="PCI config byte {at}",
    ),
    _Phrase(
        pattern=re.compile(
            r"(?:Size|Length) mismatch: (?P<block>\S+): (?P<recorded>0x\w+)(?: in)? != (?P<loading>0x[0-9a-f]+)"
        ),
        path="{block}",
        section=RAM,
        setting=SetAlike.MEMORY_SIZE,
    ),
    _Phrase(
        pattern=re.compile(r'Unknown ramblock "(?P<block>[^"]+)"'),
        path="{block}",
        section=RAM,
        setting=SetAlike.BLOCK_OWNER,
    ),
    _Phrase(
        pattern=re.compile(r"unsupported version (?P<recorded>\d+) for '(?P<idstr>[^']+)' v(?P<loading>\d+)"),
        path="version_id",
        section="{idstr}",
    ),
    _Phrase(
        pattern=re.compile(
            r"(?P<vmsd>\S+): incoming version_id (?P<recorded>\d+) is too (?:new|old) for local (?:minimum )?"
            r"version_id +(?P<loading>\d+)"
        ),
        path="{vmsd}:version_id",
    ),
    _Phrase(
        pattern=re.compile(r"Machine type received is '(?P<recorded>[^']+)' and local is '(?P<loading>[^']+)'"),
        path="machine",
        section=CONFIGURATION,
        setting=SetAlike.MACHINE_TYPE,
    ),
    # get_int32_equal and the like (migration/vmstate-types.c) print their own value first
    _Phrase(pattern=re.compile(r"^(?P<loading>[0-9a-f]+) != (?P<recorded>[0-9a-f]+)$"), path="", hexadecimal=True),
)
_SECTION_ONLY = (
    re.compile(r"Unknown (?:savevm )?section or instance '(?P<idstr>[^']+)' (?P<instance>\d+)"),
    re.compile(r"Missing section footer for (?P<idstr>\S+)"),
    re.compile(r"Mismatched section id in footer for (?P<idstr>\S+)"),
    re.compile(r"error while loading state section id \d+\((?P<idstr>[^)]+)\)"),
)
_STREAM_ONLY = re.compile(r"Expected vmdescription section|Unknown savevm section type|Not a migration stream")


def parse_errors(log: str) -> list[LoadError]:
    """What a log complains of, in its order. Lines up to the one that names the device belong to that device."""
    found: list[LoadError] = []
    open_: list[LoadError] = []
    chain: list[str] = []
    for line in log.splitlines():
        text = _OVER.sub("", _PROGRAM.sub("", line.strip()))
        device = _DEVICE.search(text)
        chain += [" ".join(m.groups()) if "element" in m[0] else ":".join(m.groups()) for m in _failed(text)]
        if device is None:
            error = _complaint(text)
            if error is not None:
                (open_ if error.section is None else found).append(error)
            continue
        label = section_label(device[2], int(device[1], 16))
        if open_ or not (found and found[-1].section == label):
            found += _of_device(label, open_, chain, text)
        open_, chain = [], []
    return found + open_


def _failed(text: str) -> Iterator[re.Match[str]]:
    for pattern in _FAILED:
        yield from pattern.finditer(text)


def _of_device(label: str, told: Sequence[LoadError], chain: Sequence[str], text: str) -> list[LoadError]:
    """What was told before the device was named; innermost field first in ``chain``."""
    inner = chain[0] if chain else None
    if not told:
        return [LoadError(section=label, field=inner, said=text)]
    return [replace(error, section=label, field=error.field or inner) for error in told]


def _complaint(text: str) -> LoadError | None:
    for phrase in _PHRASES:
        if match := phrase.pattern.search(text):
            groups = {key: value or "" for key, value in match.groupdict().items()}
            return LoadError(
                section=phrase.section.format_map(groups) or None,
                field=phrase.path.format_map(groups) or None,
                said=text,
                setting=phrase.setting,
                **phrase.values(groups),
            )
    for pattern in _SECTION_ONLY:
        if match := pattern.search(text):
            instance = match.groupdict().get("instance") or "0"
            return LoadError(section=section_label(match["idstr"], int(instance)), said=text)
    if not text or _NOISE.search(text) or (any(True for _ in _failed(text)) and "validation" not in text):
        return None
    section = STREAM if _STREAM_ONLY.search(text) else None
    return LoadError(section=section, said=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnState:
    """What a QEMU of the loading build saves of the same machine before it has run."""

    sections: Mapping[str, Section]
    blocks: tuple[RamBlock, ...]


def own_state(binary: QemuBinary, machine: Machine) -> OwnState:
    """Let a stopped machine save itself.

    :raises QemuError: it does not start, or does not save
    """
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        return _saved(vm, workdir / "own.stream")


def _saved(vm: Vm, sink: Path) -> OwnState:
    migrate_to_socket(vm, vm.workdir / "own.sock", sink, timeout_s=SAVE_TIMEOUT_S)
    with open_stream(sink) as stream:
        return OwnState(
            sections={label_of(s): replace(s, payload=bytes(s.payload)) for s in stream.devices},
            blocks=tuple(stream.ram_blocks),
        )


def explain_fields(log: str, pack: StatePack, phase: str, machine: Machine, binary: QemuBinary) -> list[FieldEvidence]:
    """Explain a failed load by the recording and by what the loading side saves itself.

    :param log: what the loading QEMU printed
    :raises QemuError: a QEMU of this machine does not start, or does not save
    """
    errors = parse_errors(log)
    if not errors:
        return []
    blocks = [RamBlock(name=b.name, size_bytes=b.size_bytes) for b in pack.manifest.blocks]
    return explain_errors(errors, pack.recordings[phase], blocks, own_state(binary, machine))


def explain_errors(
    errors: Iterable[LoadError], recording: Recording, blocks: Sequence[RamBlock], own: OwnState
) -> list[FieldEvidence]:
    """The same from what is known already; starts nothing."""
    recorded = {label_of(section): section for section in recording.sections}
    differences = [
        *compare_ram(blocks, own.blocks),
        *compare_sections(recorded, own.sections),
    ]
    return [_evidence(error, recorded, own, differences) for error in errors]


def _evidence(
    error: LoadError,
    recorded: Mapping[str, Section],
    own: OwnState,
    differences: Sequence[StructureDifference],
) -> FieldEvidence:
    label = error.section
    here = _value(recorded.get(label or ""), error.field)
    there = _value(own.sections.get(label or ""), error.field)
    told = tuple(
        d
        for d in differences
        if d.section == label or (label is None and d.differs in (Differs.SECTION, Differs.BLOCK))
    )
    unknown = sorted(_registers(recorded.get(label or "")) - _registers(own.sections.get(label or "")))
    if unknown and error.field is None:
        return FieldEvidence(
            section=label,
            field=_REGISTERS,
            said=error.said,
            recorded=", ".join(f"{number:#x}" for number in unknown[:_SHOWN_REGISTERS]),
            differences=told,
            setting=SetAlike.REGISTERS,
        )
    return FieldEvidence(
        section=label,
        field=error.field,
        said=error.said,
        recorded=error.recorded if here is None else here,
        loading=there if error.loading is None else error.loading,
        differences=told,
        setting=error.setting,
    )


def _value(section: Section | None, path: str | None) -> int | str | None:
    """A field's value; None when there is no such field, or it is no single value, or so many bytes that they say
    nothing."""
    if section is None or path is None:
        return None
    fields = decode_section(section)
    if path == _FEATURES and fields:
        return f"{features_of(fields):#x}"
    for name in dict.fromkeys((path, path.rpartition(":")[2], path.rpartition(" ")[2])):
        try:
            value = find(fields, name).value
        except KeyError:
            continue
        return None if isinstance(value, str) and len(value) > _SHOWN_CHARS else value
    return None


def _registers(section: Section | None) -> frozenset[int]:
    """Which registers the section of an ARM CPU has; none for any other section."""
    fields = [] if section is None else decode_section(section)
    found = next((field for field in fields if field.path == _REGISTERS), None)
    if section is None or found is None:
        return frozenset()
    raw = bytes(section.payload)[found.offset : found.offset + found.size]
    return frozenset(number for (number,) in struct.iter_unpack(">Q", raw[: len(raw) - len(raw) % 8]))


def decode_section(section: Section) -> list[Field]:
    """A section's fields, a virtio device's as well; none for one that is not described or not as described."""
    desc = section.desc
    if desc is None:
        return []
    try:
        if desc.open_coded and desc.vmsd_name.startswith("virtio-"):
            return decode_virtio(bytes(section.payload), desc.vmsd_name)
        return decode(section.payload, desc)
    except StreamError:
        return []


def compare_ram(recorded: Iterable[RamBlock], own: Iterable[RamBlock]) -> Iterator[StructureDifference]:
    """RAM blocks that are not there, or have another size."""
    ours = {block.name: block.size_bytes for block in recorded}
    theirs = {block.name: block.size_bytes for block in own}
    for name in dict.fromkeys((*ours, *theirs)):
        if ours.get(name) != theirs.get(name):
            yield _difference(RAM, name, Differs.BLOCK, ours.get(name), theirs.get(name))


def compare_sections(recorded: Mapping[str, Section], own: Mapping[str, Section]) -> Iterator[StructureDifference]:
    """How the sections of two streams are described, where that differs.

    A section, field or subsection that only one of them has need not be wrong: some are saved only when they are
    needed, and the loading side's machine has not run.
    """
    for label in dict.fromkeys((*recorded, *own)):
        mine, other = recorded.get(label), own.get(label)
        if mine is None or other is None:
            yield _difference(label, "", Differs.SECTION, None if mine is None else 0, None if other is None else 0)
            continue
        if mine.version_id != other.version_id:
            yield _difference(label, "", Differs.VERSION, mine.version_id, other.version_id)
        ours, theirs = mine.desc, other.desc
        if ours is not None and theirs is not None and not ours.open_coded:
            yield from _compare_structs(label, "", ours, theirs)


def _difference(
    label: str, path: str, differs: Differs, recorded: int | None, loading: int | None
) -> StructureDifference:
    return StructureDifference(section=label, path=path, differs=differs, recorded=recorded, loading=loading)


def _compare_structs(
    label: str, path: str, mine: DeviceDesc | StructDesc, other: DeviceDesc | StructDesc
) -> Iterator[StructureDifference]:
    ours, theirs = _named(mine.fields), _named(other.fields)
    for name in dict.fromkeys((*ours, *theirs)):
        yield from _compare_fields(label, f"{path}{name}", ours.get(name), theirs.get(name))
    inner, outer = ({s.vmsd_name: s for s in side.subsections} for side in (mine, other))
    for name in dict.fromkeys((*inner, *outer)):
        where = f"{path}{name}"
        if name not in outer:
            yield _difference(label, where, Differs.MISSING, 0, None)
        elif name not in inner:
            yield _difference(label, where, Differs.NEW, None, 0)
        else:
            versions = inner[name].version, outer[name].version
            if versions[0] != versions[1]:
                yield _difference(label, where, Differs.VERSION, *versions)
            yield from _compare_structs(label, f"{where}/", inner[name], outer[name])


def _named(fields: Iterable[FieldDesc]) -> dict[str, FieldDesc]:
    """By name; elements of one array and equal names are told by their number."""
    found: dict[str, FieldDesc] = {}
    for desc in fields:
        name = desc.name if desc.index is None else f"{desc.name}[{desc.index}]"
        while name in found:
            name += "'"
        found[name] = desc
    return found


def _compare_fields(
    label: str, path: str, mine: FieldDesc | None, other: FieldDesc | None
) -> Iterator[StructureDifference]:
    if mine is not None and other is not None and mine.struct is not None and other.struct is not None:
        yield from _compare_structs(label, f"{path}.", mine.struct, other.struct)
        return
    differs = Differs.MISSING if other is None else Differs.NEW if mine is None else Differs.SIZE
    sizes = [None if side is None else side.wire_bytes for side in (mine, other)]
    if sizes[0] != sizes[1]:
        yield _difference(label, path, differs, *sizes)
