# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of the table in :mod:`harness.oracles.classify`, and what must not fit it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import ended, refused, symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.oracles.classify import Control, Controls, classify, results
from harness.oracles.load import Judgement
from harness.qemu.disturbance import Disturbance, Hindered
from harness.results.outcome import Moment
from harness.results.verdict import FailureClass, Verdict

ASSERTION = "qemu-system-x86_64: ../softmmu/memory.c:2610: f: Assertion `!subregion->container' failed."
LPC = "0000:00:1f.0/ICH9LPC"

CRASH = Judgement(verdict=Verdict.CRASH, cause=ended(ASSERTION, load=3), log=ASSERTION)
REJECT = Judgement(verdict=Verdict.REJECT, cause=refused("refused", load=3), named=LPC)
OK = Judgement(verdict=Verdict.OK)
GUEST_FAULT = Judgement(verdict=Verdict.GUEST_FAULT)
HOST = Judgement(verdict=Verdict.HOST, cause=Hindered(how=Disturbance.ENDED, signal="SIGKILL"))


def evidence(step: Step = Step.LOAD, load: int = 3) -> Evidence:
    broken = Break(step=step, kind="closed", symptom=symptom(""), load=load, phase="busy")
    acked = max(0, load - 1)
    return Evidence(loads_asked=20, loads_acked=acked, checkpoints_acked=acked, broken=broken, exit=None, log=ASSERTION)


def passed(loads: int = 20, *, parked: bool = False) -> Control:
    return Control(judgement=OK, asked=loads, passed=loads, parked=parked)


def broke(judgement: Judgement = CRASH, passed: int = 0, asked: int = 20, **more: object) -> Control:
    return Control(judgement=judgement, asked=asked, passed=passed, **more)  # type: ignore[arg-type]


STALE = Controls(fresh=passed(5), loadvm=passed(20), same=passed(20, parked=True), resets_before_load=False)


def test_a_cell_without_a_finding_has_no_class() -> None:
    for verdict in (Verdict.OK, Verdict.HOST, Verdict.UNSUPPORTED, Verdict.HARNESS_ERROR, Verdict.FLAKY):
        judgement = Judgement(verdict=verdict)
        assert classify(judgement, evidence(), replace(STALE, fresh=broke())) is None


@pytest.mark.parametrize(
    "controls",
    [
        Controls(),
        Controls(loadvm=passed(), same=broke(parked=True), pair=broke(), moment=Moment.RESUME),
        Controls(fresh=broke(HOST), same=broke(parked=True)),
        Controls(fresh=broke(CRASH, brought_in=False), same=broke(parked=True)),
        Controls(fresh=broke(Judgement(verdict=Verdict.FLAKY)), same=broke(parked=True)),
        Controls(fresh=Control(judgement=OK, asked=0, passed=0), same=broke(parked=True)),
    ],
)
def test_without_a_decided_fresh_there_is_no_class(controls: Controls) -> None:
    assert classify(CRASH, evidence(), controls) is None


def test_breaking_in_a_fresh_process_is_fails() -> None:
    assert classify(CRASH, evidence(), Controls(fresh=broke(moment=Moment.LOAD))) is FailureClass.FAILS
    assert classify(CRASH, evidence(), Controls(fresh=broke(passed=3, asked=5))) is FailureClass.FAILS
    assert classify(CRASH, evidence(Step.INCOMING, 0), Controls(fresh=broke())) is FailureClass.FAILS
    assert classify(CRASH, evidence(), Controls(fresh=broke(REJECT))) is FailureClass.FAILS


def test_a_fresh_process_that_dies_of_the_guests_start_is_resume() -> None:
    fresh = broke(moment=Moment.RESUME)
    assert classify(CRASH, evidence(), Controls(fresh=fresh)) is FailureClass.RESUME
    told = Controls(fresh=fresh, moment=Moment.LOAD)
    assert classify(CRASH, evidence(), told) is FailureClass.FAILS, "the secondary died in the load"
    guest = Controls(fresh=broke(GUEST_FAULT, moment=Moment.RESUME))
    assert classify(GUEST_FAULT, evidence(), guest) is FailureClass.FAILS, "the start of the guest had passed"


def test_a_fresh_process_that_breaks_otherwise_says_nothing() -> None:
    other = replace(REJECT, named="serial")
    assert classify(REJECT, evidence(), Controls(fresh=broke(other))) is None
    assert classify(CRASH, evidence(), Controls(fresh=broke(GUEST_FAULT), same=broke(parked=True))) is None


def test_a_real_pair_that_passes_what_broke_the_played_one_takes_the_class_away() -> None:
    controls = Controls(fresh=passed(5), same=broke(parked=True))
    assert classify(CRASH, evidence(), controls) is FailureClass.NOT_REENTRANT
    assert classify(CRASH, evidence(), replace(controls, pair=passed(3))) is None
    assert classify(CRASH, evidence(), replace(controls, pair=passed(2))) is FailureClass.NOT_REENTRANT
    late = broke(Judgement(verdict=Verdict.HARNESS_ERROR), passed=4)
    assert classify(CRASH, evidence(), replace(controls, pair=late)) is None, "four loads did pass"
    assert classify(CRASH, evidence(), replace(controls, pair=broke(passed=4))) is FailureClass.NOT_REENTRANT


@pytest.mark.parametrize("place", [(Step.INCOMING, 0), (Step.SEND, 3), (Step.REQUEST, 1)])
def test_a_break_where_nothing_is_loaded_has_no_class_when_fresh_passes(place: tuple[Step, int]) -> None:
    controls = Controls(fresh=passed(5), loadvm=broke(), same=broke(parked=True))
    assert classify(CRASH, evidence(*place), controls) is None


