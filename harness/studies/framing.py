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
from harness.studies.findings import (
    Described,
    FrameCase,
    Framed,
    FrameFigures,
    FrameFinding,
    How,
    Way,
    WrongLength,
)
from harness.studies.model import Lab, Question
from harness.studies.patient import EOF, SEND, Patient, size_message


def description(desc: DeviceDesc | None) -> Described:
    """How far the vmdesc describes a section."""
    if desc is None:
        return Described.NONE
    if desc.open_coded:
        return Described.OPEN_CODED
    fields = [*desc.fields, *(f for s in desc.subsections for f in s.fields)]
    return Described.PARTLY if any(_opaque(field) for field in fields) else Described.FIELDS


def _opaque(field: FieldDesc) -> bool:
    """Lists and trees have their length in their content (``migration/vmstate-types.c``)."""
    if field.struct is not None:
        return any(_opaque(inner) for inner in field.struct.fields)
    return field.type in ("qtailq", "qlist", "gtree")


def altered(section: Section) -> dict[Way, Section]:
    """As it is, with one byte more, with one byte less."""
    found = {Way.EXACT: section, Way.MORE: replace(section, payload=section.payload + b"\0")}
    if section.payload:
        found[Way.LESS] = replace(section, payload=section.payload[:-1])
    return found


def ask(lab: Lab) -> FrameFinding:
    """Every section in all three ways.

    :raises HarnessError: a healthy secondary was not
    """
    recording = lab.buffers.pack.recordings[lab.before]
    sections = without(sections_for(recording, GuestMode.PARKED), lab.excluded)[: lab.effort.sections]
    lab.stage(f"{lab.family}: {len(sections)} sections, each exact, one byte too long, one too short")
    cases = lab.each(partial(_section_case, lab), sections)
    return FrameFinding(figures=figures_of(cases), cases=tuple(cases))


def _section_case(lab: Lab, section: Section) -> FrameCase:
    desc = section.desc
    framed = {way: _load(lab, changed) for way, changed in altered(section).items()}
    return FrameCase(
        section=label_of(section),
        size_bytes=len(section.payload),
        described=description(desc),
        vmdesc_bytes=None if desc is None else desc.size_bytes,
        lengths=lengths(lab, section),
        exact=framed[Way.EXACT],
        more=framed[Way.MORE],
        less=framed.get(Way.LESS),
    )


def lengths(lab: Lab, section: Section) -> tuple[int, ...]:
    """Payload lengths that the section has over all recorded phases, each once."""
    every = (s for r in lab.buffers.pack.recordings.values() for s in r.sections if s.key == section.key)
    return tuple(sorted({len(s.payload) for s in every}))


def _load(lab: Lab, section: Section) -> Framed:
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
            reaction = patient.reaction()
            return Framed(how=reaction.how, said=reaction.said)
    except ChannelBroken as error:
        raise HarnessError(f"the secondary was not healthy before: {error}") from error


def figures_of(cases: Sequence[FrameCase]) -> FrameFigures:
    """The numbers of the answer."""
    open_coded = [c.section for c in cases if c.described in (Described.OPEN_CODED, Described.NONE)]
    varying = [c.section for c in cases if len(c.lengths) > 1]
    ways = [(WrongLength(section=c.section, way=way), framed) for c in cases for way, framed in _ways(c).items()]
    return FrameFigures(
        sections=len(cases),
        in_vmdesc=sum(c.vmdesc_bytes == c.size_bytes for c in cases),
        open_coded=len(open_coded),
        open_coded_sections=tuple(open_coded),
        partly=sum(c.described is Described.PARTLY for c in cases),
        varying=len(varying),
        varying_sections=tuple(varying),
        exact_taken=sum(c.exact.how is How.LOADED for c in cases),
        more_refused=sum(c.more.how is How.REFUSED for c in cases),
        less=sum(c.less is not None for c in cases),
        less_refused=sum(c.less is not None and c.less.how is How.REFUSED for c in cases),
        crashed=tuple(what for what, framed in ways if framed.how not in (How.LOADED, How.REFUSED)),
        taken_wrongly=tuple(what for what, framed in ways if framed.how is How.LOADED and what.way is not Way.EXACT),
    )


def _ways(case: FrameCase) -> dict[Way, Framed]:
    ways = {Way.EXACT: case.exact, Way.MORE: case.more, Way.LESS: case.less}
    return {way: framed for way, framed in ways.items() if framed is not None}


QUESTION = Question(number=3, ask=ask)
