# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging a cell, with sessions that are told what to come to: whose fault it is, and what is left out afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.colo.primary import ENABLE_COLO
from harness.engines.evidence import Break, Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import LoadPlan, Schedule
from harness.errors import HostError, QemuError, Stopped
from harness.lanes import judge as judge_module
from harness.lanes.judge import MAX_BLAMED, Bench, Classed, judge_cell, repeated, take_turns
from harness.oracles.isolate import Blame
from harness.oracles.load import Judgement
from harness.qemu.process import Exit
from harness.results.cause import Undecided, Why
from harness.results.document import Cell
from harness.results.key import CellKey, Route
from harness.results.outcome import Isolation, IsolationWay, Repeats
from harness.results.plan import CellPlan
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade


RUNNING, PARKED = GuestMode.RUNNING, GuestMode.PARKED


def plan(device: str, *phases: str, schedule: Schedule = Schedule.SAME, mode: GuestMode = RUNNING) -> CellPlan:
    route = Route(recorder="7.2.22", loader="7.2.22")
    key = CellKey(
        route=route, machine="pc-i440fx-7.2", device=device, phases=phases, lane=str(schedule), guest_mode=str(mode)
    )
    return CellPlan(key=key, loads=10)


class World:
    """A QEMU on paper: it dies at a load when one of the given sections is in the buffer of the given phase."""

    def __init__(self) -> None:
        self.kills: dict[str, dict[str, int]] = {}
        self.blind = False
        self.chokes: list[str] = []
        self.spoils = ""
        self.spoils_always = False
        self.raises: Exception | None = None
        self.evidence: list[Evidence] = []
        self.sessions: list[Any] = []
        self.searches: list[tuple[str, str, int, frozenset[str]]] = []

    def run(self, session: Any, on_loads: Callable[[int], None]) -> Evidence:
        self.sessions.append(session)
        if self.raises:
            raise self.raises
        if self.evidence:
            return self.evidence.pop(0)
        asked: LoadPlan = session.plan
        if not session.absent.issuperset(self.chokes):
            broken = Break(
                step=Step.INCOMING, kind="closed", symptom=symptom("x"), load=0, phase=asked.checkpoints[0].phase
            )
            return evidence(0, broken=broken, exit=Exit(status=-6, signal="SIGABRT"))
        if self.spoils and (self.spoils_always or self.spoils not in session.absent):
            broken = Break(
                step=Step.LOAD, kind="closed", symptom=symptom("x"), load=1, phase=asked.checkpoints[0].phase
            )
            return evidence(0, broken=broken, exit=Exit(status=-6, signal="SIGABRT"))
        seen = 0
        for checkpoint in asked.checkpoints:
            load = self._kills_at(checkpoint.phase, session)
            if load and seen + checkpoint.repeat >= load:
                on_loads(load - 1)
                broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=load, phase=checkpoint.phase)
                return evidence(load - 1, broken=broken, exit=Exit(status=-6, signal="SIGABRT"))
            seen += checkpoint.repeat
        on_loads(asked.loads)
        return evidence(asked.loads)

    def _kills_at(self, phase: str, session: Any) -> int | None:
        culprits = self.kills.get(phase, {})
        chosen = session.selection
        there = [s for s in culprits if s not in chosen.excluded and (chosen.whole or s in chosen.own)]
        return min((culprits[s] for s in there), default=None)

    def find(
        self,
        before: str,
        phase: str,
        load: int,
        excluded: frozenset[str],
        verdict: Verdict,
        absent: frozenset[str] | None,
    ) -> Blame | None:
        self.searches.append((before, phase, load, excluded))
        left = {s: at for s, at in self.kills.get(phase, {}).items() if s not in excluded}
        if self.blind or not (left or self.spoils):
            return None
        first = self.spoils or min(left, key=lambda s: (left[s], s))
        return Blame(
            sections=tuple(first.split("&")),
            how=Isolation(way=IsolationWay.ALONE),
            judgement=Judgement(verdict=verdict),
        )

    def find_incoming(self, phase: str, absent: frozenset[str], judgement: Judgement) -> Blame | None:
        self.searches.append((phase, phase, 0, absent))
        left = [label for label in self.chokes if label not in absent]
        how = Isolation(way=IsolationWay.ALONE)
        return Blame(sections=(left[0],), how=how, judgement=judgement) if left else None


