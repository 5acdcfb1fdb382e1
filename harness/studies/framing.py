# SPDX-License-Identifier: GPL-2.0-or-later
"""Question 3: can a device stream be framed without VMSTATE_SIZE?

The length of a payload is not on the wire (``migration/savevm.c:save_section_header``); a reader has the vmdesc, or the
device's own load. So each section is sent to a parked guest three times: as recorded, with one byte more and with one
byte less before its footer (``check_section_footer``). A load that stops exactly at its footer takes the first and
refuses the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from harness.colo.primary import ChannelBroken
from harness.errors import HarnessError
from harness.state.transforms import GuestMode, encode, label_of, sections_for, without
from harness.stream.model import Section
from harness.stream.vmdesc import DeviceDesc, FieldDesc
from harness.studies.model import Lab, Question, Row, StudyColumn, StudyResult
from harness.studies.patient import EOF, SEND, Patient, Reaction, size_message

COLUMNS = (
    StudyColumn(key="sections", title="sections"),
    StudyColumn(key="described", title="vmdesc"),
    StudyColumn(key="count", title="n"),
    StudyColumn(key="lengths", title="varies"),
    StudyColumn(key="exact", title="exact"),
    StudyColumn(key="more", title="+1"),
    StudyColumn(key="less", title="-1"),
)
_NAMED = 4


def description(desc: DeviceDesc | None) -> str:
    """How far the vmdesc describes a section: ``fields``, ``partly``, ``open-coded`` or ``none``."""
    if desc is None:
        return "none"
    if desc.open_coded:
        return "open-coded"
    fields = [*desc.fields, *(f for s in desc.subsections for f in s.fields)]
    return "partly" if any(_opaque(field) for field in fields) else "fields"


def _opaque(field: FieldDesc) -> bool:
    """Lists and trees have their length in their content (``migration/vmstate-types.c``)."""
    if field.struct is not None:
        return any(_opaque(inner) for inner in field.struct.fields)
    return field.type in ("qtailq", "qlist", "gtree")


def altered(section: Section) -> dict[str, Section]:
    """As it is, with one byte more, with one byte less."""
    found = {"exact": section, "more": replace(section, payload=section.payload + b"\0")}
    if section.payload:
        found["less"] = replace(section, payload=section.payload[:-1])
    return found


def ask(lab: Lab) -> StudyResult:
    """Every section in all three ways.

    :raises HarnessError: a healthy secondary was not
    """
    recording = lab.buffers.pack.recordings[lab.before]
    sections = without(sections_for(recording, GuestMode.PARKED), lab.excluded)[: lab.effort.sections]
    lab.stage(f"{lab.family}: {len(sections)} sections, each exact, one byte too long, one too short")
    cases = lab.each(partial(_section_case, lab), sections)
    figures = figures_of(cases)
    return StudyResult(text=text_of(figures, lab.before), figures=figures, rows=summary(cases), cases=cases)


def _section_case(lab: Lab, section: Section) -> Row:
    recording = lab.buffers.pack.recordings[lab.before]
    desc = recording.vmdesc.device(section.idstr, section.instance_id)
    case: Row = {
        "section": label_of(section),
        "bytes": len(section.payload),
        "described": description(desc),
        "vmdesc_bytes": None if desc is None else desc.size_bytes,
        "lengths": lengths(lab, section),
    }
    for way, changed in altered(section).items():
        reaction = _load(lab, changed)
        case[way] = reaction.how
        case[f"{way}_said"] = reaction.said
    return case


def lengths(lab: Lab, section: Section) -> list[int]:
    """Payload lengths that the section has over all recorded phases, each once."""
    every = (s for r in lab.buffers.pack.recordings.values() for s in r.sections if s.key == section.key)
    return sorted({len(s.payload) for s in every})


def _load(lab: Lab, section: Section) -> Reaction:
    """One section alone into a new parked secondary; behind the whole state where a build resets before a load."""
    whole = b""
    if lab.resets:
        recording = lab.buffers.pack.recordings[lab.before]
        whole = encode(without(sections_for(recording, GuestMode.PARKED), lab.excluded))
    buffer = whole + section.encode() + EOF
    try:
        with Patient(lab, GuestMode.PARKED) as patient:
            if not patient.reply():
                raise HarnessError("a healthy secondary did not answer a request")
            patient.send(SEND, EOF, size_message(len(buffer)), buffer)
            return patient.reaction()
    except ChannelBroken as error:
        raise HarnessError(f"the secondary was not healthy before: {error}") from error


def figures_of(cases: Sequence[Row]) -> Row:
    """The numbers of the answer."""
    return {
        "sections": len(cases),
        "in_vmdesc": sum(c["vmdesc_bytes"] == c["bytes"] for c in cases),
        "open_coded": sum(c["described"] in ("open-coded", "none") for c in cases),
        "open_coded_sections": [c["section"] for c in cases if c["described"] in ("open-coded", "none")],
        "partly": sum(c["described"] == "partly" for c in cases),
        "varying": sum(len(c["lengths"]) > 1 for c in cases),
        "varying_sections": [c["section"] for c in cases if len(c["lengths"]) > 1],
        "exact_taken": sum(c["exact"] == "loaded" for c in cases),
        "more_refused": sum(c["more"] == "refused" for c in cases),
        "less": sum("less" in c for c in cases),
        "less_refused": sum(c.get("less") == "refused" for c in cases),
        "crashed": [f"{c['section']} ({way})" for c in cases for way in ("exact", "more", "less") if _dead(c, way)],
        "taken_wrongly": [
            f"{c['section']} ({way})" for c in cases for way in ("more", "less") if c.get(way) == "loaded"
        ],
    }


def _dead(case: Row, way: str) -> bool:
    return case.get(way) in ("crash", "ended", "silent", "closed")


def text_of(f: Row, phase: str) -> str:
    """The answer in sentences."""
    total = f["sections"]
    ends = f["exact_taken"] == f["more_refused"] == total and f["less_refused"] == f["less"]
    first = (
        "By the devices' own loads yes, by a reader without them no:"
        if ends and f["open_coded"]
        else "Yes:"
        if ends
        else "Not safely:"
    )
    parts = [
        f"{first} {f['exact_taken']} of {total} loads stop exactly at their footer, "
        f"{f['more_refused']} of {total} refuse one byte more and {f['less_refused']} of {f['less']} one byte less.",
        f"The vmdesc has the length of {f['in_vmdesc']} of {total} sections, but {f['open_coded']} are open-coded, "
        f"{f['partly']} hold lists, and {f['varying']} change their length from phase to phase; a COLO device buffer "
        "carries no vmdesc.",
    ]
    if f["crashed"]:
        parts.append(f"Instead of refusing, the secondary died or hung with {', '.join(f['crashed'])}.")
    if f["taken_wrongly"]:
        parts.append(f"Taken with a wrong length: {', '.join(f['taken_wrongly'])}.")
    return " ".join(parts)


def summary(cases: Sequence[Row]) -> list[Row]:
    """Sections that behave alike in one row."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for case in cases:
        ways = tuple(case.get(way, "-") for way in ("exact", "more", "less"))
        groups.setdefault((case["described"], len(case["lengths"]) > 1, *ways), []).append(case)
    return [_group(mine) for _, mine in sorted(groups.items(), key=lambda item: -len(item[1]))]


def _group(mine: Sequence[Row]) -> Row:
    names = [case["section"] for case in mine]
    more = len(names) - _NAMED
    first = mine[0]
    return {
        "sections": ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else ""),
        "described": first["described"],
        "count": len(mine),
        "lengths": "yes" if len(first["lengths"]) > 1 else "no",
        "exact": "taken" if first["exact"] == "loaded" else first["exact"],
        "more": first["more"],
        "less": first.get("less", "-"),
    }


QUESTION = Question(
    number=3,
    text="Can a device stream be framed without its size?",
    columns=COLUMNS,
    ask=ask,
)
