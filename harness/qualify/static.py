# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU says of its own vmstates without any load: ``-dump-vmstate`` of two builds, compared.

The dump (``migration/savevm.c``, ``dump_vmstate_json_to_file``) has one entry for each device type with a vmstate::

    {"vmschkmachine": {"Name": machine},
     TYPE: {"Name": TYPE, "version_id": n, "minimum_version_id": n, "Description": DESC}}
    DESC: {"name": vmsd, "version_id": n, "minimum_version_id": n, "Fields": [FIELD], "Subsections": [DESC]}
    FIELD: {"field": name, "version_id": n, "field_exists": bool, "size": n, "Description": DESC}

``field_exists`` says that a function decides whether the field is there. ``size`` is of one element, and of a struct
it is the C struct's, which says nothing. A vmstate that is registered without a device type (CPU, timers, RAM) is not
in the dump, and of one that is open-coded (virtio) the dump has one field of no bytes.
The comparison is directed: the first dump's QEMU saves, the second one's loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from harness.packs.pack import Recording
from harness.qemu.vmstate import HEAD, Dump
from harness.state.transforms import label_of
from harness.stream.vmdesc import DeviceDesc, StructDesc

_UNUSED = "unused"


class StaticState(StrEnum):
    """What the static check says of one section."""

    CLEAN = "clean"
    ALARM = "alarm"
    NOT_DESCRIBED = "not-described"


class StaticKind(StrEnum):
    """How a type is described otherwise; ``type``: all of it is gone, ``too-new`` and ``too-old``: its version."""

    REMOVED = "removed"
    ADDED = "added"
    SIZE = "size"
    TOO_NEW = "too-new"
    TOO_OLD = "too-old"
    SUBSECTION = "subsection"
    TYPE = "type"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticDifference:
    """One difference between what is saved and what is loaded.

    :param path: vmsd names and field names, such as ``ich9_ahci/ahci/dev.port_no``
    :param name: of the field, the subsection or the vmstate; ``name_loading`` what it is on the loading side
    :param saved: bytes of the field, or version, where it is saved
    :param loading: the same where it is loaded: the newest version, or the oldest that it takes
    :param sometimes: a function decides whether the field is there
    :param in_recording: whether this recording has it; None where that says nothing
    """

    path: str
    kind: StaticKind
    name: str = ""
    name_loading: str = ""
    saved: int | None = None
    loading: int | None = None
    sometimes: bool = False
    in_recording: bool | None = None

    @property
    def alarm(self) -> bool:
        """Whether a load can fail of it; a rename of equal size cannot."""
        return self.kind is not StaticKind.RENAMED


class Undescribed(StrEnum):
    """Why the dump says nothing of a section: its code writes the bytes itself, or no device type has its vmstate."""

    OPEN_CODED = "open-coded"
    NO_TYPE = "no-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFinding:
    """What the static check says of one section.

    :param vmsd: its vmsd's name
    :param undescribed: why the dump says nothing of it
    """

    section: str
    state: StaticState
    vmsd: str = ""
    differences: tuple[StaticDifference, ...] = ()
    undescribed: Undescribed | None = None


