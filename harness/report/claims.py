# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``postload claims`` says: the questions, their answers in sentences, and their tables.

As in :mod:`harness.report.sentences`, nothing reads these back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.sentences import disturbed_error_text
from harness.report.text import first_of, number, plural
from harness.results.verdict import Verdict
from harness.studies.findings import (
    FrameCase,
    Framed,
    FrameFigures,
    FrameFinding,
    Half,
    HalfCase,
    HalfFigures,
    HalfFinding,
    HalfPlace,
    How,
    IntervalCase,
    IntervalFinding,
    LoadCase,
    LoadFinding,
    LostAt,
    PairFault,
    PrimaryCase,
    StudyFinding,
    WrongLength,
)
from harness.studies.model import ClaimsDoc, MachineFailure, MachineFinding, StudyAnswer

QUESTIONS: Mapping[int, str] = {
    1: "May a COLO device load be asserted to succeed?",
    2: "What becomes of a checkpoint that is applied by half, or whose connection is lost?",
    3: "Can a device stream be framed without its size?",
    4: "How often may checkpoints be taken: loads survived, and the time spent in them?",
}
COLUMNS: Mapping[int, tuple[str, ...]] = {
    1: ("whole state", "loads", "passed", "verdict", "broken by"),
    2: ("what went wrong", "n", "acked", "COLO_EXIT", "died", "again", "takeover", "lives", "RAM N+1"),
    3: ("sections", "vmdesc", "n", "varies", "exact", "+1", "-1"),
    4: ("guest runs", "checkpoints", "survived", "mean ms", "p95 ms", "load ms", "stopped", "loading"),
}
#: More sections of a row are counted only.
_NAMED = 4

Values = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldQuestion:
    """One question as it is printed.

    :param failed: why it could not be answered, or empty
    :param rows: of the table, a value for each of ``columns``
    """

    number: int
    question: str
    answer: str
    failed: str
    columns: tuple[str, ...]
    rows: tuple[Values, ...]


def told(doc: ClaimsDoc) -> list[ToldQuestion]:
    """All questions as they are printed."""
    return [_told(answer) for answer in doc.questions]


def _told(answer: StudyAnswer) -> ToldQuestion:
    several = len(answer.machines) + len(answer.failed) > 1
    rows = [((one.machine,) if several else ()) + row for one in answer.machines for row in table_rows(one.found)]
    return ToldQuestion(
        number=answer.number,
        question=question_text(answer.number),
        answer=" ".join(map(machine_text, answer.machines)),
        failed="; ".join(map(_failed, answer.failed)),
        columns=(("machine",) if several else ()) + COLUMNS[answer.number],
        rows=tuple(rows),
    )


def _failed(one: MachineFailure) -> str:
    if not one.machine:
        return "no machine to ask"
    said = disturbed_error_text(one.said, one.hindered)
    return f"{one.machine}: {said}"


def question_text(number: int) -> str:
    """The question."""
    return QUESTIONS[number]


def machine_text(one: MachineFinding) -> str:
    """The answer on one machine."""
    return f"{one.machine}: {finding_text(one.found)}"


def finding_text(found: StudyFinding) -> str:
    """The answer in sentences."""
    return _TEXTS[type(found)](found)


def table_rows(found: StudyFinding) -> list[Values]:
    """The table: experiments that came to the same are one row."""
    return _ROWS[type(found)](found)


# -- question 1 ------------------------------------------------------------------------------------------------------


def loads_text(found: LoadFinding) -> str:
    """May a load be asserted?"""
    figures, passed = found.figures, found.figures.loads_passed
    if not figures.sessions_failed:
        return (
            f"All {plural(passed, 'load')} of whole healthy states passed, so no load of this machine failed here; "
            "an assertion would still turn a buffer that is cut or does not fit (question 2) into an abort."
        )
    first = next(case for case in found.cases if case.verdict is not Verdict.OK)
    who = ", ".join(figures.sections_failed) or "no single section"
    left = (
        f"; without it {number(passed)} of {plural(passed, 'load')} passed"
        if passed and not figures.unexplained
        else ""
    )
    return (
        f"No: {figures.sessions_failed} of {plural(figures.sessions, 'session')} of whole healthy states ended in a "
        f"load that failed, by {who} ({first.verdict}: {first.line}){left}."
    )


def _load_rows(found: LoadFinding) -> list[Values]:
    groups: dict[object, list[LoadCase]] = {}
    for case in found.cases:
        groups.setdefault((case.verdict, case.line, case.sections, case.left_out), []).append(case)
    return [_load_row(mine) for mine in groups.values()]


def _load_row(mine: Sequence[LoadCase]) -> Values:
    first = mine[0]
    without = f", without {', '.join(first.left_out)}" if first.left_out else ""
    names = ", ".join(case.name for case in mine) + without
    asked, acked = sum(case.asked for case in mine), sum(case.acked for case in mine)
    return names, asked, acked, str(first.verdict), ", ".join(first.sections)


# -- question 2 ------------------------------------------------------------------------------------------------------