def evidence(acked: int, **more: Any) -> Evidence:
    given: dict[str, Any] = {
        "loads_asked": 10, "loads_acked": acked, "checkpoints_acked": acked,
        "broken": None, "exit": None, "log": "", "load_seconds": 0.5,
    }  # fmt: skip
    return Evidence(**{**given, **more})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    class FakeSession:
        def __init__(self, **given: Any) -> None:
            self.__dict__.update(given)

        def run(self, on_loads: Callable[[int], None] = lambda _: None) -> Evidence:
            return made.run(self, on_loads)

    class FakeIsolator:
        def __init__(self, **given: Any) -> None:
            self.find = made.find
            self.find_incoming = made.find_incoming

    def in_turn(turns: Sequence[tuple[Any, Any]]) -> list[Evidence]:
        found: list[Evidence] = []
        for session, on_loads in turns:
            found.append(made.run(session, on_loads))
            if found[-1].broken:
                break
        return found

    monkeypatch.setattr(judge_module, "in_turn", in_turn)
    monkeypatch.setattr(judge_module, "Session", FakeSession)
    monkeypatch.setattr(judge_module, "Isolator", FakeIsolator)
    return made


def cells(planned: CellPlan, bench: Bench, told: list[int] | None = None) -> list[Cell]:
    return list(judge_cell(planned, bench, lambda _, total: told.append(total) if told is not None else None))


def test_a_row_that_loads_is_ok(world: World, bench: Bench, handmade: Handmade) -> None:
    told: list[int] = []
    (cell,) = cells(plan("ahci", "bound"), bench, told)
    assert (cell.verdict, cell.loads_asked, cell.loads_acked) == (Verdict.OK, 10, 10)
    assert cell.id == "7.2.22/pc-i440fx-7.2/ahci/bound/same"
    assert (cell.outcome.causes, cell.excluded, cell.sections) == ((), (), (handmade.ahci,))
    assert (cell.loads_per_second, cell.accel, cell.record_qemu.sha256) == (20.0, "tcg", "12345678" * 8)
    assert told == [10]


def turn_cells(bench: Bench, *devices: str) -> list[Cell]:
    plans = [plan(device, "bound", schedule=Schedule.BACK_TO_BACK) for device in devices]
    take_turns(plans, bench, lambda *_: None)
    return [cell for each in plans for cell in cells(each, bench)]


def test_rows_that_load_their_own_sections_take_turns(world: World, bench: Bench) -> None:
    found = turn_cells(bench, "platform", "ahci")
    assert [(cell.device, cell.verdict, cell.loads_acked) for cell in found] == [
        ("platform", Verdict.OK, 10),
        ("ahci", Verdict.OK, 10),
    ]
    assert len(world.sessions) == 2
    # of the whole state there is one session anyway
    take_turns([plan("platform", "bound"), plan("ahci", "bound")], bench, lambda *_: None)
    assert len(world.sessions) == 2


def test_what_broke_behind_others_and_passes_alone_is_no_rows(world: World, bench: Bench) -> None:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=2, phase="bound")
    crash = evidence(1, broken=broken, exit=Exit(status=-6, signal="SIGABRT"))
    late = evidence(1, broken=replace(broken, kind="late"))
    once = Repeats(seen=1, of=2, verdict=Verdict.CRASH, others=(Verdict.OK,))
    for seen, platforms in (
        # a crash happened, though it does not come back: the machine's, for the row before may have done it
        (crash, [("platform", Verdict.CRASH, once, ())]),
        (late, []),
    ):
        world.evidence, world.blind = [evidence(10), seen, evidence(10)], True
        first, second, *more = turn_cells(bench, "platform", "ahci")
        assert first.verdict is Verdict.OK
        assert (second.device, second.verdict, second.loads_acked) == ("ahci", Verdict.OK, 10)
        assert [(cell.device, cell.verdict, cell.outcome.repeats, cell.outcome.sections) for cell in more] == platforms
        assert {cell.sections for cell in more} <= {first.sections}
        assert world.evidence == []


def refused(section: str, load: int) -> Evidence:
    broken = Break(step=Step.LOAD, kind="refused", symptom=symptom("x"), load=load, phase="bound")
    return evidence(load - 1, broken=broken, log=f"qemu-system-x86_64: Missing section footer for {section}\n")


