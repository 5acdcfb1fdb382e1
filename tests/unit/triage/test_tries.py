# SPDX-License-Identifier: GPL-2.0-or-later
"""What a try of a candidate says: it failed, it did not, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_cells import made_cell, symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.errors import QemuError
from harness.experiments.leak import LeakRun
from harness.oracles.load import judge
from harness.qemu.disturbance import Disturbance, Disturbed, Hindered, current_account
from harness.qemu.process import Exit
from harness.qemu.scope import ProcessScope
from harness.results.cause import Cause, Leaked, LoadedBy, Resource
from harness.results.document import Cell
from harness.results.verdict import Verdict
from harness.triage import tries
from harness.triage.reduced import Candidate
from harness.triage.tries import Target, Tries

ASSERTION = "qemu: ../x.c:1: f: Assertion `a' failed."
OTHER = "qemu: ../x.c:2: g: Assertion `b' failed."
REFUSED = "qemu: error while loading state for instance 0x0 of device 'timer'"
LEAK = made_cell(
    "pc-q35-7.2/d/bound/leak",
    Verdict.LEAK,
    causes=(Leaked(section="timer", resource=Resource.MEMORY, per_load=96, low=90, high=99, unit="bytes", loads=9),),
    blamed=("timer",),
)


def seen(broken: Break | None = None, log: str = "", exit: Exit | None = None) -> Evidence:
    acked = 5 if broken is None else max(0, broken.load - 1)
    return Evidence(loads_asked=5, loads_acked=acked, checkpoints_acked=acked, broken=broken, exit=exit, log=log)


def broke(kind: str, load: int = 1) -> Break:
    step = Step.LOAD if load else Step.INCOMING
    return Break(step=step, kind=kind, symptom=symptom("x"), load=load, phase="bound")


ABORTED = Exit(status=-6, signal="SIGABRT")
DIED = seen(broke("closed"), ASSERTION, ABORTED)
NOT_TAKEN = seen(broke("refused", 0), REFUSED)


def cell_of(place: str, evidence: Evidence) -> Cell:
    """What the run made of it."""
    outcome = judge(evidence).outcome
    return made_cell(place, outcome.verdict, causes=outcome.causes, blamed=("timer",))


CRASH = cell_of("pc-q35-7.2/d/bound/same", DIED)
REJECT = cell_of("pc-q35-7.2/d/bound/plain", NOT_TAKEN)


def tries_of(cell: Cell, evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> Tries:
    target = cast(Target, SimpleNamespace(cell=cell, kind="load", at_start=cell is REJECT, scope=ProcessScope()))
    made = Tries(target)
    monkeypatch.setattr(made, "session", lambda _: SimpleNamespace(run=lambda: evidence))
    return made


@pytest.mark.parametrize(
    ("cell", "evidence", "hit", "tested"),
    [
        (CRASH, DIED, True, True),
        (CRASH, seen(), False, True),
        (CRASH, seen(broke("refused"), REFUSED), False, False),
        (CRASH, seen(broke("closed"), OTHER, ABORTED), False, False),
        (CRASH, seen(broke("late")), False, False),
        # before any checkpoint it is another experiment
        (CRASH, seen(broke("closed", 0), ASSERTION, ABORTED), False, False),
        (REJECT, NOT_TAKEN, True, True),
        (REJECT, seen(broke("closed", 0), OTHER, ABORTED), False, False),
        # the incoming stream was taken: what a checkpoint behind it does is no matter
        (REJECT, seen(broke("refused"), REFUSED), False, True),
        (REJECT, seen(), False, True),
    ],
)
def test_only_loads_that_were_all_acknowledged_say_that_it_does_not_fail(
    cell: Cell, evidence: Evidence, hit: bool, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = tries_of(cell, evidence, monkeypatch).attempt(cast(Candidate, None))
    assert (attempt.hit, attempt.tested) == (hit, tested)


def ended_from_outside(*evidence: Evidence) -> Callable[[], Evidence]:
    """Sessions of which all but the last have a QEMU that somebody ended."""
    left = list(evidence)

    def run() -> Evidence:
        if len(left) > 1:
            current_account().ended(Hindered(how=Disturbance.ENDED, signal="SIGTERM"))
        return left.pop(0)

    return run


def test_a_qemu_that_somebody_ended_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tries_of(CRASH, DIED, monkeypatch)
    killed = seen(broke("closed"), exit=Exit(status=0, signal="SIGTERM"))
    monkeypatch.setattr(made, "session", lambda _: SimpleNamespace(run=ended_from_outside(killed, killed, DIED)))
    assert made.attempt(cast(Candidate, None)).hit
    monkeypatch.setattr(
        made, "session", lambda _: SimpleNamespace(run=ended_from_outside(killed, killed, killed, DIED))
    )
    with pytest.raises(Disturbed):
        made.attempt(cast(Candidate, None))


def test_a_qemu_that_does_not_start_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tries_of(CRASH, DIED, monkeypatch)

    def fail(_: Candidate) -> Any:
        raise QemuError("no such option")

    monkeypatch.setattr(made, "session", fail)
    attempt = made.attempt(cast(Candidate, None))
    assert (attempt.hit, attempt.tested) == (False, False)


@pytest.mark.parametrize(("leaks", "hit", "tested"), [(True, True, True), (False, False, True), (None, False, False)])
def test_a_section_that_is_refused_is_no_section_that_does_not_leak(
    leaks: bool | None, hit: bool, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def still(*_: object, once: bool) -> tuple[bool | None, int]:
        asked.append(once)
        return leaks, 7

    made = leak_tries(monkeypatch, still)
    attempt = made.attempt(cast(Candidate, SimpleNamespace(own=frozenset({"timer"}))))
    assert (attempt.hit, attempt.tested, attempt.loads, asked) == (hit, tested, 7, [True])


def leak_tries(monkeypatch: pytest.MonkeyPatch, still: Callable[..., Any]) -> Tries:
    target = cast(Target, SimpleNamespace(cell=LEAK, kind="leak", once=True, scope=ProcessScope()))
    made = Tries(target)
    monkeypatch.setattr(made, "_bench", lambda _: None)
    monkeypatch.setattr(tries, "still_leaks", still)
    return made


def test_a_measurement_that_did_not_come_to_its_section_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = leak_tries(monkeypatch, lambda *_, **__: (True, 1))
    empty = LeakRun(framework=None, control=None, sections=())
    monkeypatch.setattr(made, "_bench", lambda _: SimpleNamespace(run=lambda *_, **__: empty))
    attempt = made.measure_leak(cast(Candidate, SimpleNamespace(own=frozenset({"timer"}))))
    assert (attempt.hit, attempt.tested) == (False, False)


@pytest.mark.parametrize(("way", "once"), [(LoadedBy.CHECKPOINT, True), (LoadedBy.BACK_TO_BACK, False)])
def test_a_leak_is_made_smaller_in_the_way_that_it_was_found(way: LoadedBy, once: bool) -> None:
    causes: tuple[Cause, ...] = (
        Leaked(section="t", resource=Resource.MEMORY, per_load=9, low=9, high=9, unit="bytes", loads=9, way=way),
    )
    cell = made_cell("pc-q35-7.2/d/bound/leak", Verdict.LEAK, causes=causes)
    target = Target(cell=cell, binary=cast(Any, None), ability=cast(Any, None), buffers=cast(Any, None))
    assert target.once is once