_HALVES = {
    Half.WHOLE: "whole",
    Half.CUT_BETWEEN: "cut between sections",
    Half.CUT_INSIDE: "cut inside a section",
    Half.SHORTER: "shorter than VMSTATE_SIZE",
    Half.BAD_SECTION: "bad section",
    Half.LEFT_OUT: "sections left out",
    Half.CLOSED: "connection closed",
    Half.SILENT: "connection silent",
}
_FAULTS = {
    PairFault.KILLED: "secondary killed",
    PairFault.REFUSES: "secondary refuses",
    PairFault.CLOSED: "connection closed",
    PairFault.SILENT: "connection silent",
    PairFault.OWN: "its secondary's own failure",
}
_LOST_AT = {
    LostAt.IN_RAM: "in the RAM",
    LostAt.AFTER_RAM: "after the RAM",
    LostAt.IN_BUFFER: "in the buffer",
    LostAt.BEFORE_LAST_BYTE: "before its last byte",
    LostAt.AFTER_BUFFER: "after the buffer",
}


def place_text(place: HalfPlace) -> str:
    """Where a checkpoint went wrong."""
    if place.lost_at is not None:
        return _LOST_AT.get(place.lost_at) or place.lost_at.replace("-", " ", 1)
    if place.left_out is not None:
        return f"{place.left_out} of {place.of} left out at the end"
    if place.damage is not None:
        return f"{place.damage} of {place.section}"
    if place.byte is not None:
        return f"byte {place.byte} of {place.of} of {place.section}"
    return f"behind {place.section}" if place.section else "before the first section"


def half_text(found: HalfFinding) -> str:
    """What is left of half a checkpoint?"""
    figures = found.figures
    parts = [*_bad_texts(figures), _lost_text(figures)]
    if figures.monitor_hung:
        places = ", ".join(map(place_text, figures.monitor_hung))
        parts.append(f"QMP itself hung in {len(figures.monitor_hung)} of these: {places}.")
    parts.append(
        f"A well-formed buffer that lacks sections was acknowledged in {figures.left_out_acknowledged} of "
        f"{plural(figures.left_out, 'case')}."
    )
    return " ".join([*parts, *_primary_texts(figures)])


def _bad_texts(f: HalfFigures) -> list[str]:
    again = ": a last whole checkpoint cannot be loaded again" if f.bad_further == 0 else ""
    acknowledged = "none was" if f.bad_acknowledged == 0 else "1 was" if f.bad_acknowledged == 1 else None
    return [
        f"Of {plural(f.bad_buffers, 'cut or damaged device buffer')} {acknowledged or f'{f.bad_acknowledged} were'} "
        f"acknowledged as loaded, {f.bad_reported} were reported by COLO_EXIT and {f.bad_died} killed the secondary.",
        f"The connection took a further checkpoint in {f.bad_further} of {plural(f.bad_further_asked, 'case')}{again}.",
        f"x-colo-lost-heartbeat brought {f.bad_took_over} of {f.bad_buffers} to running, but "
        f"{f.bad_ram_of_next} had the RAM of N+1 already under devices loaded by half, and only "
        f"{plural(f.bad_guest_alive, 'guest')} answered.",
    ]


def _lost_text(f: HalfFigures) -> str:
    return (
        f"With the connection lost, {f.lost_took_over} of {f.lost} took over and "
        f"{plural(f.lost_guest_alive, 'guest')} answered; while the checkpoint was not complete, {f.lost_ram_of_next} "
        f"of {f.lost_incomplete} had the RAM of N+1."
    )


def _primary_texts(f: HalfFigures) -> list[str]:
    parts = []
    if f.primary_cases:
        parts.append(
            f"A real primary noticed {f.primary_noticed} of {plural(f.primary_cases, 'failure')} of its secondary or "
            f"of the connection; its guest went on by itself in {f.primary_alone}, after x-colo-lost-heartbeat in "
            f"{f.primary_told}."
        )
    if f.primary_undecided:
        pairs = plural(f.primary_undecided, "real pair")
        parts.append(f"{pairs} did not get to {'its' if f.primary_undecided == 1 else 'their'} checkpoints.")
    return parts


def _half_rows(found: HalfFinding) -> list[Values]:
    kinds = [[case for case in found.cases if case.half is half] for half in Half]
    return [_half_row(mine) for mine in kinds if mine] + [_primary_row(case) for case in found.primary]


def _half_row(mine: Sequence[HalfCase]) -> Values:
    asked = [c for c in mine if c.further_checkpoint is not None]
    living = [c for c in mine if c.takeover.alive is not None]
    known = [c for c in mine if c.ram_of_next is not None]
    return (
        _HALVES[mine[0].half],
        len(mine),
        sum(c.acknowledged for c in mine),
        sum(c.colo_exit is not None for c in mine),
        sum(c.exit is not None for c in mine),
        _of(sum(bool(c.further_checkpoint) for c in asked), len(asked)),
        _of(sum(c.takeover.running for c in mine), len(mine)),
        _of(sum(bool(c.takeover.alive) for c in living), len(living)),
        _of(sum(bool(c.ram_of_next) for c in known), len(known)),
    )


