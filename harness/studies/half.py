# SPDX-License-Identifier: GPL-2.0-or-later
"""Question 2: a checkpoint applied by half, and the connection lost at every step of the protocol.

The secondary holds checkpoint N whole (phase ``before``), then checkpoint N+1 (phase ``after``) goes wrong. Each case
has a secondary of its own. What is asked of it: does it report the failure, does it take a further checkpoint on the
same connection (a new connection is not possible in COLO), can it take over, and does its guest live.

A secondary writes the new RAM into its guest before it loads the device buffer (``colo_flush_ram_cache`` and
``qemu_load_device_state`` in ``migration/colo.c:colo_incoming_process_checkpoint``), so a load that fails leaves the
memory of N+1 with devices of N, or of both. Pages that differ between the two recordings tell whose memory it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from harness.colo.primary import ChannelBroken
from harness.errors import HarnessError
from harness.state.transforms import GuestMode, encode, label_of
from harness.stream.model import Section
from harness.studies.model import Lab, Question, Row, StudyColumn, StudyResult
from harness.studies.pairs import primary_cases
from harness.studies.patient import (
    CONSOLE_S,
    CONSOLE_TIMES,
    EOF,
    HEALTHY_CONSOLE_S,
    REQUEST,
    SEND,
    Patient,
    Reaction,
    Takeover,
    sections_of,
    size_message,
)

#: Kinds of cases, in the order of the table, and what was done.
KINDS = {
    "whole": "control: nothing went wrong",
    "cut between sections": "buffer ends at a section boundary, VMSTATE_SIZE says so",
    "cut inside a section": "buffer ends in a payload, VMSTATE_SIZE says so",
    "shorter than VMSTATE_SIZE": "the connection closes before the promised bytes came",
    "bad section": "wrong version_id, idstr or footer in the middle",
    "sections left out": "well-formed buffer with its end mark, but some sections missing",
    "connection closed": "the primary goes away at a step of the protocol",
    "connection silent": "the primary says no more, and stays connected",
}
COLUMNS = (
    StudyColumn(key="case", title="what went wrong"),
    StudyColumn(key="cases", title="n"),
    StudyColumn(key="loaded", title="acked"),
    StudyColumn(key="reported", title="COLO_EXIT"),
    StudyColumn(key="died", title="died"),
    StudyColumn(key="further", title="again"),
    StudyColumn(key="took over", title="takeover"),
    StudyColumn(key="alive", title="lives"),
    StudyColumn(key="torn", title="RAM N+1"),
)
#: Share of the way through a payload at which it is cut.
_MIDDLE = 0.5
_VERSION = 0x7FFF
#: A guest that ran for a moment has written to some of its pages.
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCase:
    """Something that goes wrong.

    :param feed: does it to a healthy secondary; whether its answers can still be read
    :param incomplete: the checkpoint was not whole when it went wrong
    """

    kind: str
    where: str
    feed: Callable[[Patient], bool]
    incomplete: bool = True
    wait_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfOutcome:
    """What one case came to.

    :param further: whether the connection took a further checkpoint; None when it could not be asked
    :param ram: share of witness pages that are N+1's before the takeover; None when QEMU did not say
    """

    case: HalfCase
    reaction: Reaction
    further: bool | None
    ram: float | None
    takeover: Takeover


def cases_of(lab: Lab) -> list[HalfCase]:
    """All cases, as many as the effort asks for."""
    sections = sections_of(lab, lab.after, GuestMode.RUNNING)
    return [
        HalfCase(kind="whole", where="no failure", feed=_whole(sections), incomplete=False),
        *_boundaries(sections, lab.effort.boundaries),
        *_inside(sections, lab.effort.inside),
        *_bad(sections, lab.effort.boundaries),
        *_left_out(sections),
        *_steps(sections),
    ]


def run_case(lab: Lab, console_s: float, case: HalfCase) -> HalfOutcome:
    """One case in one new secondary.

    :param console_s: how long its guest may take to answer
    :raises HarnessError: it was not even healthy before
    """
    try:
        with Patient(lab) as patient:
            if not patient.reply():
                raise HarnessError(f"{case.kind}, {case.where}: a healthy secondary did not answer a request")
            listen = case.feed(patient)
            reaction = patient.reaction(listen=listen, timeout_s=case.wait_s)
            ram = patient.ram_of_next()
            further = _further(patient, reaction, lab.before) if listen else None
            takeover = patient.take_over(console_s)
            return HalfOutcome(case=case, reaction=reaction, further=further, ram=ram, takeover=takeover)
    except ChannelBroken as error:
        raise HarnessError(f"{case.kind}, {case.where}: the secondary was not healthy before: {error}") from error


def _further(patient: Patient, reaction: Reaction, phase: str) -> bool | None:
    """Whether the same connection takes the last whole checkpoint again; None where that says nothing."""
    if reaction.loaded or reaction.exit or reaction.how == "silent":
        return None
    if reaction.closed or not patient.reply():
        return False
    return patient.whole_rest(phase).loaded


def _checkpoint(buffer: bytes, patient: Patient, *, promised: int | None = None, close: bool = False) -> bool:
    """Everything behind CHECKPOINT_REPLY, with a buffer as it is given."""
    size = size_message(len(buffer) if promised is None else promised)
    patient.send(SEND, *patient.ram(patient.lab.after), EOF, size, buffer)
    if close:
        patient.hang_up()
    return not close


def _whole(sections: Sequence[Section]) -> Callable[[Patient], bool]:
    return partial(_checkpoint, encode(sections) + EOF)


def _boundaries(sections: Sequence[Section], every: int) -> Iterator[HalfCase]:
    """An empty buffer, and one behind each section; also with more bytes promised, at some of them."""
    whole = len(encode(sections)) + 1
    numbers = list(range(0, len(sections) + 1, every))
    for number in numbers:
        where = f"behind {label_of(sections[number - 1])}" if number else "before the first section"
        cut = encode(sections[:number])
        yield HalfCase(kind="cut between sections", where=where, feed=partial(_checkpoint, cut))
        if number in numbers[:: max(1, len(numbers) // 5)]:
            feed = partial(_checkpoint, cut, promised=whole, close=True)
            yield HalfCase(kind="shorter than VMSTATE_SIZE", where=where, feed=feed)


def _inside(sections: Sequence[Section], count: int) -> Iterator[HalfCase]:
    """Cuts inside the sections with the largest state, and in the last one."""
    largest = sorted(range(len(sections)), key=lambda i: len(sections[i].payload), reverse=True)
    for index in sorted({*largest[: max(0, count - 1)], len(sections) - 1}):
        section = sections[index]
        encoded = section.encode()
        inside = section.header_size + int(len(section.payload) * _MIDDLE)
        cut = encode(sections[:index]) + encoded[:inside]
        where = f"byte {inside} of {len(encoded)} of {label_of(section)}"
        yield HalfCase(kind="cut inside a section", where=where, feed=partial(_checkpoint, cut))


def _bad(sections: Sequence[Section], every: int) -> Iterator[HalfCase]:
    """One section wrong in the middle of an otherwise whole buffer."""
    count = len(sections)
    for index in sorted({0, count // 2, count - 1} if every == 1 else {count // 2}):
        section, label = sections[index], label_of(sections[index])
        wrong = {
            "version_id": replace(section, version_id=_VERSION).encode(),
            "idstr": replace(section, idstr="no-such-device").encode(),
            "footer": section.encode()[:-1] + bytes([section.encode()[-1] ^ 0xFF]),
        }
        for what, encoded in wrong.items():
            buffer = encode(sections[:index]) + encoded + encode(sections[index + 1 :]) + EOF
            yield HalfCase(kind="bad section", where=f"{what} of {label}", feed=partial(_checkpoint, buffer))


def _left_out(sections: Sequence[Section]) -> Iterator[HalfCase]:
    """What a primary that loses sections would send: nothing on the wire says how many there should be."""
    for number in (0, len(sections) // 2, len(sections) - 1):
        where = f"{len(sections) - number} of {len(sections)} left out at the end"
        yield HalfCase(
            kind="sections left out", where=where, feed=partial(_checkpoint, encode(sections[:number]) + EOF)
        )


def _steps(sections: Sequence[Section]) -> Iterator[HalfCase]:
    buffer = encode(sections) + EOF
    size = size_message(len(buffer))
    half = len(buffer) // 2
    for close in (True, False):
        kind = "connection closed" if close else "connection silent"
        step = partial(_lost, close=close)
        plain: list[tuple[str, Callable[[Patient], list[bytes | memoryview]]]] = [
            ("after CHECKPOINT_REPLY", lambda _: []),
            ("in VMSTATE_SEND", lambda _: [SEND[:2]]),
            ("after VMSTATE_SEND", lambda _: [SEND]),
            ("in the RAM", lambda p: [SEND, *_half(p.ram(p.lab.after))]),
            ("after the RAM", lambda p: [SEND, *p.ram(p.lab.after), EOF]),
            ("after VMSTATE_SIZE", lambda p: [SEND, *p.ram(p.lab.after), EOF, size]),
            ("in the buffer", lambda p: [SEND, *p.ram(p.lab.after), EOF, size, buffer[:half]]),
            ("before its last byte", lambda p: [SEND, *p.ram(p.lab.after), EOF, size, buffer[:-1]]),
        ]
        for where, pieces in plain:
            yield HalfCase(kind=kind, where=where, feed=partial(step, pieces), wait_s=3.0 if close else 0.3)
        if close:
            yield HalfCase(kind=kind, where="after CHECKPOINT_REQUEST", feed=_lost_in_request)
            yield HalfCase(
                kind=kind, where="after the buffer", feed=partial(_whole_and_close, buffer), incomplete=False
            )
            late = partial(_loaded_and_close, buffer)
            yield HalfCase(kind=kind, where="after VMSTATE_LOADED", feed=late, incomplete=False)


def _half(pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    return list(pieces[: max(1, len(pieces) // 2)])


def _lost(pieces: Callable[[Patient], list[bytes | memoryview]], patient: Patient, *, close: bool) -> bool:
    patient.send(*pieces(patient))
    if close:
        patient.hang_up()
    return not close


def _lost_in_request(patient: Patient) -> bool:
    """The request of :func:`run_case` is answered; this is about the next one, in a whole state."""
    patient.whole_rest(patient.lab.before)
    patient.send(REQUEST)
    patient.hang_up()
    return False


def _whole_and_close(buffer: bytes, patient: Patient) -> bool:
    return _checkpoint(buffer, patient, close=True)


def _loaded_and_close(buffer: bytes, patient: Patient) -> bool:
    _checkpoint(buffer, patient)
    patient.reaction()
    patient.hang_up()
    return False


def case_row(outcome: HalfOutcome) -> Row:
    """One case for ``claims.json``."""
    return {
        "kind": outcome.case.kind,
        "where": outcome.case.where,
        "reaction": outcome.reaction.how,
        **asdict(outcome.reaction),
        "further_checkpoint": outcome.further,
        "takeover": asdict(outcome.takeover),
        "ram_share_of_next": outcome.ram,
        "ram_of_next": None if outcome.ram is None else outcome.ram > _MOSTLY,
        "incomplete": outcome.case.incomplete,
    }


def summary(cases: Sequence[Row]) -> list[Row]:
    """The compact table: one row for each kind."""
    rows = []
    for kind in KINDS:
        mine = [case for case in cases if case["kind"] == kind]
        if not mine:
            continue
        asked = [c for c in mine if c["further_checkpoint"] is not None]
        living = [c for c in mine if c["takeover"]["alive"] is not None]
        known = [c for c in mine if c["ram_of_next"] is not None]
        rows.append(
            {
                "case": kind,
                "cases": len(mine),
                "loaded": sum("VMSTATE_LOADED" in c["messages"] for c in mine),
                "reported": sum(c["colo_exit"] is not None for c in mine),
                "died": sum(c["exit"] is not None for c in mine),
                "further": _of(sum(bool(c["further_checkpoint"]) for c in asked), len(asked)),
                "took over": _of(sum(c["takeover"]["status"] == "running" for c in mine), len(mine)),
                "alive": _of(sum(bool(c["takeover"]["alive"]) for c in living), len(living)),
                "torn": _of(sum(bool(c["ram_of_next"]) for c in known), len(known)),
            }
        )
    return rows


def _of(count: int, total: int) -> str:
    return f"{count}/{total}" if total else "-"


#: Kinds in which the secondary was given a buffer that it can read to its end, and that is no checkpoint.
_REFUSABLE = ("cut between sections", "cut inside a section", "bad section")


def figures_of(cases: Sequence[Row], primary: Sequence[Row]) -> Row:
    """The numbers of the answer."""
    bad = [c for c in cases if c["kind"] in _REFUSABLE]
    lost = [c for c in cases if c["kind"].startswith("connection") or c["kind"] == "shorter than VMSTATE_SIZE"]
    kept = [c for c in lost if c["incomplete"]]
    asked = [c for c in bad if c["further_checkpoint"] is not None]
    torn = [c for c in bad if c["ram_of_next"]]
    ran = [c for c in primary if not c["undecided"]]
    hung = [c for c in lost if c["takeover"]["status"] == "no-answer"]
    return {
        "bad_buffers": len(bad),
        "bad_acknowledged": sum("VMSTATE_LOADED" in c["messages"] for c in bad),
        "bad_reported": sum(c["colo_exit"] is not None for c in bad),
        "bad_died": sum(c["exit"] is not None for c in bad),
        "bad_further_asked": len(asked),
        "bad_further": sum(bool(c["further_checkpoint"]) for c in asked),
        "bad_took_over": sum(c["takeover"]["status"] == "running" for c in bad),
        "bad_guest_alive": sum(bool(c["takeover"]["alive"]) for c in bad),
        "bad_ram_of_next": len(torn),
        "lost": len(lost),
        "lost_died": sum(c["exit"] is not None for c in lost),
        "lost_took_over": sum(c["takeover"]["status"] == "running" for c in lost),
        "lost_guest_alive": sum(bool(c["takeover"]["alive"]) for c in lost),
        "lost_incomplete": len(kept),
        "lost_ram_of_next": sum(bool(c["ram_of_next"]) for c in kept),
        "left_out": sum(c["kind"] == "sections left out" for c in cases),
        "left_out_acknowledged": sum(
            c["kind"] == "sections left out" and "VMSTATE_LOADED" in c["messages"] for c in cases
        ),
        "monitor_hung": [f"{c['kind']} {c['where']}" for c in hung],
        "primary_cases": len(ran),
        "primary_undecided": len(primary) - len(ran),
        "primary_noticed": sum(bool(c["noticed"]) for c in ran),
        "primary_alone": sum(c["alive_untold"] is True for c in ran),
        "primary_told": sum(c["alive_told"] is True for c in ran),
    }


def text_of(figures: Row) -> str:
    """The answer in sentences."""
    f = figures
    again = ": a last whole checkpoint cannot be loaded again" if f["bad_further"] == 0 else ""
    parts = [
        f"Of {f['bad_buffers']} cut or damaged device buffers {_none(f['bad_acknowledged'])} acknowledged as loaded, "
        f"{f['bad_reported']} were reported by COLO_EXIT and {f['bad_died']} killed the secondary.",
        f"The connection took a further checkpoint in {f['bad_further']} of {f['bad_further_asked']} cases{again}.",
        f"x-colo-lost-heartbeat brought {f['bad_took_over']} of {f['bad_buffers']} to running, but "
        f"{f['bad_ram_of_next']} had the RAM of N+1 already under devices loaded by half, and only "
        f"{f['bad_guest_alive']} guests answered.",
        f"With the connection lost, {f['lost_took_over']} of {f['lost']} took over and {f['lost_guest_alive']} guests "
        f"answered; while the checkpoint was not complete, {f['lost_ram_of_next']} of {f['lost_incomplete']} had the "
        "RAM of N+1.",
    ]
    if f["monitor_hung"]:
        parts.append(f"QMP itself hung in {len(f['monitor_hung'])} of these: {', '.join(f['monitor_hung'])}.")
    parts.append(
        f"A well-formed buffer that lacks sections was acknowledged in {f['left_out_acknowledged']} of "
        f"{f['left_out']} cases."
    )
    if f["primary_cases"]:
        parts.append(
            f"A real primary noticed {f['primary_noticed']} of {f['primary_cases']} failures of its secondary or of "
            f"the connection; its guest went on by itself in {f['primary_alone']}, after x-colo-lost-heartbeat in "
            f"{f['primary_told']}."
        )
    if f["primary_undecided"]:
        parts.append(f"{f['primary_undecided']} real pairs did not get to their checkpoints and say nothing.")
    return " ".join(parts)


def _none(count: int) -> str:
    return "none was" if count == 0 else f"{count} were"


def ask(lab: Lab) -> StudyResult:
    """Every case, then the real primary.

    :raises HarnessError: a healthy secondary was not, or a case could not be run
    """
    cases = cases_of(lab)
    lab.stage(f"{lab.family}: {len(cases)} ways to break a checkpoint")
    # two at a time, as all the others: their guests answer as slowly as a healthy one can
    controls = lab.each(partial(run_case, lab, HEALTHY_CONSOLE_S), [cases[0]] * 2)
    for control in controls:
        if not control.reaction.loaded or not control.takeover.alive:
            said = control.reaction.said or control.reaction.how
            raise HarnessError(f"a whole checkpoint was not loaded and taken over: {said}, {control.takeover}")
    healthy_s = max(control.takeover.answer_s or 0.0 for control in controls)
    console_s = max(CONSOLE_S, CONSOLE_TIMES * healthy_s)
    outcomes = controls[:1] + lab.each(partial(run_case, lab, console_s), cases[1:])
    rows = [case_row(outcome) for outcome in outcomes]
    primary: list[Row] = []
    if lab.effort.pairs:
        lab.stage(f"{lab.family}: a real primary whose secondary fails")
        primary = primary_cases(lab)
    if primary and all(case["undecided"] for case in primary):
        raise HarnessError(f"no real pair got to its checkpoints: {primary[0]['undecided']}")
    figures = {**figures_of(rows, primary), "guest_answer_limit_s": round(console_s, 2)}
    table = summary(rows) + [_primary_row(case) for case in primary]
    return StudyResult(text=text_of(figures), figures=figures, rows=table, cases=[*rows, *primary])


def _primary_row(case: Row) -> Row:
    """A row of the same table: what a real primary did."""
    row: Row = {column.key: "-" for column in COLUMNS} | {"case": f"primary: {case['where']}", "cases": 1}
    if case["undecided"]:
        return row | {"cases": 0}
    return row | {
        "reported": int(case["colo_exit"] is not None),
        "died": int(case["exit"] is not None),
        "took over": _of(int(case["status_told"] == "running"), 1),
        "alive": _of(int(bool(case["alive_told"])), 1),
    }


QUESTION = Question(
    number=2,
    text="What becomes of a checkpoint that is applied by half, or whose connection is lost?",
    columns=COLUMNS,
    ask=ask,
)
