# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night asks of a run: to go on where it was cut off, to begin with what is urgent, to have a canary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import changed, made_cell

from harness.colo.primary import ENABLE_COLO
from harness.engines.admission import Admission
from harness.engines.buffers import Buffers, Selection
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.errors import HarnessError
from harness.lanes import schedules
from harness.lanes.canary import SPOILT_VERSION, SpoiltBuffers, spoilt_section
from harness.lanes.judge import Bench
from harness.nights.account import account_of, unfinished
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.sentences import cause_text
from harness.results.cause import Undecided, Why
from harness.results.document import Cell, Qemu
from harness.results.events import (
    EVENTS_NAME,
    CanarySeen,
    CellsPlanned,
    Event,
    EventLog,
    Judged,
    Started,
    fold_file,
    read_events,
)
from harness.results.key import CellKey
from harness.results.plan import CellPlan
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.work import run as run_module
from harness.work.asked import Options
from harness.work.order import Order
from harness.work.run import Run, load_pack_rows
from harness.work.share import Share

ABLE = ColoAbility(dialect=ENABLE_COLO, resets_before_load=False)
STARTED = Started(command=("postload", "nightly"), host={}, started="2026-01-01T00:00:00+00:00", night="n")


class _Quiet:
    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


class _Killed(BaseException):
    """The program is gone: nothing after it is written."""


Judge = Callable[[CellPlan, Bench, Any, Any], Iterator[Cell]]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], None]:
    monkeypatch.setattr(run_module, "probe_colo", lambda *_: ABLE)
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: Admission())
    return lambda function: monkeypatch.setattr(schedules, "judge_cell", function)


@pytest.fixture
def pack(make_pack: Callable[..., Path]) -> Iterator[StatePack]:
    with StatePack(make_pack()) as opened:
        yield opened


@pytest.fixture
def options(binary: QemuBinary) -> Options:
    return Options(
        binaries=(binary,), accel="tcg", machines=("pc-i440fx-7.2",), profiles=(),
        devices=("ahci", "virtio-blk", "platform"), phases=("kernel", "bound"),
        schedules=(Schedule.SAME, Schedule.WALK), guest_modes=(GuestMode.RUNNING,), loads=5, jobs=1, run_s=0.0,
        quick=True,
    )  # fmt: skip


def _cell(plan: CellPlan, bench: Bench, verdict: Verdict = Verdict.OK, **more: Any) -> Cell:
    qemu = Qemu(**bench.binary.identity(), label=plan.key.route.loader)
    found = replace(made_cell(verdict=verdict, record_qemu=qemu, load_qemu=qemu), key=plan.key)
    return changed(found, **more)