def test_what_was_refused_behind_others_and_passes_alone_is_the_device_s_whose_section_is_named(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    bench.rows = frozenset({"platform", "ahci", "virtio-blk"})
    for section, device in ((handmade.blk, "virtio-blk"), ("i8259", "platform")):
        world.evidence, world.blind = [evidence(10), refused(section, 2), evidence(10)], True
        _, second, finding = turn_cells(bench, "platform", "ahci")
        assert (second.device, second.verdict) == ("ahci", Verdict.OK)
        assert (finding.device, finding.verdict, finding.blamed) == (device, Verdict.REJECT, (section,))
        assert set(finding.sections) == set(bench.buffers.pack.sections_of(device))


def test_a_refusal_that_names_its_section_is_put_to_no_device_that_it_happens_to_pass_without(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    # refused in three of three, and by chance not without ahci
    world.blind, world.evidence = True, [refused(handmade.blk, 3)] * 3 + [evidence(10)]
    (beside,) = cells(plan("ahci", "bound"), bench)
    assert (beside.verdict, beside.excluded) == (Verdict.OK, (handmade.blk,))
    (finding,) = cells(plan("virtio-blk", "bound"), bench)
    assert (finding.verdict, finding.blamed) == (Verdict.REJECT, (handmade.blk,))
    assert finding.outcome.isolation is None


def test_who_breaks_in_its_turn_is_found_and_the_others_go_on(world: World, bench: Bench) -> None:
    world.kills = {"bound": {bench.buffers.pack.sections_of("ahci")[0]: 2}}
    found = turn_cells(bench, "platform", "ahci")
    assert {cell.device for cell in found if cell.verdict is Verdict.CRASH} == {"ahci"}
    assert found[0].verdict is Verdict.OK


def test_fewer_loads_than_asked_are_never_ok(world: World, bench: Bench) -> None:
    for acked in range(10):
        world.evidence = [evidence(acked)]
        bench.sessions.clear()
        (cell,) = cells(plan("ahci", "bound"), bench)
        assert cell.verdict is Verdict.HARNESS_ERROR
        assert cell.outcome.causes == (Undecided(why=Why.LOADS, acked=acked, asked=10),)


def test_a_culprit_of_the_row_is_a_finding_and_the_rest_is_judged_without_it(world: World, bench: Bench) -> None:
    world.kills = {"bound": {"i8259#1": 3}}
    finding, rest = cells(plan("platform", "bound"), bench)
    assert (finding.verdict, finding.loads_acked) == (Verdict.CRASH, 2)
    assert (finding.blamed, finding.outcome.load, finding.outcome.phase) == (("i8259#1",), 3, "bound")
    assert (finding.outcome.exit, finding.outcome.isolation) == ("SIGABRT", Isolation(way=IsolationWay.ALONE))
    assert finding.excluded == ()
    assert (rest.verdict, rest.id, rest.excluded) == (Verdict.OK, finding.id + "+rest", ("i8259#1",))
    assert rest.sections == ("cpu", "cpu_common", "i8259")
    assert rest.is_rest
    assert not finding.is_rest


def test_a_row_of_one_section_has_no_rest(world: World, bench: Bench, handmade: Handmade) -> None:
    world.kills = {"bound": {handmade.ahci: 1}}
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert cell.verdict is Verdict.CRASH


def test_a_culprit_of_another_row_is_left_out_and_remembered_for_its_phase(world: World, bench: Bench) -> None:
    world.kills = {"bound": {"i8259": 1}}
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert (cell.verdict, cell.excluded) == (Verdict.OK, ("i8259",))
    assert len(world.sessions) == 2
    # known from now on: no second search, in a walk over that phase neither
    (cell,) = cells(plan("virtio-blk", "bound"), bench)
    assert (cell.verdict, cell.excluded, len(world.sessions)) == (Verdict.OK, ("i8259",), 2)
    (cell,) = cells(plan("virtio-blk", "kernel", "bound", schedule=Schedule.WALK), bench)
    assert (cell.excluded, len(world.sessions)) == (("i8259",), 3)
    assert len(world.searches) == 1
    # and of no importance in another phase
    (cell,) = cells(plan("virtio-blk", "kernel"), bench)
    assert (cell.verdict, cell.excluded) == (Verdict.OK, ())
    # its own row is not spared
    assert [c.verdict for c in cells(plan("platform", "bound"), bench)] == [Verdict.CRASH, Verdict.OK]


def test_one_session_of_the_whole_state_answers_for_every_device(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    world.kills = {"bound": {"i8259": 3, handmade.ahci: 5}}
    found = {name: cells(plan(name, "bound"), bench) for name in ("platform", "ahci", "virtio-blk")}
    # with everything, without the first culprit, without both: no session was made for a device alone
    assert [sorted(session.selection.excluded) for session in world.sessions] == [
        [], ["i8259"], sorted(["i8259", handmade.ahci])
    ]  # fmt: skip
    assert len(world.searches) == 2
    assert {name: [(c.verdict, c.loads_acked) for c in mine] for name, mine in found.items()} == {
        "platform": [(Verdict.CRASH, 2), (Verdict.OK, 10)],
        "ahci": [(Verdict.CRASH, 4)],
        "virtio-blk": [(Verdict.OK, 10)],
    }
    everything = [cell for mine in found.values() for cell in mine]
    assert [cell.shared_with for cell in everything] == ["", "", "", "7.2.22/pc-i440fx-7.2/platform/bound/same+rest"]
    # each load is counted once in a total
    assert sum(cell.own_loads for cell in everything) == 2 + 10 + 4


def test_a_session_that_was_taken_apart_is_the_finding_of_whose_section_it_was(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    world.kills = {"bound": {"i8259": 3, handmade.ahci: 5, handmade.blk: 7}}
    found = [cell for name in ("platform", "ahci", "virtio-blk") for cell in cells(plan(name, "bound"), bench)]
    # one culprit after the other was left out; nobody had a session or a search of its own
    assert [len(session.selection.excluded) for session in world.sessions] == [0, 1, 2, 3]
    assert len(world.searches) == 3
    crashes = [(c.device, c.blamed, c.loads_acked) for c in found if c.verdict is Verdict.CRASH]
    assert crashes == [("platform", ("i8259",), 2), ("ahci", (handmade.ahci,), 4), ("virtio-blk", (handmade.blk,), 6)]


def test_loads_of_a_devices_own_sections_are_not_shared(world: World, bench: Bench) -> None:
    options: tuple[dict[str, Any], ...] = ({"schedule": Schedule.BACK_TO_BACK}, {"mode": GuestMode.PARKED})
    for more in options:
        world.sessions.clear()
        mine = [cell for name in ("ahci", "virtio-blk") for cell in cells(plan(name, "bound", **more), bench)]
        assert [cell.shared_with for cell in mine] == ["", ""]
        assert len(world.sessions) == 2


def test_culprits_in_both_rows_do_not_hide_each_other(world: World, bench: Bench, handmade: Handmade) -> None:
    world.kills = {"bound": {"i8259": 1, handmade.ahci: 4}}
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert (cell.verdict, cell.excluded) == (Verdict.CRASH, ("i8259",))
    assert cell.blamed == (handmade.ahci,)


def test_a_pair_that_needs_a_section_of_the_row_is_the_rows_finding(world: World, bench: Bench) -> None:
    world.evidence = [
        evidence(0, broken=Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=1, phase="bound"),
                 exit=Exit(status=-11, signal="SIGSEGV"))
    ]  # fmt: skip
    world.kills = {"bound": {"cpu&i8259": 99}}
    finding, rest = cells(plan("platform", "bound"), bench)
    assert finding.blamed == ("cpu", "i8259")
    assert rest.excluded == ("cpu", "i8259")


def test_what_no_section_does_alone_is_still_a_finding(world: World, bench: Bench) -> None:
    world.kills, world.blind = {"bound": {"i8259": 2}}, True
    (cell,) = cells(plan("platform", "bound"), bench)
    assert cell.verdict is Verdict.CRASH
    assert (cell.blamed, cell.outcome.isolation, cell.outcome.load) == ((), None, 2)


def test_a_crash_that_does_not_come_back_is_one_all_the_same(world: World, bench: Bench) -> None:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=2, phase="bound")
    world.evidence = [evidence(1, broken=broken, exit=Exit(status=-6, signal="SIGABRT")), evidence(10), evidence(10)]
    (cell,) = cells(plan("platform", "bound"), bench)
    assert cell.verdict is Verdict.CRASH
    assert cell.outcome.repeats == Repeats(seen=1, of=3, verdict=Verdict.CRASH, others=(Verdict.OK,))


def test_a_refusal_that_does_not_come_back_is_its_who_qemu_names(world: World, bench: Bench) -> None:
    log = "qemu-system-x86_64: error while loading state for instance 0x1 of device 'i8259'"
    broken = Break(step=Step.LOAD, kind="refused", symptom=symptom("x"), load=2, phase="bound")
    once = [evidence(1, broken=broken, log=log), evidence(10), evidence(10)]
    world.blind = True
    world.evidence = [*once, evidence(10)]
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert (cell.verdict, cell.excluded, world.evidence) == (Verdict.OK, ("i8259#1",), [])
    bench.sessions.clear()
    bench.blamed.clear()
    world.evidence = [*once, evidence(10)]
    finding, rest = cells(plan("platform", "bound"), bench)
    assert (finding.verdict, finding.blamed, finding.outcome.isolation) == (Verdict.REJECT, ("i8259#1",), None)
    assert finding.outcome.repeats == Repeats(seen=1, of=3, verdict=Verdict.REJECT, others=(Verdict.OK,))
    assert (rest.verdict, rest.excluded) == (Verdict.OK, ("i8259#1",))


def test_what_breaks_of_the_platform_in_a_guest_where_it_is_no_row_is_told(world: World, bench: Bench) -> None:
    world.kills = {"bound": {"i8259#1": 3}}
    bench.rows = frozenset({"ahci"})
    finding, row = cells(plan("ahci", "bound"), bench)
    assert (finding.device, finding.verdict, finding.blamed) == ("platform", Verdict.CRASH, ("i8259#1",))
    assert "i8259#1" in finding.sections
    assert (row.device, row.verdict, row.excluded) == ("ahci", Verdict.OK, ("i8259#1",))


def test_a_hang_that_does_not_come_back_is_flaky(world: World, bench: Bench) -> None:
    broken = Break(step=Step.LOAD, kind="late", symptom=symptom("x"), load=2, phase="bound")
    world.evidence = [evidence(1, broken=broken), evidence(10), evidence(1, broken=broken)]
    (cell,) = cells(plan("platform", "bound"), bench)
    assert (cell.verdict, cell.outcome.came_to) == (Verdict.FLAKY, Verdict.HANG)
    assert cell.outcome.repeats == Repeats(seen=2, of=3, verdict=Verdict.HANG, others=(Verdict.OK,))


@pytest.mark.parametrize(
    ("first", "again", "verdict", "seen"),
    [
        (Verdict.CRASH, [Verdict.CRASH, Verdict.CRASH], Verdict.CRASH, (3, 3)),
        (Verdict.REJECT, [Verdict.OK, Verdict.HANG], Verdict.REJECT, (1, 3)),
        (Verdict.GUEST_FAULT, [Verdict.OK, Verdict.GUEST_FAULT], Verdict.FLAKY, (2, 3)),
        (Verdict.HANG, [Verdict.HANG, Verdict.HANG], Verdict.HANG, (3, 3)),
        (Verdict.HANG, [Verdict.HOST, Verdict.HARNESS_ERROR], Verdict.HANG, (1, 1)),
    ],
)
def test_what_comes_back_now_and_then(
    first: Verdict, again: list[Verdict], verdict: Verdict, seen: tuple[int, int]
) -> None:
    found, repeats = repeated(first, again)
    assert (found, (repeats.seen, repeats.of), repeats.verdict) == (verdict, seen, first)


@pytest.mark.parametrize(
    "seen",
    [
        evidence(10, exit=Exit(status=0)),
        evidence(10, events=("RESET",)),
    ],
)
def test_no_section_is_sought_where_no_load_broke(world: World, bench: Bench, seen: Evidence) -> None:
    world.evidence = [seen] * 3
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert cell.verdict.is_finding
    assert world.searches == []


def test_what_breaks_the_incoming_stream_is_its_own_rows_finding_and_no_others(world: World, bench: Bench) -> None:
    culprit = bench.buffers.pack.sections_of("ahci")[0]
    world.chokes = [culprit]
    assert [cell.verdict for cell in cells(plan("platform", "bound"), bench)] == [Verdict.OK]
    assert world.searches == [("bound", "bound", 0, frozenset())]
    finding, *rest = cells(plan("ahci", "bound"), bench)
    assert (finding.verdict, finding.blamed, finding.outcome.load) == (Verdict.CRASH, (culprit,), 0)
    assert all(cell.verdict is Verdict.OK and cell.excluded == (culprit,) for cell in rest)
    assert [hint.section for hint in bench.hints] == [culprit, culprit]
    # in another phase nobody searches again
    assert [cell.verdict for cell in cells(plan("platform", "kernel"), bench)] == [Verdict.OK]
    assert len(world.searches) == 1


def test_what_breaks_by_the_incoming_stream_though_no_load_has_it_is_left_out_of_that_too(
    world: World, bench: Bench
) -> None:
    world.spoils, bench.rows = "i8259", frozenset({"ahci"})
    *findings, row = cells(plan("ahci", "bound"), bench)
    assert {(cell.device, cell.verdict, cell.blamed) for cell in findings} == {("platform", Verdict.CRASH, ("i8259",))}
    assert (row.device, row.verdict, row.excluded) == ("ahci", Verdict.OK, ("i8259",))
    assert world.sessions[-1].absent == {"i8259"}


def test_what_is_left_out_everywhere_and_still_breaks_it_is_not_asked_for_ever(world: World, bench: Bench) -> None:
    world.spoils, world.spoils_always, bench.rows = "i8259", True, frozenset({"ahci"})
    *findings, row = cells(plan("ahci", "bound"), bench)
    assert {(cell.device, cell.blamed) for cell in findings} == {("platform", ("i8259",))}
    assert (row.device, row.verdict) == ("ahci", Verdict.HARNESS_ERROR)
    assert row.outcome.causes == (Undecided(why=Why.LEFT_OUT, sections=("i8259",)),)


def test_two_that_break_the_incoming_stream_are_both_found(world: World, bench: Bench) -> None:
    world.chokes = ["i8259", bench.buffers.pack.sections_of("ahci")[0]]
    found = [*cells(plan("platform", "bound"), bench), *cells(plan("ahci", "bound"), bench)]
    blamed = [(cell.device, cell.blamed) for cell in found if cell.verdict is Verdict.CRASH]
    assert blamed == [("platform", ("i8259",)), ("ahci", (world.chokes[1],))]


def test_a_row_with_ever_more_culprits_is_given_up(
    world: World, bench: Bench, handmade: Handmade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module, "MAX_BLAMED", 2)
    assert MAX_BLAMED == 8
    world.kills = {"bound": dict.fromkeys(("cpu", "cpu_common", "i8259", "i8259#1"), 1)}
    found = cells(plan("platform", "bound"), bench)
    assert [cell.verdict for cell in found] == [Verdict.CRASH] * 3
    assert [cell.blamed for cell in found] == [("cpu",), ("cpu_common",), ("i8259",)]


@pytest.mark.parametrize(
    ("load", "before", "phase"), [(1, "kernel", "kernel"), (2, "kernel", "bound"), (3, "bound", "kernel")]
)
def test_the_search_starts_in_the_state_before_the_load(
    world: World, bench: Bench, load: int, before: str, phase: str
) -> None:
    world.kills = {phase: {"i8259": load}}
    cells(plan("platform", "kernel", "bound", schedule=Schedule.ALTERNATE), bench)
    assert world.searches[0] == (before, phase, load, frozenset())


def test_a_parked_row_loads_its_own_sections_alone(world: World, bench: Bench, handmade: Handmade) -> None:
    world.kills = {"bound": {"i8259": 1}}
    (cell,) = cells(plan("ahci", "bound", mode=PARKED), bench)
    assert (cell.verdict, cell.guest_mode, cell.id[-7:]) == (Verdict.OK, "parked", "/parked")
    assert (world.sessions[0].selection.own, world.sessions[0].selection.whole) == (frozenset({handmade.ahci}), False)


@pytest.mark.parametrize("device", ["ahci"])
def test_a_qemu_that_does_not_start_is_not_the_devices_fault(world: World, bench: Bench, device: str) -> None:
    world.raises = QemuError("it did not start")
    (cell,) = cells(plan(device, "bound"), bench)
    assert (cell.verdict, cell.loads_acked) == (Verdict.HARNESS_ERROR, 0)
    assert cell.outcome.causes == (Undecided(why=Why.ERROR, said="it did not start"),)


def test_a_killed_qemu_is_the_hosts_doing(world: World, bench: Bench) -> None:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=1, phase="bound")
    world.evidence = [evidence(0, broken=broken, exit=Exit(status=-9, signal="SIGKILL"))]
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert cell.verdict is Verdict.HOST
    assert world.searches == []


@pytest.mark.parametrize("error", [Stopped("stopped"), HostError("no space")])
def test_a_stop_and_a_full_disk_end_the_run(world: World, bench: Bench, error: Exception) -> None:
    world.raises = error
    with pytest.raises(type(error)):
        cells(plan("ahci", "bound"), bench)


def test_a_build_that_resets_is_always_given_the_whole_state(world: World, bench: Bench) -> None:
    bench.ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=True)
    cells(plan("ahci", "bound", mode=PARKED), bench)
    assert world.sessions[0].selection.whole


