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
    NOT_DESCRIBED = "not described"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticDifference:
    """One difference between what is saved and what is loaded.

    :param path: vmsd names and field names, such as ``ich9_ahci/ahci/dev.port_no``
    :param kind: ``removed``, ``added``, ``size``, ``version``, ``subsection``, ``type`` (all of it gone), ``renamed``
    :param subsection: its name, where the difference is one
    :param alarm: whether a load can fail of it; a rename of equal size cannot
    """

    path: str
    kind: str
    text: str
    alarm: bool = True
    subsection: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFinding:
    """What the static check says of one section."""

    section: str
    state: StaticState
    differences: tuple[StaticDifference, ...] = ()
    why: str = ""

    @property
    def text(self) -> str:
        """One line."""
        alarms = [d.text for d in self.differences if d.alarm]
        return f"{self.state}: {'; '.join(alarms) or self.why}" if alarms or self.why else str(self.state)


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
        desc = recording.vmdesc.device(*section.key)
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
        return _silent(section, "its code writes the bytes itself, the dump has no fields of it")
    saved = ours.get(section.vmsd)
    if saved is None:
        return _silent(section, f"no device type has vmstate {section.vmsd} in the dump")
    loaded = theirs.get(section.vmsd)
    if loaded is None:
        loaded = _renamed(saved, theirs)
    if loaded is None:
        text = f"vmstate {section.vmsd} is not in the loading QEMU's dump (gone, or registered without a device type)"
        gone = StaticDifference(path=section.vmsd, kind="type", text=text)
        return StaticFinding(section=section.label, state=StaticState.ALARM, differences=(gone,))
    # several types may share a vmstate, and then any of the common ones may be the device
    common = [name for name in saved if name in loaded]
    pairs = [(saved[name], loaded[name]) for name in common] or [
        (next(iter(saved.values())), next(iter(loaded.values())))
    ]
    found = dict.fromkeys(_at_hand(d, section) for mine, other in pairs for d in compare_descriptions(mine, other))
    state = StaticState.ALARM if any(d.alarm for d in found) else StaticState.CLEAN
    return StaticFinding(section=section.label, state=state, differences=tuple(found))


def _at_hand(difference: StaticDifference, section: SectionAtHand) -> StaticDifference:
    """A subsection or field that is not always saved: say whether this recording has it."""
    if difference.kind not in ("subsection", "removed") or not section.names:
        return difference
    there = (difference.subsection or difference.path.rpartition("/")[2]) in section.names
    return replace(difference, text=f"{difference.text} ({'in' if there else 'not in'} the recording)")


def _silent(section: SectionAtHand, why: str) -> StaticFinding:
    return StaticFinding(section=section.label, state=StaticState.NOT_DESCRIBED, why=why)


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
            text = f"subsection {subsection['name']} of {path} is unknown to the loading QEMU"
            name = subsection["name"]
            yield StaticDifference(path=f"{path}/{name}", kind="subsection", text=text, subsection=name)
        else:
            yield from compare_descriptions(subsection, other, f"{path}/")


def _versions(saved: Dump, loaded: Dump, path: str) -> Iterator[StaticDifference]:
    version, newest, oldest = saved["version_id"], loaded["version_id"], loaded["minimum_version_id"]
    if version > newest:
        text = f"{path} is saved as version {version}, and the loading QEMU knows up to {newest}"
        yield StaticDifference(path=path, kind="version", text=text)
    elif version < oldest:
        text = f"{path} is saved as version {version}, and the loading QEMU wants at least {oldest}"
        yield StaticDifference(path=path, kind="version", text=text)


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
        text = f"field {where} has {mine['size']} bytes where it is saved and {other['size']} where it is loaded"
        yield StaticDifference(path=where, kind="size", text=text)


def _unmatched(gone: list[Any], new: list[Any], path: str) -> Iterator[StaticDifference]:
    """Fields without a partner. Those that have the same bytes in all are a rename, or became unused."""
    if gone and new and _bytes(gone) == _bytes(new):
        text = f"{_names(gone)} of {path} is {_names(new)} where it is loaded, {_bytes(gone)} bytes as before"
        yield StaticDifference(path=f"{path}/{gone[0]['field']}", kind="renamed", text=text, alarm=False)
        return
    for field, kind, word in [(f, "removed", "is not") for f in gone] + [(f, "added", "is only") for f in new]:
        if field["field"] == _UNUSED and not field["size"]:
            continue
        sometimes = ", if a function says so" if field["field_exists"] else ""
        text = f"field {path}/{field['field']} ({field['size']} bytes{sometimes}) {word} in the loading QEMU"
        yield StaticDifference(path=f"{path}/{field['field']}", kind=kind, text=text)


def _bytes(fields: Iterable[Any]) -> int:
    return sum(f["size"] for f in fields)


def _names(fields: Iterable[Any]) -> str:
    return ", ".join(f["field"] for f in fields)


def compare_static_dynamic(static: Mapping[str, StaticFinding], loads: Mapping[str, bool | None]) -> str:
    """Where the static check and the loads disagree, in words; "" where they agree.

    :param loads: by section: whether its loads passed, None for one that is not known (another one failed first)
    """
    passed, failed, blind = [], [], []
    for section, finding in static.items():
        loaded = loads.get(section)
        if finding.state is StaticState.ALARM and loaded:
            passed.append(f"{section} ({_first(finding)})")
        elif finding.state is StaticState.CLEAN and loaded is False:
            failed.append(section)
        elif finding.state is StaticState.NOT_DESCRIBED and loaded is False:
            blind.append(f"{section} ({finding.why})")
    said = []
    if passed:
        said.append(f"the static check alarms and the load passes: {'; '.join(passed)}")
    if failed:
        said.append(f"the load fails and the static check sees nothing: {', '.join(failed)}")
    if blind:
        said.append(f"the load fails where the static check cannot look: {'; '.join(blind)}")
    return ". ".join(said)


def _first(finding: StaticFinding) -> str:
    alarms = [d.text for d in finding.differences if d.alarm]
    return f"{alarms[0]}{f', and {len(alarms) - 1} more' if len(alarms) > 1 else ''}"
