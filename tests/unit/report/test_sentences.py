# SPDX-License-Identifier: GPL-2.0-or-later
"""Every cause, control and way of isolation has a sentence, and what must stand in it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from made_cells import ended, made_cell, refused, symptom

from harness.colo.messages import Step
from harness.colo.symptom import Sign, Symptom
from harness.devices.phases import Missed, Unreached
from harness.experiments.interview import After
from harness.guests.lack import Lack, Lacks
from harness.qemu.disturbance import Disturbance, Hindered
from harness.report import sentences
from harness.results.cause import (
    Broke,
    Cause,
    Check,
    Derived,
    Drifted,
    DriftedField,
    During,
    Ended,
    FailedCheck,
    Figure,
    GuestFaulted,
    KvmRefused,
    Leaked,
    LoadedBy,
    Refused,
    Resource,
    Side,
    Undecided,
    Unsupported,
    Why,
    located,
)
from harness.results.document import Colo, ColoReason, Warned
from harness.results.outcome import ControlName, ControlResult, Isolation, IsolationWay, Moment, Outcome, Repeats
from harness.results.verdict import Verdict

LATE = Broke(step=Step.LOAD, load=3, how="late", symptom=Symptom(sign=Sign.NO_ANSWER, seconds=20))
DRIFT = Drifted(
    section="timer",
    fields=(
        DriftedField(field="a", type="int64", values=(1, 26, 50), per_load=1.0, creeps=True),
        DriftedField(field="b", type="uint8", values=(1, None, 2)),
        DriftedField(field="c", type="uint8", values=(1, 2)),
        DriftedField(field="d", type="uint8", values=(1, 2)),
    ),
    count=9,
    loads=50,
)
LEAK = Leaked(
    section="x",
    resource=Resource.MEMORY,
    per_load=33.46,
    low=31,
    high=35.1,
    unit="bytes",
    loads=9,
    other=Figure(per_load=82391.2, low=82390, high=82400, loads=2000),
    chunks=((32, 0.87),),
)
BEATS = FailedCheck(check=Check.HEARTBEAT, figures={"beats": 0, "passed_s": 3.12})
FAULT = GuestFaulted(step=Step.AFTER, phase="bound", checks=(BEATS,), after=After.FAILOVER)

TEXTS: list[tuple[Cause, str]] = [
    (LATE, "load 3: no answer for 20 s"),
    (replace(LATE, step=Step.RESUME), "when the guest was started after load 3: no answer for 20 s"),
    (replace(LATE, step=Step.INCOMING), "load 3, by an incoming stream: no answer for 20 s"),
    (replace(LATE, step=Step.INCOMING, load=0), "in the incoming stream, before any checkpoint: no answer for 20 s"),
    (Broke(step=Step.MAIN_LOOP, how="late"), "every load was acknowledged: then QEMU's main loop did not answer"),
    (
        Broke(step=Step.FAILOVER, during=During.FAILING_DISK, how="late", symptom=symptom()),
        "secondary with a failing disk: after the failover: it did not end: x",
    ),
    (ended("f: Assertion `a' failed."), "load 1: SIGABRT: f: Assertion `a' failed."),
    (Ended(step=Step.AFTER, load=9, signal="SIGSEGV"), "after load 9: SIGSEGV: QEMU printed no reason"),
    (Ended(step=Step.AFTER, load=9, line="x.c: y"), "after load 9: a sanitizer reports: x.c: y"),
    (located(refused("no such section"), during=During.LEAKS), "while looking for leaks: load 1: no such section"),
    (
        Refused(step=Step.INCOMING, load=1, status=1),
        "load 1, by an incoming stream: exit status 1: QEMU printed no reason",
    ),
    (
        DRIFT,
        "after 50 loads it is not what it was after one: a goes from 1 to 50, +1 per load; b is 1, then absent, "
        "then 2; c is 1, then 2, and 6 more fields",
    ),
    (
        replace(DRIFT, fields=DRIFT.fields[2:3], count=1),
        "after 50 loads it is not what it was after one: c is 1, then 2",
    ),
    (
        LEAK,
        "with one load a checkpoint, each load leaves behind 33.5 [31.0, 35.1] bytes of memory (heap chunks: 0.87 of "
        "32 bytes); over 9 loads, confirmed in a second process; back to back 82,391 [82,390, 82,400]",
    ),
    (
        replace(LEAK, way=LoadedBy.BACK_TO_BACK, other=Figure(per_load=2, low=1.5, high=2.5, loads=840)),
        "back to back, each load leaves behind 33.5 [31.0, 35.1] bytes of memory (heap chunks: 0.87 of 32 bytes); over "
        "9 loads, confirmed in a second process; with one load a checkpoint 2.00 [1.50, 2.50]: no leak of COLO",
    ),
    (
        replace(LEAK, section="", chunks=()),
        "with one load a checkpoint, each load of the whole state leaves behind 33.5 [31.0, 35.1] bytes of memory; "
        "over 9 loads, confirmed in a second process; back to back 82,391 [82,390, 82,400]",
    ),
    (
        Leaked(section="x", resource=Resource.STATE, per_load=4, low=4, high=4, unit="bytes", loads=9),
        "with one load a checkpoint, each load leaves behind 4.00 bytes of saved state; over 9 loads, "
        "confirmed in a second process",
    ),
    (FAULT, "the heartbeat went on by 0 in 3.1 s"),
    (
        GuestFaulted(step=Step.LOAD, load=2, checks=(FailedCheck(check=Check.EXITED, status=0),)),
        "load 2: QEMU ended with status 0: the guest shut down or triple-faulted",
    ),
    (
        KvmRefused(step=Step.LOAD, load=1, group="MSR 0x48", ioctl="KVM_SET_MSRS", msr=0x48, value=4, error="EINVAL"),
        "load 1: this host's KVM did not take MSR 0x48 = 0x4 by KVM_SET_MSRS: EINVAL",
    ),
    (
        Hindered(how=Disturbance.ENDED, signal="SIGKILL"),
        "QEMU was ended from outside by SIGKILL",
    ),
    (
        Hindered(how=Disturbance.ENDED, signal="SIGTERM", said="from pid 7 (bash)"),
        "QEMU was ended from outside by SIGTERM (from pid 7 (bash))",
    ),
    (
        Hindered(how=Disturbance.OUT_OF_MEMORY, signal="SIGKILL", said="Out of memory: Killed process 9 (qemu)"),
        "the host has no memory left for QEMU (Out of memory: Killed process 9 (qemu))",
    ),
    (
        Hindered(how=Disturbance.STOPPED, seconds=21.5),
        "QEMU was stopped from outside, or held by the host's kernel, for 21.5 s",
    ),
    (Hindered(how=Disturbance.STOOD_STILL, seconds=25.0), "this program, or the whole host, stood still for 25 s"),
    (
        Hindered(how=Disturbance.STARVED, seconds=16.2, share=0.72, pressure=0.99),
        "QEMU was ready to run and got no CPU for 16.2 s, 72% of its time; the host had too few CPUs for 99% of it",
    ),
    (
        Derived(about="memory", gone=("a", "b"), new=("c", "d"), count=5, load=1, phase="bound"),
        "after 1 load QEMU shows another state than the recorded machine had (info mtree): gone: a; "
        "gone: b; new: c, and 2 more lines",
    ),
    (Unsupported(side=Side.LOADER, lack=Lack(what=Lacks.MACHINE, machine="x", qemu="9")), "QEMU 9 has no machine x"),
    (
        Unreached(phase="busy", how=Missed.NOTHING_TO_DO, step="bind", said="no driver"),
        "phase busy: nothing to do: its driver could not be bound: no driver",
    ),
    (
        Unreached(phase="bound", how=Missed.FAILED, step="bind", said=""),
        "phase bound: not reached: its driver could not be bound: the guest printed nothing",
    ),
    (
        Unreached(phase="plugged", how=Missed.FAILED, step="plug", said=""),
        "phase plugged: not reached: it could not be plugged out and in again: the guest did not let go of it",
    ),
    (Undecided(why=Why.LOADS, acked=1, asked=2), "1 of 2 loads acknowledged"),
    (Undecided(why=Why.TOO_MANY, phase="busy", sections=("a", "b")),
     "phase busy: not judged: 2 sections are refused, and no load passed without them"),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "text"), TEXTS)
def test_a_cause_in_words(cause: Cause, text: str) -> None:
    assert sentences.cause_text(cause) == text


def test_all_kinds_of_causes_checks_and_reasons_have_words() -> None:
    assert {type(cause) for cause, _ in TEXTS} == set(get_args(get_args(Cause)[0]))
    for why in Why:
        assert sentences.cause_text(Undecided(why=why, said="s", acked=1, asked=2, load=3, seconds=4.0))
    for check in Check:
        figures = dict.fromkeys(("beats", "passed_s", "up_s", "least_s", "most_s", "epoch_s", "waited_s"), 1.0)
        assert sentences.check_text(FailedCheck(check=check, said="s", status=1, figures=figures))


def test_a_check_of_a_device_with_a_clock_that_stands_still_says_whose_it_is() -> None:
    silent = FailedCheck(check=Check.SILENT, said="", device="ahci", figures={"waited_s": 30})
    assert sentences.check_text(silent) == "ahci, with such a clock: no end within 30 s: nothing said"


def test_causes_are_told_once_and_with_how_often_they_came_back() -> None:
    outcome = Outcome(verdict=Verdict.CRASH, causes=(ended("x"), ended("x"), LATE))
    assert sentences.outcome_text(outcome) == "load 1: SIGABRT: x; load 3: no answer for 20 s"
    seldom = replace(outcome, repeats=Repeats(seen=1, of=3, verdict=Verdict.CRASH, others=(Verdict.OK,)))
    assert sentences.outcome_text(seldom).startswith("crash in 1 of 3 runs, ok in the others: load 1: SIGABRT: x; ")
    always = replace(outcome, repeats=Repeats(seen=3, of=3, verdict=Verdict.CRASH))
    assert sentences.outcome_text(always).startswith("in 3 of 3 runs: load 1: SIGABRT: x; ")


def test_a_cell_without_a_cause_has_the_meaning_of_its_verdict() -> None:
    assert sentences.text_of(made_cell()) == ""
    assert sentences.text_of(made_cell(verdict=Verdict.HANG, causes=())) == sentences.verdict_meaning(Verdict.HANG)


def control(
    name: ControlName, verdict: Verdict = Verdict.OK, passed: int = 5, asked: int = 5, **more: object
) -> ControlResult:
    return ControlResult(name=name, verdict=verdict, asked=asked, passed=passed, **{"decided": True, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (control(ControlName.FRESH), "fresh: ok in 5 of 5 processes"),
        (control(ControlName.LOADVM, passed=20), "loadvm: ok, 20 loads"),
        (control(ControlName.LOADVM, passed=1), "loadvm: ok, 1 load"),
        (
            control(ControlName.PAIR, Verdict.CRASH, 0, alike=True),
            "pair: crash after 0 checkpoints with the same message",
        ),
        (
            control(ControlName.FRESH, Verdict.CRASH, 1, moment=Moment.RESUME, cause=ended("x")),
            "fresh: crash in 4 of 5 processes when the guest was started: load 1: SIGABRT: x",
        ),
        (
            control(
                ControlName.FRESH,
                Verdict.HOST,
                2,
                decided=False,
                cause=Hindered(how=Disturbance.ENDED, signal="SIGKILL"),
            ),
            "fresh: undecided (QEMU was ended from outside by SIGKILL), 2 of 5 passed",
        ),
        (
            control(ControlName.SAME, Verdict.CRASH, 0, brought_in=False, cause=ended("x")),
            "the same state again: undecided, the state could not be brought in: load 1: SIGABRT: x",
        ),
    ],
)
def test_a_control_in_words(result: ControlResult, text: str) -> None:
    assert sentences.control_text(result) == text


def test_controls_and_moment_are_one_line() -> None:
    outcome = Outcome(verdict=Verdict.CRASH, controls=(control(ControlName.FRESH),), moment=Moment.LOAD)
    assert sentences.controls_text(outcome) == "fresh: ok in 5 of 5 processes; broke in the load"
    assert sentences.controls_text(Outcome(verdict=Verdict.CRASH)) == ""


@pytest.mark.parametrize(
    ("isolation", "words"),
    [
        (
            Isolation(way=IsolationWay.ALONE),
            "section a alone, once, as the first load behind the incoming stream, into",
        ),
        (Isolation(way=IsolationWay.ALONE, loads=6), "section a alone, 6 times into"),
        (Isolation(way=IsolationWay.ALONE, together=True), "section a alone, twice in one buffer into"),
        (
            Isolation(way=IsolationWay.SMALLEST_SET, of=40),
            "the smallest set of sections that does it in a parked guest, of 40",
        ),
    ],
)
def test_an_isolation_in_words(isolation: Isolation, words: str) -> None:
    assert words in sentences.isolation_text(isolation, ("a",))


def test_reasons_of_an_answer() -> None:
    crash = ColoReason(device="platform", sections=("a", "b"), verdict=Verdict.CRASH, causes=(ended("x"),))
    assert sentences.colo_reason_text(crash) == "a, b: crash"
    assert sentences.colo_reason_text(replace(crash, hidden=True)).startswith(
        "without the reset before each load, a, b"
    )
    stopped = ColoReason(causes=(Undecided(why=Why.STOPPED),))
    assert sentences.colo_reason_text(stopped) == "the run did not come to its end"
    missing = ColoReason(device="platform", causes=(Undecided(why=Why.NOT_JUDGED),))
    assert sentences.colo_reason_text(missing) == "platform: it was not judged"
    assert set(sentences.COLO_TEXTS) == set(Colo)


def test_what_was_tried_again_is_counted_and_told() -> None:
    stopped = Hindered(how=Disturbance.STOPPED, seconds=20.0)
    right = replace(made_cell(), outcome=Outcome(verdict=Verdict.OK, hindered=(stopped, stopped)))
    vain = replace(made_cell(), outcome=Outcome(verdict=Verdict.HOST, causes=(stopped,), hindered=(stopped,)))
    assert sentences.disturbed_text([made_cell()]) == sentences.tried_again_text(made_cell().outcome) == ""
    assert sentences.disturbed_text([made_cell(), right]) == (
        "1 cell was tried again, because the host disturbed the first try"
    )
    assert sentences.disturbed_text([right, vain, right]) == (
        "3 cells were tried again, because the host disturbed the first try, 1 of them in vain: their verdict is host"
    )
    assert sentences.tried_again_text(right.outcome) == (
        "tried again, because the host disturbed it: QEMU was stopped from outside, or held by the host's kernel, "
        "for 20 s"
    )


def test_a_warning_says_when_and_how_often() -> None:
    assert sentences.warning_text(Warned(text="w", load=0)) == "before the first load: w"
    assert sentences.warning_text(Warned(text="w", load=3, times=2)) == "load 3, 2 times: w"