def test_where_a_build_resets_loads_in_one_buffer_are_remembered_apart(world: World, bench: Bench) -> None:
    bench.ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=True)
    crash = Judgement(verdict=Verdict.CRASH)
    bench.blame("bound", ["i8259"], crash, together=True)
    assert bench.known(("bound",), twice=True) == {"i8259"}
    assert bench.known(("bound",)) == frozenset()
    bench.blame("bound", ["cpu"], crash, together=False)
    assert bench.known(("bound",)) == {"cpu"}
    assert bench.known(("bound",), twice=True) == {"i8259", "cpu"}
    assert bench.known(("busy",), twice=True) == frozenset()


def test_what_breaks_twice_in_one_buffer_is_not_left_out_where_it_stands_once(world: World, bench: Bench) -> None:
    bench.ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=True)
    bench.blame("bound", ["i8259"], Judgement(verdict=Verdict.CRASH), together=True)
    (cell,) = cells(plan("ahci", "bound", schedule=Schedule.BACK_TO_BACK), bench)
    assert (cell.verdict, cell.excluded) == (Verdict.OK, ())


def test_a_device_is_left_out_with_all_its_sections(world: World, bench: Bench, handmade: Handmade) -> None:
    """Half of it, such as a disk whose adapter is loaded and which is not, breaks where the whole of it is well."""
    pack = bench.buffers.pack
    pack.sections_of("virtio-blk").append("i8259#1")
    pack.sections_of("platform").remove("i8259#1")
    bench.blame("bound", ["i8259#1"], Judgement(verdict=Verdict.CRASH))
    (cell,) = cells(plan("ahci", "bound"), bench)
    assert (cell.excluded, cell.beside) == (("i8259#1",), (handmade.blk,))
    # beside its own it is loaded
    (cell,) = cells(plan("virtio-blk", "bound"), bench)
    assert (cell.sections, cell.excluded) == ((handmade.blk, "i8259#1"), ())


