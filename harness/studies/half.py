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
from dataclasses import dataclass, field, replace
from functools import partial

from harness.colo.primary import ChannelBroken
from harness.errors import HarnessError
from harness.state.transforms import GuestMode, encode, label_of
from harness.stream.model import Section
from harness.studies.findings import (
    Damage,
    Half,
    HalfCase,
    HalfFigures,
    HalfFinding,
    HalfPlace,
    How,
    LostAt,
    PrimaryCase,
)
from harness.studies.model import Lab, Question
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
    sections_of,
    size_message,
)

#: Share of the way through a payload at which it is cut.
_MIDDLE = 0.5
_VERSION = 0x7FFF
#: A guest that ran for a moment has written to some of its pages.
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Something that goes wrong.

    :param feed: does it to a healthy secondary; whether its answers can still be read
    :param incomplete: the checkpoint was not whole when it went wrong
    """

    half: Half
    place: HalfPlace = field(default_factory=HalfPlace)
    feed: Callable[[Patient], bool]
    incomplete: bool = True
    wait_s: float = 3.0


def trials_of(lab: Lab) -> list[Trial]:
    """All cases, as many as the effort asks for."""
    sections = sections_of(lab, lab.after, GuestMode.RUNNING)
    return [
        Trial(half=Half.WHOLE, feed=_whole(sections), incomplete=False),
        *_boundaries(sections, lab.effort.boundaries),
        *_inside(sections, lab.effort.inside),
        *_bad(sections, lab.effort.boundaries),
        *_left_out(sections),
        *_steps(sections),
    ]


def run_case(lab: Lab, console_s: float, trial: Trial) -> HalfCase:
    """One case in one new secondary.

    :param console_s: how long its guest may take to answer
    :raises HarnessError: it was not even healthy before
    """
    try:
        with Patient(lab) as patient:
            if not patient.reply():
                raise HarnessError(f"{trial.half}: a healthy secondary did not answer a request")
            listen = trial.feed(patient)
            reaction = patient.reaction(listen=listen, timeout_s=trial.wait_s)
            ram = patient.ram_of_next()
            return HalfCase(
                half=trial.half,
                place=trial.place,
                how=reaction.how,
                messages=reaction.messages,
                colo_exit=reaction.colo_exit,
                said=reaction.said,
                exit=reaction.exit,
                closed=reaction.closed,
                ram_share_of_next=ram,
                ram_of_next=None if ram is None else ram > _MOSTLY,
                further_checkpoint=_further(patient, reaction, lab.before) if listen else None,
                incomplete=trial.incomplete,
                takeover=patient.take_over(console_s),
            )
    except ChannelBroken as error:
        raise HarnessError(f"{trial.half}: the secondary was not healthy before: {error}") from error


def _further(patient: Patient, reaction: Reaction, phase: str) -> bool | None:
    """Whether the same connection takes the last whole checkpoint again; None where that says nothing."""
    if reaction.loaded or reaction.exit or reaction.how is How.SILENT:
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


def _boundaries(sections: Sequence[Section], every: int) -> Iterator[Trial]:
    """An empty buffer, and one behind each section; also with more bytes promised, at some of them."""
    whole = len(encode(sections)) + 1
    numbers = list(range(0, len(sections) + 1, every))
    for number in numbers:
        place = HalfPlace(section=label_of(sections[number - 1]) if number else "")
        cut = encode(sections[:number])
        yield Trial(half=Half.CUT_BETWEEN, place=place, feed=partial(_checkpoint, cut))
        if number in numbers[:: max(1, len(numbers) // 5)]:
            feed = partial(_checkpoint, cut, promised=whole, close=True)
            yield Trial(half=Half.SHORTER, place=place, feed=feed)


def _inside(sections: Sequence[Section], count: int) -> Iterator[Trial]:
    """Cuts inside the sections with the largest state, and in the last one."""
    largest = sorted(range(len(sections)), key=lambda i: len(sections[i].payload), reverse=True)
    for index in sorted({*largest[: max(0, count - 1)], len(sections) - 1}):
        section = sections[index]
        encoded = section.encode()
        inside = section.header_size + int(len(section.payload) * _MIDDLE)
        cut = encode(sections[:index]) + encoded[:inside]
        place = HalfPlace(section=label_of(section), byte=inside, of=len(encoded))
        yield Trial(half=Half.CUT_INSIDE, place=place, feed=partial(_checkpoint, cut))


def _bad(sections: Sequence[Section], every: int) -> Iterator[Trial]:
    """One section wrong in the middle of an otherwise whole buffer."""
    count = len(sections)
    for index in sorted({0, count // 2, count - 1} if every == 1 else {count // 2}):
        section, label = sections[index], label_of(sections[index])
        wrong = {
            Damage.VERSION_ID: replace(section, version_id=_VERSION).encode(),
            Damage.IDSTR: replace(section, idstr="no-such-device").encode(),
            Damage.FOOTER: section.encode()[:-1] + bytes([section.encode()[-1] ^ 0xFF]),
        }
        for damage, encoded in wrong.items():
            buffer = encode(sections[:index]) + encoded + encode(sections[index + 1 :]) + EOF
            place = HalfPlace(section=label, damage=damage)
            yield Trial(half=Half.BAD_SECTION, place=place, feed=partial(_checkpoint, buffer))


def _left_out(sections: Sequence[Section]) -> Iterator[Trial]:
    """What a primary that loses sections would send: nothing on the wire says how many there should be."""
    for number in (0, len(sections) // 2, len(sections) - 1):
        place = HalfPlace(left_out=len(sections) - number, of=len(sections))
        feed = partial(_checkpoint, encode(sections[:number]) + EOF)
        yield Trial(half=Half.LEFT_OUT, place=place, feed=feed)


def _steps(sections: Sequence[Section]) -> Iterator[Trial]:
    buffer = encode(sections) + EOF
    size = size_message(len(buffer))
    half = len(buffer) // 2
    for close in (True, False):
        half_of = Half.CLOSED if close else Half.SILENT
        step = partial(_lost, close=close)
        plain: list[tuple[LostAt, Callable[[Patient], list[bytes | memoryview]]]] = [
            (LostAt.AFTER_REPLY, lambda _: []),
            (LostAt.IN_SEND, lambda _: [SEND[:2]]),
            (LostAt.AFTER_SEND, lambda _: [SEND]),
            (LostAt.IN_RAM, lambda p: [SEND, *_half(p.ram(p.lab.after))]),
            (LostAt.AFTER_RAM, lambda p: [SEND, *p.ram(p.lab.after), EOF]),
            (LostAt.AFTER_SIZE, lambda p: [SEND, *p.ram(p.lab.after), EOF, size]),
            (LostAt.IN_BUFFER, lambda p: [SEND, *p.ram(p.lab.after), EOF, size, buffer[:half]]),
            (LostAt.BEFORE_LAST_BYTE, lambda p: [SEND, *p.ram(p.lab.after), EOF, size, buffer[:-1]]),
        ]
        for lost_at, pieces in plain:
            feed = partial(step, pieces)
            yield Trial(half=half_of, place=HalfPlace(lost_at=lost_at), feed=feed, wait_s=3.0 if close else 0.3)
        if close:
            whole, late = partial(_whole_and_close, buffer), partial(_loaded_and_close, buffer)
            request, behind, loaded = LostAt.AFTER_REQUEST, LostAt.AFTER_BUFFER, LostAt.AFTER_LOADED
            yield Trial(half=half_of, place=HalfPlace(lost_at=request), feed=_lost_in_request)
            yield Trial(half=half_of, place=HalfPlace(lost_at=behind), feed=whole, incomplete=False)
            yield Trial(half=half_of, place=HalfPlace(lost_at=loaded), feed=late, incomplete=False)


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


#: Kinds in which the secondary was given a buffer that it can read to its end, and that is no checkpoint.
_REFUSABLE = (Half.CUT_BETWEEN, Half.CUT_INSIDE, Half.BAD_SECTION)
_LOST = (Half.CLOSED, Half.SILENT, Half.SHORTER)


def figures_of(cases: Sequence[HalfCase], primary: Sequence[PrimaryCase], limit_s: float = 0.0) -> HalfFigures:
    """The numbers of the answer.

    :param limit_s: how long a guest might take to answer
    """
    bad = [c for c in cases if c.half in _REFUSABLE]
    lost = [c for c in cases if c.half in _LOST]
    kept = [c for c in lost if c.incomplete]
    asked = [c for c in bad if c.further_checkpoint is not None]
    lacking = [c for c in cases if c.half is Half.LEFT_OUT]
    ran = [c for c in primary if not c.undecided]
    return HalfFigures(
        bad_buffers=len(bad),
        bad_acknowledged=sum(c.acknowledged for c in bad),
        bad_reported=sum(c.colo_exit is not None for c in bad),
        bad_died=sum(c.exit is not None for c in bad),
        bad_further_asked=len(asked),
        bad_further=sum(bool(c.further_checkpoint) for c in asked),
        bad_took_over=sum(c.takeover.running for c in bad),
        bad_guest_alive=sum(bool(c.takeover.alive) for c in bad),
        bad_ram_of_next=sum(bool(c.ram_of_next) for c in bad),
        lost=len(lost),
        lost_died=sum(c.exit is not None for c in lost),
        lost_took_over=sum(c.takeover.running for c in lost),
        lost_guest_alive=sum(bool(c.takeover.alive) for c in lost),
        lost_incomplete=len(kept),
        lost_ram_of_next=sum(bool(c.ram_of_next) for c in kept),
        left_out=len(lacking),
        left_out_acknowledged=sum(c.acknowledged for c in lacking),
        monitor_hung=tuple(c.place for c in lost if c.takeover.status == "no-answer"),
        primary_cases=len(ran),
        primary_undecided=len(primary) - len(ran),
        primary_noticed=sum(c.noticed for c in ran),
        primary_alone=sum(c.alive_untold for c in ran),
        primary_told=sum(c.alive_told for c in ran),
        guest_answer_limit_s=round(limit_s, 2),
    )


def ask(lab: Lab) -> HalfFinding:
    """Every case, then the real primary.

    :raises HarnessError: a healthy secondary was not, or a case could not be run
    """
    trials = trials_of(lab)
    lab.stage(f"{lab.family}: {len(trials)} ways to break a checkpoint")
    # two at a time, as all the others: their guests answer as slowly as a healthy one can
    controls = lab.each(partial(run_case, lab, HEALTHY_CONSOLE_S), [trials[0]] * 2)
    for control in controls:
        if control.how is not How.LOADED or not control.takeover.alive:
            said = control.said or control.how
            raise HarnessError(f"a whole checkpoint was not loaded and taken over: {said}, {control.takeover}")
    healthy_s = max(control.takeover.answer_s or 0.0 for control in controls)
    console_s = max(CONSOLE_S, CONSOLE_TIMES * healthy_s)
    cases = controls[:1] + lab.each(partial(run_case, lab, console_s), trials[1:])
    primary: list[PrimaryCase] = []
    if lab.effort.pairs:
        lab.stage(f"{lab.family}: a real primary whose secondary fails")
        primary = primary_cases(lab)
    if primary and all(case.undecided for case in primary):
        raise HarnessError(f"no real pair got to its checkpoints: {primary[0].undecided}")
    figures = figures_of(cases, primary, console_s)
    return HalfFinding(figures=figures, cases=tuple(cases), primary=tuple(primary))


QUESTION = Question(number=2, ask=ask)