class Disagreement(StrEnum):
    """How the static check and the loads disagree of a section."""

    ALARM_AND_PASSED = "alarm-and-passed"
    CLEAN_AND_FAILED = "clean-and-failed"
    BLIND_AND_FAILED = "blind-and-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticNote:
    """Sections of a device of which the static check and the loads disagree, in one way."""

    how: Disagreement
    findings: tuple[StaticFinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionAtHand:
    """A section that is recorded, and what its recording's vmdesc says of it.

    :param vmsd: its vmsd's name, "" for an old-style section
    :param open_coded: whether its payload is one opaque field
    :param names: the fields and subsections that it was saved with, at any depth
    """

    label: str
    vmsd: str
    open_coded: bool
    names: frozenset[str] = frozenset()


def sections_at_hand(recording: Recording) -> list[SectionAtHand]:
    """The device sections of a recording."""
    found = []
    for section in recording.sections:
        desc = section.desc
        vmsd = desc.vmsd_name if desc else ""
        found.append(
            SectionAtHand(
                label=label_of(section),
                vmsd=vmsd,
                open_coded=desc is None or desc.open_coded or not vmsd,
                names=frozenset(_names_in(desc) if desc else ()),
            )
        )
    return found


def _names_in(desc: DeviceDesc | StructDesc) -> Iterator[str]:
    for field in desc.fields:
        yield field.name
        if field.struct is not None:
            yield from _names_in(field.struct)
    for subsection in desc.subsections:
        yield subsection.vmsd_name
        yield from _names_in(subsection)


def check_sections(saved: Dump, loaded: Dump, sections: Iterable[SectionAtHand]) -> dict[str, StaticFinding]:
    """The static answer for each section, by label.

    :param saved: dump of the QEMU that saves
    :param loaded: dump of the QEMU that loads
    """
    ours, theirs = _by_vmsd(saved), _by_vmsd(loaded)
    return {section.label: _check_section(section, ours, theirs) for section in sections}


def _check_section(
    section: SectionAtHand, ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]
) -> StaticFinding:
    if section.open_coded:
        return _silent(section, Undescribed.OPEN_CODED)
    saved = ours.get(section.vmsd)
    if saved is None:
        return _silent(section, Undescribed.NO_TYPE)
    loaded = theirs.get(section.vmsd)
    if loaded is None:
        loaded = _renamed(saved, theirs)
    if loaded is None:
        gone = StaticDifference(path=section.vmsd, kind=StaticKind.TYPE, name=section.vmsd)
        return StaticFinding(section=section.label, state=StaticState.ALARM, vmsd=section.vmsd, differences=(gone,))
    # several types may share a vmstate, and then any of the common ones may be the device
    common = [name for name in saved if name in loaded]
    pairs = [(saved[name], loaded[name]) for name in common] or [
        (next(iter(saved.values())), next(iter(loaded.values())))
    ]
    found = dict.fromkeys(_at_hand(d, section) for mine, other in pairs for d in compare_descriptions(mine, other))
    state = StaticState.ALARM if any(d.alarm for d in found) else StaticState.CLEAN
    return StaticFinding(section=section.label, state=state, vmsd=section.vmsd, differences=tuple(found))


def _at_hand(difference: StaticDifference, section: SectionAtHand) -> StaticDifference:
    """A subsection or field that is not always saved: whether this recording has it."""
    if difference.kind not in (StaticKind.SUBSECTION, StaticKind.REMOVED) or not section.names:
        return difference
    return replace(difference, in_recording=difference.name in section.names)


def _silent(section: SectionAtHand, why: Undescribed) -> StaticFinding:
    return StaticFinding(section=section.label, state=StaticState.NOT_DESCRIBED, vmsd=section.vmsd, undescribed=why)


def _by_vmsd(dump: Dump) -> dict[str, dict[str, Any]]:
    """vmsd name to device type to description."""
    found: dict[str, dict[str, Any]] = {}
    for kind, entry in dump.items():
        if kind != HEAD and "Description" in entry:
            found.setdefault(entry["Description"]["name"], {})[kind] = entry["Description"]
    return found