def test_death_after_an_acknowledged_load_is_resume() -> None:
    assert classify(CRASH, evidence(Step.REQUEST, 3), Controls(fresh=passed(5))) is FailureClass.RESUME
    assert classify(REJECT, evidence(Step.REQUEST, 3), Controls(fresh=passed(5))) is None


def test_the_marker_tells_resume() -> None:
    controls = Controls(fresh=passed(5), same=broke(parked=True))
    assert classify(CRASH, evidence(), replace(controls, moment=Moment.RESUME)) is FailureClass.RESUME
    assert classify(CRASH, evidence(), replace(controls, moment=Moment.LOAD)) is FailureClass.NOT_REENTRANT
    fault = replace(controls, same=None, moment=Moment.RESUME)
    assert classify(GUEST_FAULT, evidence(), fault) is None, "a guest that breaks was started"


def test_as_many_loads_with_one_start_pass_is_resume() -> None:
    controls = Controls(
        fresh=passed(5),
        same=broke(passed=2, parked=True),
        back_to_back=passed(3, parked=True),
        resets_before_load=False,
    )
    assert classify(CRASH, evidence(), controls) is FailureClass.RESUME
    fewer = replace(controls, back_to_back=passed(2, parked=True))
    assert classify(CRASH, evidence(), fewer) is FailureClass.NOT_REENTRANT
    unknown = replace(controls, resets_before_load=None)
    assert classify(CRASH, evidence(), unknown) is FailureClass.NOT_REENTRANT
    in_load = replace(controls, moment=Moment.LOAD)
    assert classify(CRASH, evidence(), in_load) is FailureClass.NOT_REENTRANT


@pytest.mark.parametrize(
    "controls",
    [
        replace(STALE, loadvm=broke()),
        replace(STALE, loadvm=None, same=broke(parked=True)),
        replace(STALE, same=broke(parked=True)),
        Controls(fresh=passed(5), back_to_back=broke(parked=True), resets_before_load=True),
    ],
)
def test_a_used_process_or_the_same_bytes_twice_is_not_reentrant(controls: Controls) -> None:
    assert classify(CRASH, evidence(), controls) is FailureClass.NOT_REENTRANT


def test_the_same_bytes_must_break_alike() -> None:
    named = replace(CRASH, named=LPC)
    other = Controls(fresh=passed(5), same=broke(replace(REJECT, named="serial"), parked=True))
    assert classify(named, evidence(), other) is None
    fault = Controls(fresh=passed(5), same=broke(GUEST_FAULT))
    assert classify(CRASH, evidence(), fault) is None


def test_only_another_state_breaks_and_a_reset_mends_it() -> None:
    assert classify(CRASH, evidence(), STALE) is FailureClass.STALE_WITHOUT_RESET


@pytest.mark.parametrize(
    "controls",
    [
        replace(STALE, loadvm=None),
        replace(STALE, same=None),
        replace(STALE, loadvm=passed(2)),
        replace(STALE, same=passed(2, parked=True)),
        replace(STALE, loadvm=passed(20, parked=True)),
        replace(STALE, loadvm=broke(brought_in=False)),
        replace(STALE, loadvm=broke(HOST, passed=19)),
        replace(STALE, resets_before_load=True),
        replace(STALE, resets_before_load=None),
    ],
)
def test_stale_needs_every_one_of_its_controls(controls: Controls) -> None:
    assert classify(CRASH, evidence(), controls) is None


def test_a_parked_guest_has_no_fault_to_show() -> None:
    seen = Evidence(loads_asked=20, loads_acked=20, checkpoints_acked=20, broken=None, exit=None, log="")
    assert classify(GUEST_FAULT, seen, STALE) is None
    running = replace(STALE, same=passed(20))
    assert classify(GUEST_FAULT, seen, running) is FailureClass.STALE_WITHOUT_RESET
    assert classify(GUEST_FAULT, seen, replace(running, loadvm=passed(19))) is None


def test_a_control_is_made_of_what_an_engine_brought() -> None:
    assert Control.of(CRASH, evidence(Step.INCOMING, 2)) == broke(passed=1, moment=Moment.LOAD)
    assert Control.of(CRASH, evidence(Step.RESUME, 2)).moment is Moment.RESUME
    assert Control.of(CRASH, evidence(Step.LOAD, 2)).moment is None, "a secondary cannot tell"
    assert not Control.of(CRASH, evidence(Step.INCOMING, 0)).brought_in
    assert Control.of(OK, replace(evidence(), broken=None), parked=True).parked


def test_what_the_controls_gave_is_told_in_their_order() -> None:
    assert results(Controls(), CRASH) == ()
    seen = results(Controls(pair=broke(asked=5), loadvm=passed(20), fresh=broke(HOST, passed=2, asked=5)), CRASH)
    assert [(each.name, each.verdict, each.passed, each.asked, each.decided, each.alike) for each in seen] == [
        ("fresh", Verdict.HOST, 2, 5, False, False),
        ("loadvm", Verdict.OK, 20, 20, True, False),
        ("pair", Verdict.CRASH, 0, 5, True, True),
    ]
    assert seen[2].cause == CRASH.cause


def test_alike_is_the_same_message_of_qemu() -> None:
    other = replace(CRASH, log="ERROR:hw/x.c:1: other")
    assert not results(Controls(pair=broke()), other)[0].alike
    silent = Judgement(verdict=Verdict.CRASH)
    assert not results(Controls(pair=broke(silent)), silent)[0].alike


def test_a_state_that_could_not_be_brought_in_is_told() -> None:
    (told,) = results(Controls(loadvm=broke(CRASH, brought_in=False, moment=Moment.RESUME)), CRASH)
    assert (told.brought_in, told.decided, told.moment) == (False, False, Moment.RESUME)
