# SPDX-License-Identifier: GPL-2.0-or-later
"""The lane ``reset``: what breaks behind resets is blamed on its section, and nothing else on anybody."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import ended

from harness.colo.messages import Step
from harness.colo.symptom import Sign, Symptom
from harness.engines.buffers import Selection
from harness.engines.evidence import Break, Evidence
from harness.engines.schedule import Schedule, plan_loads
from harness.experiments.reset import ResetTimes, Span
from harness.lanes import reset
from harness.lanes.checks import perform
from harness.lanes.judge import Bench
from harness.oracles.isolate import Blame, Isolator
from harness.oracles.load import Judgement
from harness.results.cause import Why
from harness.results.outcome import Isolation, IsolationWay
from harness.results.verdict import Verdict

LOADS = 4
SPAN = Span(low=1.0, median=2.0, high=3.0)


class World:
    """Secondaries of which some sections, or the guest, break; told what they were given."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.breaks: set[str] = set()
        self.verdict = Verdict.CRASH
        self.blames = True
        self.step = Step.LOAD
        self.sessions: list[Selection] = []
        self.absent: list[frozenset[str]] = []
        self.bench = bench
        bench.ability = replace(bench.ability, resets_before_load=False)
        monkeypatch.setattr(reset, "_session", self._session)
        monkeypatch.setattr(reset, "judge", self._judge)
        monkeypatch.setattr(reset, "_blame", self._blame)
        monkeypatch.setattr(reset, "_drifted", lambda *_: [])
        times = ResetTimes(phase="bound", samples=1, reset=SPAN, load=SPAN, added=SPAN, parts={"ahci": SPAN})
        monkeypatch.setattr(reset, "_cost", lambda *_: times)

    def _session(self, _bench: Bench, _plan: Any, selection: Selection, absent: frozenset[str]) -> Any:
        self.absent.append(absent)
        self.sessions.append(selection)
        broken = self.breaks - selection.excluded
        step = Break(step=self.step, kind="closed", symptom=Symptom(sign=Sign.CLOSED), load=1, phase="bound")
        evidence = Evidence(
            loads_asked=LOADS, loads_acked=0 if broken else LOADS, checkpoints_acked=LOADS,
            broken=step if broken else None, exit=None, log="",
        )  # fmt: skip
        return SimpleNamespace(run=lambda: evidence)

    def _judge(self, evidence: Evidence) -> Judgement:
        bad = evidence.broken is not None
        return Judgement(verdict=self.verdict if bad else Verdict.OK, cause=ended() if bad else None)

    def _blame(self, _bench: Bench, _plan: Any, _e: Any, judgement: Judgement, behind: Any) -> Any:
        if not self.blames:
            return None
        label = min(self.breaks - behind.excluded)
        how = Isolation(way=IsolationWay.ALONE, loads=1, together=False, of=1)
        return Blame(sections=(label,), how=how, judgement=judgement)

    def cells(self) -> dict[str, Any]:
        check = reset.reset_check(("kernel", "bound"), ("ahci", "platform"), LOADS)
        return {cell.device: cell for cell in perform(check, self.bench)}


@pytest.fixture
def world(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(bench, monkeypatch)


def test_an_incoming_stream_that_was_taken_is_not_tried_before_a_search(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_loads(Schedule.WALK, ("kernel", "bound"), LOADS)
    absent, given = frozenset({"gone"}), []
    monkeypatch.setattr(Isolator, "find", lambda *args: given.append((args[1], args[-1])))
    for load in range(1, LOADS + 1):
        step = Break(step=Step.LOAD, kind="closed", symptom=Symptom(sign=Sign.CLOSED), load=load, phase="bound")
        evidence = Evidence(
            loads_asked=LOADS, loads_acked=load - 1, checkpoints_acked=load - 1, broken=step, exit=None, log=""
        )
        behind = reset._Behind(evidence=evidence, excluded=absent, absent=absent)
        reset._blame(bench, plan, evidence, Judgement(verdict=Verdict.CRASH), behind)
    assert {before for before, _ in given} == {"kernel", "bound"}
    assert all(taken == (absent if before == "kernel" else None) for before, taken in given)


def test_all_is_well_and_has_its_cost(world: World) -> None:
    cells = world.cells()
    assert {name: cell.verdict for name, cell in cells.items()} == {"ahci": Verdict.OK, "platform": Verdict.OK}
    assert (cells["ahci"].loads_acked, cells["ahci"].lane) == (LOADS, "reset")
    assert cells["ahci"].details["guest"]["added"] == {"low": 1.0, "median": 2.0, "high": 3.0}
    assert cells["ahci"].details["ahci"] == {"part": {"low": 1.0, "median": 2.0, "high": 3.0}}
    assert "platform" not in cells["platform"].details


def test_what_breaks_elsewhere_is_loaded_here(world: World) -> None:
    (own,) = world.bench.buffers.pack.sections_of("ahci")
    world.bench.blamed["bound", False] = {own}
    world.cells()
    assert [selection.excluded for selection in world.sessions] == [frozenset()]


def test_a_section_that_breaks_behind_a_reset_is_its_devices_alone(world: World) -> None:
    (own,) = world.bench.buffers.pack.sections_of("ahci")
    world.breaks = {own}
    cells = world.cells()
    assert (cells["ahci"].verdict, cells["ahci"].blamed) == (Verdict.CRASH, (own,))
    assert cells["platform"].verdict is Verdict.OK
    assert cells["platform"].excluded == (own,)
    assert world.bench.blamed == {}


@pytest.mark.parametrize(("step", "absent"), [(Step.LOAD, False), (Step.REQUEST, True)])
def test_what_a_reset_breaks_on_is_not_even_brought_in_again(world: World, step: Step, absent: bool) -> None:
    (own,) = world.bench.buffers.pack.sections_of("ahci")
    world.breaks, world.step = {own}, step
    assert world.cells()["ahci"].verdict is Verdict.CRASH
    assert world.absent == [frozenset(), frozenset({own}) if absent else frozenset()]


def test_a_device_of_which_nothing_was_loaded_is_not_ok(world: World) -> None:
    world.bench.refused = frozenset(world.bench.buffers.pack.sections_of("ahci"))
    cells = world.cells()
    assert (cells["ahci"].verdict, cells["ahci"].sections) == (Verdict.HARNESS_ERROR, ())
    assert [cause.why for cause in cells["ahci"].outcome.causes] == [Why.LEFT_OUT]
    assert cells["platform"].verdict is Verdict.OK


def test_what_no_section_does_is_nobodys_fault(world: World) -> None:
    (own,) = world.bench.buffers.pack.sections_of("ahci")
    world.breaks, world.blames, world.verdict = {own}, False, Verdict.GUEST_FAULT
    cells = world.cells()
    assert {cell.verdict for cell in cells.values()} == {Verdict.HARNESS_ERROR}


def test_a_guest_that_ran_with_sections_in_reset_state_says_nothing(world: World) -> None:
    (own,) = world.bench.buffers.pack.sections_of("ahci")
    left = reset._undecided(Judgement(verdict=Verdict.GUEST_FAULT, cause=ended()), {own: Any})  # type: ignore[dict-item]
    assert left.verdict is Verdict.HARNESS_ERROR
    assert [(cause.why, cause.sections) for cause in left.causes] == [(Why.LEFT_OUT, (own,))]  # type: ignore[union-attr]