def test_controls_leave_out_what_their_cell_left_out(world: World, bench: Bench, handmade: Handmade) -> None:
    bench.buffers.pack.sections_of("virtio-blk").append("i8259#1")
    bench.buffers.pack.sections_of("platform").remove("i8259#1")
    bench.blame("bound", ["i8259#1"], Judgement(verdict=Verdict.CRASH))
    world.kills = {"bound": {handmade.ahci: 3}}
    asked: list[frozenset[str]] = []

    def control(_phase: str, _sections: tuple[str, ...], excluded: frozenset[str], *_: Any) -> Classed:
        asked.append(excluded)
        return Classed(failure_class=None, controls=(), moment=None)

    list(judge_cell(plan("ahci", "bound"), bench, lambda *_: None, control))
    assert asked == [{"i8259#1", handmade.blk}]


@pytest.mark.parametrize("device", ["ahci", "platform"])
def test_what_breaks_beside_a_section_in_reset_state_and_by_no_other_one_is_not_decided(
    world: World, bench: Bench, handmade: Handmade, device: str
) -> None:
    bench.ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=True)
    bench.refused = frozenset({handmade.blk})
    world.blind, world.kills = True, {"bound": {"i8259#1": 3}}
    (cell,) = cells(plan(device, "bound"), bench)
    assert (cell.verdict, cell.excluded) == (Verdict.HARNESS_ERROR, (handmade.blk,))
    assert cell.outcome.causes == (Undecided(why=Why.LEFT_OUT, sections=(handmade.blk,)),)
    # that it would come back says nothing more
    assert len(world.sessions) == 1