def _of(count: int, total: int) -> str:
    return f"{count}/{total}" if total else "-"


def _primary_row(case: PrimaryCase) -> Values:
    """A row of the same table: what a real primary did."""
    name = f"primary: {_FAULTS[case.fault]}"
    if case.undecided:
        return name, 0, "-", "-", "-", "-", "-", "-", "-"
    exited, died = int(case.colo_exit is not None), int(case.exit is not None)
    took_over, alive = _of(int(case.status_told == "running"), 1), _of(int(case.alive_told), 1)
    return name, 1, "-", exited, died, "-", took_over, alive, "-"


# -- question 3 ------------------------------------------------------------------------------------------------------


def framing_text(found: FrameFinding) -> str:
    """Can a device stream be framed?"""
    f = found.figures
    parts = [
        f"{_framed(f)} {number(f.exact_taken)} of {plural(f.sections, 'load')} stop exactly at their footer, "
        f"{f.more_refused} of {f.sections} refuse one byte more and {f.less_refused} of {f.less} one byte less.",
        f"The vmdesc has the length of {f.in_vmdesc} of {plural(f.sections, 'section')}, but {f.open_coded} are "
        f"open-coded, {f.partly} hold lists, and {f.varying} change their length from phase to phase; a COLO device "
        "buffer carries no vmdesc.",
    ]
    if f.crashed:
        parts.append(f"Instead of refusing, the secondary died or hung with {_wrong(f.crashed)}.")
    if f.taken_wrongly:
        parts.append(f"Taken with a wrong length: {_wrong(f.taken_wrongly)}.")
    return " ".join(parts)


def _framed(f: FrameFigures) -> str:
    ends = f.exact_taken == f.more_refused == f.sections and f.less_refused == f.less
    if not ends:
        return "Not safely:"
    return "By the devices' own loads yes, by a reader without them no:" if f.open_coded else "Yes:"


def _wrong(lengths: Sequence[WrongLength]) -> str:
    return ", ".join(f"{one.section} ({one.way})" for one in lengths)


def _frame_rows(found: FrameFinding) -> list[Values]:
    """Sections that behave alike in one row, the most frequent first."""
    groups: dict[object, list[FrameCase]] = {}
    for case in found.cases:
        hows = tuple(framed and framed.how for framed in (case.exact, case.more, case.less))
        groups.setdefault((case.described, len(case.lengths) > 1, hows), []).append(case)
    return [_frame_row(mine) for mine in sorted(groups.values(), key=len, reverse=True)]


def _frame_row(mine: Sequence[FrameCase]) -> Values:
    names, first = [case.section for case in mine], mine[0]
    varies = "yes" if len(first.lengths) > 1 else "no"
    exact = "taken" if first.exact.how is How.LOADED else str(first.exact.how)
    ways = (exact, _how(first.more), _how(first.less))
    return first_of(names, _NAMED), str(first.described), len(mine), varies, *ways


def _how(framed: Framed | None) -> str:
    return str(framed.how) if framed else "-"


# -- question 4 ------------------------------------------------------------------------------------------------------


def interval_text(found: IntervalFinding) -> str:
    """How often may checkpoints be taken?"""
    cases = found.cases
    shortest, longest = min(cases, key=_interval), max(cases, key=_interval)
    means = [case.mean_ms for case in cases]
    return (
        f"{found.figures.survived} of {plural(found.figures.asked, 'checkpoint')} survived over "
        f"{plural(len(cases), 'interval')}; each stops the guest for {min(means):.1f} to {max(means):.1f} ms on "
        f"average, so at {shortest.interval_ms:g} ms between checkpoints the guest stands still for "
        f"{shortest.stopped_share:.0%} of the time ({shortest.loading_share:.0%} in the load, where a failure leaves "
        f"half a state), at {longest.interval_ms:g} ms for {longest.stopped_share:.1%} ({longest.loading_share:.1%})."
    )


def _interval(case: IntervalCase) -> float:
    return case.interval_ms


def _interval_rows(found: IntervalFinding) -> list[Values]:
    return [
        (
            f"{case.interval_ms:g} ms",
            case.asked,
            case.survived,
            f"{case.mean_ms:.2f}",
            f"{case.p95_ms:.2f}",
            f"{case.load_mean_ms:.2f}",
            f"{case.stopped_share:.1%}",
            f"{case.loading_share:.1%}",
        )
        for case in found.cases
    ]


_TEXTS: Mapping[type, Callable[[Any], str]] = {
    LoadFinding: loads_text,
    HalfFinding: half_text,
    FrameFinding: framing_text,
    IntervalFinding: interval_text,
}
_ROWS: Mapping[type, Callable[[Any], list[Values]]] = {
    LoadFinding: _load_rows,
    HalfFinding: _half_rows,
    FrameFinding: _frame_rows,
    IntervalFinding: _interval_rows,
}