def _red_canary(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
    yield _cell(plan, bench, Verdict.REJECT if isinstance(bench.buffers, SpoiltBuffers) else Verdict.OK)


def _platform_breaks(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
    if plan.device != "platform":
        yield _cell(plan, bench)
        return
    cell = _cell(plan, bench, Verdict.CRASH, blamed=("i8259",))
    yield cell
    yield changed(cell, rest=1, verdict=Verdict.OK, causes=(), blamed=(), excluded=("i8259",))


def _planned(events: list[Event]) -> list[CellKey]:
    names = (name for event in events if isinstance(event, CellsPlanned) for name in event.cells)
    return [CellKey.parse(name) for name in dict.fromkeys(names)]


@pytest.mark.parametrize("after", range(1, 20, 2))
def test_a_run_that_was_killed_at_any_event_goes_on_and_judges_each_cell_once(
    judge: Callable[[Judge], None], pack: StatePack, options: Options, tmp_path: Path, after: int
) -> None:
    judge(_platform_breaks)
    with EventLog(tmp_path / "whole") as log:
        whole = load_pack_rows(Run(options, watcher=_Quiet(), started=STARTED, write=log.write), pack)
    every = _planned(list(read_events(tmp_path / "whole" / EVENTS_NAME)))

    folder = tmp_path / "night"
    with EventLog(folder) as log:
        left = [after]

        def write(event: Event) -> None:
            if not left[0]:
                raise _Killed
            left[0] -= 1
            log.write(event)

        share = Share(every, every)
        cut = Run(replace(options, share=share), watcher=_Quiet(), started=STARTED, write=write)
        with pytest.raises(_Killed):
            load_pack_rows(cut, pack)
    path = folder / EVENTS_NAME
    path.write_bytes(path.read_bytes() + b'{"event": "judg')  # the line that was being written

    earlier = list(read_events(path))
    share = Share(unfinished(every, earlier), every)
    with EventLog(folder, goes_on=True) as log:
        run = Run(
            replace(options, share=share), watcher=_Quiet(), started=STARTED, write=log.write, earlier=tuple(earlier)
        )
        doc = load_pack_rows(run, pack)
    assert doc.complete
    assert [(cell.id, cell.verdict) for cell in doc.cells] == [(cell.id, cell.verdict) for cell in whole.cells]
    events = list(read_events(path))
    assert set(Counter(event.cell.id for event in events if isinstance(event, Judged)).values()) == {1}
    assert [event.name for event in events if isinstance(event, Started)] == [STARTED.name]
    assert fold_file(path).document().cells == doc.cells
    assert account_of(every, events, complete=True).missing == ()


def test_a_history_is_told_what_it_may_have_missed_when_a_run_goes_on(
    judge: Callable[[Judge], None], pack: StatePack, options: Options, tmp_path: Path
) -> None:
    judge(_platform_breaks)
    seen: list[Event] = []
    load_pack_rows(Run(options, watcher=_Quiet(), started=STARTED, write=seen.append), pack)
    told: list[Event] = []
    run = Run(
        replace(options, share=Share((), _planned(seen))), watcher=_Quiet(), started=STARTED,
        write=lambda _: None, sinks=(told.append,), earlier=seen,
    )  # fmt: skip
    load_pack_rows(run, pack)
    assert told[0] == STARTED
    assert {e.cell.id for e in told if isinstance(e, Judged)} == {e.cell.id for e in seen if isinstance(e, Judged)}


def test_the_urgent_cells_of_a_guest_come_first(
    judge: Callable[[Judge], None], pack: StatePack, options: Options
) -> None:
    came: list[str] = []

    def judged(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        came.append(str(plan.key))
        yield _cell(plan, bench)

    judge(judged)
    load_pack_rows(Run(options, watcher=_Quiet(), started=STARTED, write=lambda _: None), pack)
    plain, came[:] = list(came), []
    ranks = dict.fromkeys(plain, 5) | {name: 0 for name in plain if name.endswith("walk")}
    ordered = replace(options, order=Order(ranks))
    load_pack_rows(Run(ordered, watcher=_Quiet(), started=STARTED, write=lambda _: None), pack)
    assert not plain[0].endswith("walk")
    assert [name.endswith("walk") for name in came] == [True] * 3 + [False] * 6


def test_a_red_canary_lets_a_machine_be_judged(
    judge: Callable[[Judge], None], pack: StatePack, options: Options
) -> None:
    judge(_red_canary)
    seen: list[Event] = []
    doc = load_pack_rows(Run(replace(options, canary=True), watcher=_Quiet(), started=STARTED, write=seen.append), pack)
    (canary,) = (event for event in seen if isinstance(event, CanarySeen))
    assert canary.is_red
    assert {cell.verdict for cell in doc.cells} == {Verdict.OK}
    assert "platform" in {cell.device for cell in doc.cells}


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.HANG, Verdict.HARNESS_ERROR])
def test_where_a_planted_fault_is_not_told_nothing_is_well(
    judge: Callable[[Judge], None], pack: StatePack, options: Options, verdict: Verdict
) -> None:
    judge(lambda plan, bench, _loads, _control: iter([_cell(plan, bench, verdict)]))
    seen: list[Event] = []
    run = Run(replace(options, canary=True), watcher=_Quiet(), started=STARTED, write=seen.append)
    doc = load_pack_rows(run, pack)
    distrusted = Undecided(why=Why.CANARY, said=str(verdict))
    assert {cell.verdict for cell in doc.cells} == {Verdict.HARNESS_ERROR}
    assert {cell.outcome.causes for cell in doc.cells} == {(distrusted,)}
    assert len(doc.cells) == len(_planned(seen)) == 9
    assert f"came out {verdict}" in cause_text(distrusted)


def test_a_canary_that_cannot_be_loaded_is_not_red(
    judge: Callable[[Judge], None], pack: StatePack, options: Options
) -> None:
    def fails(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        if isinstance(bench.buffers, SpoiltBuffers):
            raise HarnessError("it did not start")
        yield _cell(plan, bench)

    judge(fails)
    doc = load_pack_rows(
        Run(replace(options, canary=True), watcher=_Quiet(), started=STARTED, write=lambda _: None), pack
    )
    assert {cell.verdict for cell in doc.cells} == {Verdict.HARNESS_ERROR}


def test_the_fault_is_in_one_section_of_the_checkpoint_and_in_no_incoming_stream(pack: StatePack) -> None:
    label = spoilt_section(pack, "kernel")
    spoilt, plain = SpoiltBuffers(pack), Buffers(pack)
    selection = Selection(own=frozenset({label}))
    got = spoilt.devices("kernel", GuestMode.RUNNING, selection, 1)
    assert got.count(SPOILT_VERSION.to_bytes(4, "big")) == 1
    assert len(got) == len(plain.devices("kernel", GuestMode.RUNNING, selection, 1))
    assert SPOILT_VERSION.to_bytes(4, "big") not in spoilt.whole_state("kernel", GuestMode.RUNNING)