def test_what_no_section_does_is_put_to_the_device_without_which_it_does_not_happen(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    world.blind, world.kills = True, {"bound": {handmade.blk: 3}}
    (beside,) = cells(plan("ahci", "bound"), bench)
    assert (beside.verdict, beside.excluded) == (Verdict.OK, (handmade.blk,))
    (finding,) = cells(plan("virtio-blk", "bound"), bench)
    assert (finding.verdict, finding.blamed, finding.is_isolated) == (Verdict.CRASH, (handmade.blk,), False)
    assert finding.outcome.isolation == Isolation(way=IsolationWay.WITHOUT, of=2)
    assert finding.outcome.repeats == Repeats(seen=3, of=3, verdict=Verdict.CRASH, others=())


@pytest.mark.parametrize("rows", [{"ahci", "virtio-blk"}, {"ahci", "virtio-blk", "platform"}])
def test_what_no_device_is_needed_for_is_the_platforms_and_no_devices_finding(
    world: World, bench: Bench, rows: set[str]
) -> None:
    world.blind, world.kills, bench.rows = True, {"bound": {"i8259": 3}}, frozenset(rows)
    found = [cell for row in sorted(rows) for cell in cells(plan(row, "bound"), bench)]
    verdicts = [(cell.device, cell.verdict) for cell in found]
    assert sorted(verdicts) == [
        ("ahci", Verdict.HARNESS_ERROR), ("platform", Verdict.CRASH), ("virtio-blk", Verdict.HARNESS_ERROR),
    ]  # fmt: skip
    others = Undecided(why=Why.OTHERS, acked=2, asked=10)
    assert {cell.outcome.causes for cell in found if cell.device != "platform"} == {(others,)}


def test_the_devices_of_a_guest_that_did_not_hang_again_are_judged_by_the_loads_that_passed(
    world: World, bench: Bench
) -> None:
    broken = Break(step=Step.REQUEST, kind="late", symptom=symptom("x"), load=2, phase="bound")
    world.evidence = [evidence(1, broken=broken), evidence(10), evidence(1, broken=broken)]
    bench.rows = frozenset({"platform", "ahci", "virtio-blk"})
    found = [cell for row in ("platform", "ahci", "virtio-blk") for cell in cells(plan(row, "bound"), bench)]
    assert [(cell.device, cell.verdict, cell.outcome.loads_acked) for cell in found] == [
        ("platform", Verdict.FLAKY, 1), ("ahci", Verdict.OK, 10), ("virtio-blk", Verdict.OK, 10),
    ]  # fmt: skip
    assert not world.evidence


def test_a_device_without_which_it_breaks_now_and_then_has_done_nothing(
    world: World, bench: Bench, handmade: Handmade
) -> None:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=3, phase="bound")
    dies = evidence(2, broken=broken, exit=Exit(status=-6, signal="SIGABRT"))
    # three times with all, then without any, without a half; and then without it again
    world.evidence = [dies, dies, dies, evidence(10), evidence(10), evidence(10), dies]
    found = cells(plan("platform", "bound"), bench)
    assert [(cell.verdict, cell.blamed) for cell in found] == [(Verdict.CRASH, ())]
    assert world.evidence == []


@pytest.mark.parametrize(("resets", "verdict"), [(True, Verdict.HARNESS_ERROR), (False, Verdict.GUEST_FAULT)])
def test_a_guest_over_a_device_in_reset_state_says_nothing(
    world: World, bench: Bench, resets: bool, verdict: Verdict
) -> None:
    bench.ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=resets)
    bench.refused = frozenset({"i8259"})
    world.evidence = [evidence(10, exit=Exit(status=0))] * 3
    first = cells(plan("ahci", "bound"), bench)[0]
    assert first.verdict is verdict
    assert first.excluded == ("i8259",)
    left_out = Undecided(why=Why.LEFT_OUT, sections=("i8259",))
    assert (first.outcome.causes == (left_out,)) is resets