def _renamed(saved: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A vmstate that has another name now, found by its device type."""
    for types in theirs.values():
        if any(kind in types for kind in saved):
            return types
    return None


def compare_descriptions(saved: Dump, loaded: Dump, path: str = "") -> Iterator[StaticDifference]:
    """The differences of two descriptions, outer ones first.

    :param saved: ``Description`` of the QEMU that saves
    :param loaded: that of the QEMU that loads
    """
    path = f"{path}{saved['name']}"
    yield from _versions(saved, loaded, path)
    yield from _fields(saved, loaded, path)
    others = {subsection["name"]: subsection for subsection in loaded.get("Subsections", [])}
    for subsection in saved.get("Subsections", []):
        other = others.get(subsection["name"])
        if other is None:
            name = subsection["name"]
            yield StaticDifference(path=f"{path}/{name}", kind=StaticKind.SUBSECTION, name=name)
        else:
            yield from compare_descriptions(subsection, other, f"{path}/")


def _versions(saved: Dump, loaded: Dump, path: str) -> Iterator[StaticDifference]:
    version, newest, oldest = saved["version_id"], loaded["version_id"], loaded["minimum_version_id"]
    if version > newest:
        yield StaticDifference(path=path, kind=StaticKind.TOO_NEW, saved=version, loading=newest)
    elif version < oldest:
        yield StaticDifference(path=path, kind=StaticKind.TOO_OLD, saved=version, loading=oldest)


def _fields(saved: Dump, loaded: Dump, path: str) -> Iterator[StaticDifference]:
    """Fields in order; what is between two that match is removed on one side, added on the other, or renamed."""
    version = saved["version_id"]
    ours = [f for f in saved.get("Fields", []) if f["version_id"] <= version]
    # a field that came with a later version is not looked for in a stream of this one
    theirs = [f for f in loaded.get("Fields", []) if f["version_id"] <= version]
    at = 0
    gone: list[Dump] = []
    for field in ours:
        stop = next((n for n in range(at, len(theirs)) if theirs[n]["field"] == field["field"]), None)
        if stop is None or _comes_later(field, ours, theirs, at, stop):
            gone.append(field)
            continue
        yield from _unmatched(gone, theirs[at:stop], path)
        gone, at = [], stop + 1
        yield from _same_field(field, theirs[stop], path)
    yield from _unmatched(gone, theirs[at:], path)


def _comes_later(field: Dump, ours: list[Any], theirs: list[Any], at: int, stop: int) -> bool:
    """Whether the match would jump over a field that we have as well, further on: then ours moved or went away."""
    behind = {f["field"] for f in ours[ours.index(field) + 1 :]}
    return stop > at and any(f["field"] in behind for f in theirs[at:stop])


def _same_field(mine: Dump, other: Dump, path: str) -> Iterator[StaticDifference]:
    where = f"{path}/{mine['field']}"
    inside, outside = mine.get("Description"), other.get("Description")
    if inside is not None and outside is not None:
        yield from compare_descriptions(inside, outside, f"{where}:")
    elif mine["size"] != other["size"]:
        name, sizes = mine["field"], {"saved": mine["size"], "loading": other["size"]}
        yield StaticDifference(path=where, kind=StaticKind.SIZE, name=name, **sizes)


def _unmatched(gone: list[Any], new: list[Any], path: str) -> Iterator[StaticDifference]:
    """Fields without a partner. Those that have the same bytes in all are a rename, or became unused."""
    if gone and new and _bytes(gone) == _bytes(new):
        yield StaticDifference(
            path=f"{path}/{gone[0]['field']}",
            kind=StaticKind.RENAMED,
            name=_names(gone),
            name_loading=_names(new),
            saved=_bytes(gone),
            loading=_bytes(new),
        )
        return
    for field, kind in [(f, StaticKind.REMOVED) for f in gone] + [(f, StaticKind.ADDED) for f in new]:
        name, size = field["field"], field["size"]
        if name != _UNUSED or size:
            side = "saved" if kind is StaticKind.REMOVED else "loading"
            maybe = bool(field["field_exists"])
            yield StaticDifference(path=f"{path}/{name}", kind=kind, name=name, sometimes=maybe, **{side: size})


def _bytes(fields: Iterable[Any]) -> int:
    return sum(f["size"] for f in fields)


def _names(fields: Iterable[Any]) -> str:
    return ", ".join(f["field"] for f in fields)


def compare_static_dynamic(
    static: Mapping[str, StaticFinding], loads: Mapping[str, bool | None]
) -> tuple[StaticNote, ...]:
    """Where the static check and the loads disagree.

    :param loads: by section: whether its loads passed, None for one that is not known (another one failed first)
    """
    found: dict[Disagreement, list[StaticFinding]] = {how: [] for how in Disagreement}
    for section, finding in static.items():
        how = _DISAGREE.get((finding.state, loads.get(section)))
        if how is not None:
            found[how].append(finding)
    return tuple(StaticNote(how=how, findings=tuple(findings)) for how, findings in found.items() if findings)


_DISAGREE: Mapping[tuple[StaticState, bool | None], Disagreement] = {
    (StaticState.ALARM, True): Disagreement.ALARM_AND_PASSED,
    (StaticState.CLEAN, False): Disagreement.CLEAN_AND_FAILED,
    (StaticState.NOT_DESCRIBED, False): Disagreement.BLIND_AND_FAILED,
}
