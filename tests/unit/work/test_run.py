# SPDX-License-Identifier: GPL-2.0-or-later
"""A run over an open pack, with cells that are judged on paper: order, machines, stops and errors."""

from __future__ import annotations

import _thread
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, Lock, RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from made_cells import changed, ended, made_cell

from harness.colo.primary import ENABLE_COLO
from harness.devices.phases import Missed, Unreached
from harness.devices.recipe import load_recipes
from harness.engines.admission import Admission
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.errors import HarnessError, HostError, QemuError
from harness.guests.lack import Lack, Lacks
from harness.guests.plan import PlacedDevice
from harness.lanes import checks, schedules
from harness.lanes.checks import OracleCheck
from harness.lanes.judge import Bench, Exclusion, ExclusionReason
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import TRIES, Disturbance, Hindered, current_account
from harness.qemu.process import Exit, Process
from harness.report.sentences import cause_text, colo_reason_text
from harness.results.answer import Seen, machine_result
from harness.results.cause import Figure, Leaked, LoadedBy, Resource, Side, Undecided, Unsupported, Why
from harness.results.document import Cell, Colo, ColoReason, MachineResult, MatrixDoc, Qemu
from harness.results.events import CellsPlanned, EventLog, Fold, Judged, RunEnded, Started, fold_file
from harness.results.events import Event as RunEvent
from harness.results.key import CellKey
from harness.results.plan import CellPlan
from harness.results.verdict import Verdict, exit_code
from harness.state import owners as owners_module
from harness.state.transforms import GuestMode, labels_of
from harness.work import guests as guests_module
from harness.work import run as run_module
from harness.work import worker as worker_module
from harness.work.asked import Options, Subject
from harness.work.guests import GuestDue, GuestOutcome
from harness.work.run import Run, load_pack_rows
from harness.work.task import Task
from harness.work.worker import LocalWorker, Reported, Tell

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

DIES = ColoAbility(dialect=ENABLE_COLO, resets_before_load=False)
RESETS = ColoAbility(dialect=ENABLE_COLO, resets_before_load=True)


class Watcher:
    """Keeps what it is told, from any thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.told: list[tuple[str, Any]] = []

    def _keep(self, what: str, value: Any) -> None:
        with self.lock:
            self.told.append((what, value))

    def start_cell(self, cell_id: str) -> None:
        self._keep("start", cell_id)

    def loads(self, cell_id: str, total: int) -> None:
        self._keep("loads", total)

    def stage(self, text: str) -> None:
        self._keep("stage", text)

    def of(self, what: str) -> list[Any]:
        return [value for kind, value in self.told if kind == what]


def cell_of(plan: CellPlan, binary: QemuBinary, verdict: Verdict = Verdict.OK, **more: Any) -> Cell:
    qemu = Qemu(**binary.identity(), label=plan.key.route.loader)
    given = {"blamed": () if verdict is Verdict.OK else ("i8259",), **more}
    return changed(replace(made_cell(verdict=verdict, record_qemu=qemu, load_qemu=qemu), key=plan.key), **given)


Judge = Callable[[CellPlan, Bench, Any, Any], Iterator[Cell]]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], None]:
    monkeypatch.setattr(run_module, "probe_colo", lambda *_: DIES)
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: Admission())
    monkeypatch.setattr(guests_module, "guest_admission", lambda *_: Admission())
    return lambda function: monkeypatch.setattr(schedules, "judge_cell", function)


@pytest.fixture
def make_run(binary: QemuBinary) -> Callable[..., tuple[Run, Watcher, list[RunEvent]]]:
    def make(guest: Any = None, **changes: Any) -> tuple[Run, Watcher, list[RunEvent]]:
        options = Options(
            binaries=(binary,), accel="tcg", machines=("pc-i440fx-7.2",), profiles=(),
            devices=("ahci", "virtio-blk", "platform"), phases=("kernel", "bound"),
            schedules=(Schedule.SAME, Schedule.WALK), guest_modes=(GuestMode.RUNNING,), loads=5, jobs=3, run_s=0.0,
            quick=True,
        )  # fmt: skip
        watcher = Watcher()
        seen: list[RunEvent] = []
        started = Started(command=("postload",), host={})
        run = Run(replace(options, **changes), guest=guest, watcher=watcher, started=started, write=seen.append)
        return run, watcher, seen

    return make


@pytest.fixture
def pack(make_pack: Callable[..., Path]) -> Iterator[StatePack]:
    with StatePack(make_pack()) as opened:
        yield opened


def test_a_run_lets_go_of_what_it_made_of_a_recording_when_that_is_judged(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Buffers]] = []

    def buffers(*given: Any) -> Buffers:
        found = Buffers(*given)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(worker_module, "Buffers", buffers)
    judge(lambda plan, bench, _on_loads, _control: iter([cell_of(plan, bench.binary)]))
    run, _, _ = make_run()
    assert load_pack_rows(run, pack).complete
    gc.collect()
    assert [each() for each in made] == [None]


def test_cells_stand_in_the_order_of_the_plan_whoever_ends_first(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    def crash_in_the_platform(plan: CellPlan, bench: Bench, on_loads: Any, _control: Any) -> Iterator[Cell]:
        on_loads(str(plan.key), 5)
        if plan.device == "platform" and plan.schedule is Schedule.SAME:
            cell = cell_of(plan, bench.binary, Verdict.CRASH)
            yield cell
            yield changed(cell, rest=1, verdict=Verdict.OK, causes=(), blamed=(), excluded=("i8259",))
        else:
            yield cell_of(plan, bench.binary)

    judge(crash_in_the_platform)
    run, watcher, seen = make_run()
    doc = load_pack_rows(run, pack)
    rows = [
        (device, tail)
        for device in ("ahci", "virtio-blk")
        for tail in ("kernel/same", "bound/same", "kernel+bound/walk")
    ]
    wanted = [f"7.2.22/pc-i440fx-7.2/{device}/{tail}" for device, tail in rows]
    for tail in ("kernel/same", "kernel/same+rest", "bound/same", "bound/same+rest", "kernel+bound/walk"):
        wanted.append(f"7.2.22/pc-i440fx-7.2/platform/{tail}")
    assert [cell.id for cell in doc.cells] == wanted
    assert doc.complete
    assert len([event for event in seen if isinstance(event, Judged)]) == len(wanted)
    # the platform is judged first, so that its culprits are known
    for tail in ("kernel/same", "bound/same", "kernel+bound/walk"):
        began = [cell_id for cell_id in watcher.of("start") if cell_id.endswith(tail)]
        assert [cell_id.split("/")[2] for cell_id in began] == ["platform", "ahci", "virtio-blk"]
    # each document so far is in order too, and none of them claims to be complete before the end
    fold = Fold(Started(command=("postload",), host={}, started=doc.started))
    for event in seen:
        fold.add(event)
        ids = [cell.id for cell in fold.document().cells]
        assert ids == [cell_id for cell_id in wanted if cell_id in ids]
        assert fold.complete is (event is seen[-1])
    assert fold.document() == doc
    assert [machine.colo for machine in doc.machines] == [Colo.UNSAFE]
    assert exit_code(cell.verdict for cell in doc.cells) == 1


def test_a_machine_named_twice_is_judged_once(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    judge(lambda plan, bench, _, __: iter([cell_of(plan, bench.binary)]))
    elsewhere = replace(binary, path="/elsewhere/qemu")
    run, _, _ = make_run(binaries=(binary, elsewhere, binary), machines=("pc-i440fx-7.2", "pc"))
    doc = load_pack_rows(run, pack)
    ids = [cell.id for cell in doc.cells]
    assert len(ids) == len(set(ids)) == 9
    assert len(doc.machines) == 1


def test_two_builds_of_one_version_are_two_machines(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    def judged(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        cell = replace(cell_of(plan, bench.binary), record_qemu=bench.recorder, load_qemu=bench.loader)
        yield replace(cell, key=plan.key)

    judge(judged)
    run, _, _ = make_run(binaries=(binary, replace(binary, sha256="87654321" * 8)))
    doc = load_pack_rows(run, pack)
    assert len({cell.id for cell in doc.cells}) == 18
    assert {cell.id.partition("/")[0] for cell in doc.cells} == {
        "7.2.22",
        "7.2.22>7.2.22~2",
    }
    assert [machine.colo for machine in doc.machines] == [Colo.SAFE, Colo.SAFE]


def test_a_machine_that_the_qemu_has_not_is_unsupported(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    judge(lambda *_: pytest.fail("nothing is judged"))
    run, _, _ = make_run(binaries=(replace(binary, machines=()),))
    doc = load_pack_rows(run, pack)
    assert {cell.verdict for cell in doc.cells} == {Verdict.UNSUPPORTED}
    assert len(doc.cells) == 9
    (machine,) = doc.machines
    assert machine.colo is Colo.UNDECIDED
    assert "no machine pc-i440fx-7.2" in colo_reason_text(machine.because[0])
    assert exit_code(cell.verdict for cell in doc.cells) == 4


def test_ctrl_c_gives_what_was_judged_until_then(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    judged: list[str] = []

    def interrupted_at_the_fourth(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        judged.append(plan.device)
        if len(judged) > 4:
            raise KeyboardInterrupt
        yield cell_of(plan, bench.binary)
        if len(judged) == 4:
            raise KeyboardInterrupt

    judge(interrupted_at_the_fourth)
    run, _, events = make_run(jobs=1)
    doc = load_pack_rows(run, pack)
    assert isinstance(events[-1], RunEnded)
    assert not events[-1].complete
    assert len([event for event in events if isinstance(event, Judged)]) == 4
    assert not doc.complete
    assert len(doc.cells) == 4
    (machine,) = doc.machines
    assert machine.colo is Colo.UNDECIDED
    assert machine.because[0].causes == (Undecided(why=Why.STOPPED),)


def test_one_machine_is_over_before_the_next_begins(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    """Else every machine of a long run would have its buffers in memory at once."""
    judged: list[str] = []

    def noted(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        judged.append(bench.binary.sha256[:2])
        yield replace(cell_of(plan, bench.binary), key=plan.key)

    judge(noted)
    one, two, three = (replace(binary, sha256=digit * 64) for digit in "123")
    run, _, _ = make_run(jobs=1)
    first = [Subject(loader=one, pack=pack), Subject(loader=two, pack=pack)]
    doc = run.execute(first, then=lambda so_far: [Subject(loader=three, pack=pack)] if len(so_far.cells) == 18 else [])
    assert judged == ["11"] * 9 + ["22"] * 9 + ["33"] * 9
    assert doc.complete


def test_a_wave_leaves_out_what_the_waves_before_it_broke_on(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    told: dict[str, frozenset[str]] = {}

    def blames(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        place = plan.key.place
        told[place] = bench.known(plan.phases)
        if place == "platform/bound/same":
            bench.tell([Exclusion(section="i8259", reason=ExclusionReason.BROKE, phase="bound")])
        yield cell_of(plan, bench.binary)

    judge(blames)
    run, _, _ = make_run(schedules=(Schedule.SAME, Schedule.BACK_TO_BACK))
    assert load_pack_rows(run, pack).complete
    # within a task as soon as it is known, and then in its phase alone
    assert [told[f"{device}/bound/same"] for device in ("platform", "ahci")] == [frozenset(), {"i8259"}]
    assert {told[f"{device}/kernel/same"] for device in ("platform", "ahci", "virtio-blk")} == {frozenset()}
    assert {told[f"{device}/bound/back-to-back"] for device in ("platform", "ahci")} == {frozenset({"i8259"})}
    assert {told[f"{device}/kernel/back-to-back"] for device in ("platform", "ahci")} == {frozenset()}


def test_what_breaks_of_the_platform_is_left_out_of_the_next_guest_of_its_machine(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    told: dict[str, list[frozenset[str]]] = {}
    found = {"platform/bound/same": ["i8259", *pack.sections_of("ahci")], "ahci/kernel/same": ["cpu"]}

    def blames(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        place = plan.key.place
        told.setdefault(place, []).append(bench.known(plan.phases))
        broke = found.get(place, ()) if len(told[place]) == 1 else ()
        bench.tell([Exclusion(section=label, reason=ExclusionReason.BROKE, phase=plan.phases[0]) for label in broke])
        yield cell_of(plan, bench.binary)

    judge(blames)
    run, _, _ = make_run(schedules=(Schedule.SAME,), devices=("platform", "ahci"), jobs=1)
    again = [Subject(loader=binary, pack=pack)]
    assert run.execute(again, then=lambda _: again).complete
    # in its phase, from the first wave on; what another guest broke of is that guest's
    assert [known[-1] for place, known in told.items() if "/bound/" in place] == [{"i8259"}] * 2
    assert told["ahci/kernel/same"] == [set(), {"cpu"}]


def test_what_is_judged_after_the_stop_does_not_count(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    def killed_by_the_stop(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        if plan.device == "platform":
            raise KeyboardInterrupt
        # as a QEMU does that is killed when the run ends
        bench.scope.wait(20.0)
        yield cell_of(plan, bench.binary, Verdict.HOST)

    judge(killed_by_the_stop)
    run, _, _ = make_run()
    doc = load_pack_rows(run, pack)
    assert (doc.cells, doc.complete) == ((), False)


def test_of_two_runs_in_one_process_the_stopped_one_alone_ends(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    """Each judges with a child of its own; the first is stopped while both are in the middle of a cell."""
    both, stopped = Barrier(3, timeout=20.0), Event()
    ended: dict[str, Exit | None] = {}

    def with_a_child(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        if plan.device != "platform" or plan.key.where != "kernel":
            yield cell_of(plan, bench.binary)
            return
        with Process(["/bin/sleep", "1000"], scope=bench.scope) as process:
            both.wait()
            if bench.pace.run_s:
                ended["first"] = process.wait(20.0)
                yield cell_of(plan, bench.binary, Verdict.CRASH)
                return
            assert stopped.wait(20.0)
            ended["second"] = process.wait(0.2)
        yield cell_of(plan, bench.binary)

    judge(with_a_child)
    first, second = make_run(run_s=1.0)[0], make_run()[0]
    with ThreadPoolExecutor() as pool:
        docs = [pool.submit(load_pack_rows, run, pack) for run in (first, second)]
        both.wait()
        first.stop()
        cut = docs[0].result(timeout=20.0)
        stopped.set()
        whole = docs[1].result(timeout=20.0)
    assert ended == {"first": Exit(status=-9, signal="SIGKILL"), "second": None}
    assert (cut.complete, whole.complete) == (False, True)
    assert len(whole.cells) == 9
    assert Verdict.CRASH not in {cell.verdict for cell in cut.cells}


@pytest.mark.parametrize("migrations", [("plain",), ("postcopy",)])
def test_a_migration_that_the_stop_killed_does_not_count(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    monkeypatch: pytest.MonkeyPatch,
    migrations: tuple[str, ...],
) -> None:
    judge(lambda *_: pytest.fail("no checkpoint is loaded"))

    def killed(check: OracleCheck, bench: Bench) -> list[Cell]:
        for _ in range(4):
            _thread.interrupt_main()  # one that arrives in a finaliser of Python's is lost
            if bench.scope.wait(5.0):
                break
        cell = cell_of(plan("platform"), bench.binary, Verdict.GUEST_FAULT, lane=str(check.oracle))
        return [changed(cell, device=row) for row in check.rows]

    monkeypatch.setattr(checks, "perform", killed)
    run, _, _ = make_run(migrations=migrations)
    doc = load_pack_rows(run, pack)
    assert (doc.cells, doc.complete) == ((), False)


def with_more(pack: StatePack, *more: PlacedDevice) -> StatePack:
    """The pack as of a guest that has more devices."""
    plan = pack.manifest.plan.model_copy(update={"devices": (*pack.manifest.plan.devices, *more)})
    pack.manifest = pack.manifest.model_copy(update={"plan": plan})
    return pack


def test_a_device_that_the_qemu_has_not_costs_itself_alone(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    binary: QemuBinary,
    own_cache: Path,
    handmade: Handmade,
) -> None:
    loaded: list[tuple[str, ...]] = []

    def judge_without(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        part = bench.buffers.pack
        assert part.manifest.plan.types() == ["virtio-blk-pci"]
        loaded.append(tuple(labels_of(part.recordings["bound"].sections)))
        yield cell_of(plan, bench.binary)

    judge(judge_without)
    with_more(pack, PlacedDevice(id="x", type="vmxnet9", slot="06.0", owner="ahci"))
    run, _, _ = make_run()
    doc = load_pack_rows(run, pack)
    verdicts = {(cell.device, cell.verdict) for cell in doc.cells}
    assert verdicts == {
        ("ahci", Verdict.UNSUPPORTED),
        ("virtio-blk", Verdict.OK),
        ("platform", Verdict.OK),
    }
    assert loaded
    assert {handmade.ahci in sections for sections in loaded} == {False}
    assert {handmade.blk in sections for sections in loaded} == {True}
    able = replace(binary, devices=binary.devices | {"vmxnet9"})
    run, _, _ = make_run(binaries=(able,))
    judge(lambda plan, bench, _, __: iter([cell_of(plan, bench.binary)]))
    assert {cell.verdict for cell in load_pack_rows(run, pack).cells} == {Verdict.OK}


def test_a_device_of_nobody_that_the_qemu_has_not_is_held_against_the_machine(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, own_cache: Path
) -> None:
    judge(lambda plan, bench, _, __: iter([cell_of(plan, bench.binary)]))
    run, _, _ = make_run()
    doc = load_pack_rows(run, with_more(pack, PlacedDevice(id="x", type="vmxnet9", slot="06.0")))
    assert {c.device for c in doc.cells if c.verdict is Verdict.UNSUPPORTED} == {"platform"}
    assert {c.verdict for c in doc.cells if c.device != "platform"} == {Verdict.OK}
    said = colo_reason_text(doc.machines[0].because[0])
    assert "the recorded guest has vmxnet9, which QEMU 7.2.22 has not" in said


@pytest.mark.parametrize("refused", [True, False])
def test_a_device_of_a_pack_that_colo_does_not_start_or_live_with_costs_itself_alone(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    own_cache: Path,
    handmade: Handmade,
    monkeypatch: pytest.MonkeyPatch,
    refused: bool,
) -> None:
    loaded: dict[str, bool] = {}

    def note(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        loaded[plan.device] = handmade.ahci in labels_of(bench.buffers.pack.recordings["bound"].sections)
        yield cell_of(plan, bench.binary)

    judge(note)
    with_more(pack, PlacedDevice(id="hba", type="ich9-ahci", slot="03.0", owner="ahci"))
    lack = Lack(what=Lacks.COLO, machine="pc-i440fx-7.2", qemu="7.2.22", said="no")
    found = Admission(refused={"ahci": lack}) if refused else Admission(breaking=frozenset({"ahci"}))
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: found)
    run, _, _ = make_run()
    verdicts = {(cell.device, cell.verdict) for cell in load_pack_rows(run, pack).cells}
    mine = Verdict.UNSUPPORTED if refused else Verdict.OK
    assert verdicts == {("ahci", mine), ("virtio-blk", Verdict.OK), ("platform", Verdict.OK)}
    assert loaded == {"virtio-blk": False, "platform": False} | ({} if refused else {"ahci": True})


def test_where_colo_is_not_asked_no_checkpoint_is_made(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge(lambda *_: pytest.fail("a checkpoint"))
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: pytest.fail("COLO is asked"))
    with_more(pack, PlacedDevice(id="x", type="vmxnet9", slot="06.0", owner="ahci"))
    run, _, _ = make_run(migrations=("plain",), checkpoints=False)
    doc = load_pack_rows(run, pack)
    # on paper no migration is made; the device that is not to be had is told all the same
    assert {(cell.device, cell.lane) for cell in doc.cells if cell.verdict is Verdict.UNSUPPORTED} == {
        ("ahci", "same"), ("ahci", "walk"),
    }  # fmt: skip
    assert {(c.device, c.lane) for c in doc.cells if c.device != "ahci"} == {
        ("virtio-blk", "plain"),
        ("platform", "plain"),
    }


def test_where_colo_is_not_asked_a_migration_that_cannot_be_made_is_announced_once(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise HarnessError("gone")

    judge(lambda *_: pytest.fail("a checkpoint"))
    monkeypatch.setattr(worker_module.LocalWorker, "run", fail)
    run, _, seen = make_run(migrations=("plain",), checkpoints=False)
    cells = load_pack_rows(run, pack).cells
    assert {(cell.lane, cell.verdict) for cell in cells} == {("plain", Verdict.HARNESS_ERROR)}
    announced = [name for event in seen if isinstance(event, CellsPlanned) for name in event.cells]
    assert sorted(announced) == sorted(cell.id for cell in cells)


def test_a_full_disk_ends_the_run_and_keeps_its_cells(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    def full_in_the_end(plan: CellPlan, bench: Bench, _: Any, __: Any) -> Iterator[Cell]:
        if plan.device == "virtio-blk":
            raise HostError("no space")
        yield cell_of(plan, bench.binary)

    judge(full_in_the_end)
    run, _, _ = make_run(jobs=1)
    with pytest.raises(HostError, match="no space"):
        load_pack_rows(run, pack)
    cells = run.document().cells
    assert {cell.device for cell in cells} >= {"platform"}
    assert not any(cell.device == "virtio-blk" for cell in cells)
    assert not run.document().complete


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_cell_that_cannot_be_kept_ends_the_run_and_is_not_counted(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, tmp_path: Path, jobs: int
) -> None:
    judge(lambda plan, bench, _, __: iter([cell_of(plan, bench.binary)]))
    run, _, _ = make_run(jobs=jobs)
    log = EventLog(tmp_path)
    shown: list[RunEvent] = []

    def full_at_the_fourth(event: RunEvent) -> None:
        if isinstance(event, Judged) and len(run.document().cells) >= 3:
            raise HostError("no space left")
        log.write(event)

    run._lock = RLock()  # the writer above looks at the run
    run._write, run._sinks = full_at_the_fourth, (shown.append,)
    with log, pytest.raises(HostError, match="no space left"):
        load_pack_rows(run, pack)
    kept = fold_file(log.path).document()
    assert len(kept.cells) == 3
    assert kept == run.document()
    assert len([event for event in shown if isinstance(event, Judged)]) == 3
    assert not kept.complete


def plan(device: str, schedule: Schedule = Schedule.SAME) -> CellPlan:
    key = CellKey.parse(f"7.2.22/pc-i440fx-7.2/{device}/bound/{schedule}")
    return CellPlan(key=key, loads=5)


def seen_machine(binary: QemuBinary, ability: ColoAbility = DIES) -> MachineResult:
    qemu = Qemu(**binary.identity(), label="7.2.22")
    machine = "pc-i440fx-7.2"
    return Seen(machine=machine, family="pc", binary=binary, recorder=qemu, loader=qemu, ability=ability).result()


OK, CRASH, HOST, UNSUPPORTED = Verdict.OK, Verdict.CRASH, Verdict.HOST, Verdict.UNSUPPORTED
BACK = Schedule.BACK_TO_BACK

#: device, verdict, what was left out
Row = tuple[str, Verdict, tuple[str, ...]]


SAFE, UNSAFE, UNDECIDED = Colo.SAFE, Colo.UNSAFE, Colo.UNDECIDED


@pytest.mark.parametrize(
    ("rows", "colo"),
    [
        ([], UNDECIDED),
        ([("platform", OK, ())], SAFE),
        ([("platform", OK, ()), ("ahci", OK, ())], SAFE),
        ([("ahci", OK, ())], UNDECIDED),
        ([("platform", OK, ()), ("ahci", CRASH, ())], UNSAFE),
        ([("platform", CRASH, ()), ("platform", OK, ("i8259",))], UNSAFE),
        ([("ahci", OK, ("i8259",))], UNDECIDED),
        ([("platform", OK, ()), ("ahci", OK, ("i8259",))], UNDECIDED),
        ([("platform", OK, ()), ("ahci", HOST, ())], UNDECIDED),
        ([("platform", OK, ()), ("ahci", Verdict.HARNESS_ERROR, ())], UNDECIDED),
        ([("platform", OK, ()), ("ahci", UNSUPPORTED, ())], UNDECIDED),
        ([("platform", HOST, ()), ("ahci", Verdict.HANG, ())], UNSAFE),
    ],
)
def test_a_machine_is_safe_only_when_all_was_judged_with_nothing_left_out(
    binary: QemuBinary, rows: list[Row], colo: Colo
) -> None:
    cells = [cell_of(plan(device), binary, verdict, excluded=out) for device, verdict, out in rows]
    result = machine_result(seen_machine(binary), cells)
    assert result.colo is colo
    assert bool(result.because) is (colo is not SAFE)
    assert (result.alias, result.dialect, result.resets_before_load) == ("pc", "enable-colo", False)
    stopped = machine_result(seen_machine(binary), cells, complete=False)
    assert stopped.colo is (UNSAFE if colo is UNSAFE else UNDECIDED)


def test_a_device_with_nothing_to_do_in_a_phase_leaves_no_doubt(binary: QemuBinary) -> None:
    found = {}
    for how in Missed:
        lack = Unreached(phase="bound", how=how, step="bind", said="no driver")
        cells = [cell_of(plan("platform"), binary), cell_of(plan("ahci"), binary, UNSUPPORTED, causes=(lack,))]
        found[how] = machine_result(seen_machine(binary), cells).colo
    assert found == {Missed.NOTHING_TO_DO: SAFE, Missed.REPORTS_ERRORS: SAFE, Missed.FAILED: UNDECIDED}


def test_where_the_platform_was_not_loaded_once_nothing_is_called_safe(binary: QemuBinary) -> None:
    lack = Unreached(phase="suspended", how=Missed.NOTHING_TO_DO, step="suspend", said="it does not sleep")
    cells = [cell_of(plan(device), binary, UNSUPPORTED, causes=(lack,)) for device in ("platform", "ahci")]
    result = machine_result(seen_machine(binary), cells)
    assert (result.colo, result.because[0].device) == (UNDECIDED, "platform")


def test_without_the_platform_the_reason_is_that_it_was_not_judged(binary: QemuBinary) -> None:
    result = machine_result(seen_machine(binary), [cell_of(plan("ahci"), binary)])
    assert result.because == (ColoReason(device="platform", causes=(Undecided(why=Why.NOT_JUDGED),)),)


def test_a_run_that_was_stopped_says_so_and_nothing_else(binary: QemuBinary) -> None:
    result = machine_result(seen_machine(binary), [cell_of(plan("platform"), binary)], complete=False)
    assert (result.colo, result.because) == (UNDECIDED, (ColoReason(causes=(Undecided(why=Why.STOPPED),)),))


def leak_cell(binary: QemuBinary, way: LoadedBy) -> Cell:
    other = Figure(per_load=2.0, low=1.9, high=2.1, loads=840)
    leak = Leaked(
        section="i8259",
        resource=Resource.MEMORY,
        per_load=624,
        low=620,
        high=628,
        unit="bytes",
        loads=9,
        way=way,
        other=other,
    )
    found = cell_of(plan("ahci"), binary, Verdict.LEAK, lane="leak")
    return replace(found, outcome=replace(found.outcome, causes=(leak,)))


@pytest.mark.parametrize("ability", [DIES, RESETS])
def test_a_leak_that_only_loads_in_one_buffer_show_is_named_and_leaves_a_machine_safe(
    binary: QemuBinary, ability: ColoAbility
) -> None:
    fine = cell_of(plan("platform"), binary)
    machine = seen_machine(binary, ability)
    result = machine_result(machine, [fine, leak_cell(binary, LoadedBy.BACK_TO_BACK)])
    assert (result.colo, [(r.sections, r.hidden) for r in result.because]) == (SAFE, [(("i8259",), True)])
    result = machine_result(machine, [fine, leak_cell(binary, LoadedBy.CHECKPOINT)])
    assert (result.colo, [(r.sections, r.hidden) for r in result.because]) == (Colo.REMARKS, [(("i8259",), False)])


def test_a_leak_that_did_not_come_back_breaks_no_load(binary: QemuBinary) -> None:
    cells = [cell_of(plan("platform"), binary), cell_of(plan("ahci"), binary, Verdict.FLAKY, lane="leak")]
    assert machine_result(seen_machine(binary), cells).colo is Colo.REMARKS


def test_a_device_that_blocks_migration_is_one_that_colo_does_not_start_with(binary: QemuBinary) -> None:
    blocked = Unsupported(side=Side.RECORDER, lack=Lack(what=Lacks.MIGRATION, said="blocked"))
    found = cell_of(plan("ahci"), binary, UNSUPPORTED)
    found = replace(found, outcome=replace(found.outcome, causes=(blocked,)))
    cells = [cell_of(plan("platform"), binary), found]
    for complete in (True, False):
        result = machine_result(seen_machine(binary), cells, complete=complete)
        assert (result.colo, [r.causes for r in result.because]) == (Colo.REFUSED, [(blocked,)])
    broken = machine_result(seen_machine(binary), [*cells, cell_of(plan("virtio-net"), binary, CRASH)])
    assert (broken.colo, [r.device for r in broken.because]) == (UNSAFE, ["virtio-net", "ahci"])


def test_what_an_oracle_could_not_decide_leaves_a_machine_undecided(binary: QemuBinary) -> None:
    cells = [cell_of(plan("platform"), binary), cell_of(plan("ahci"), binary, HOST, lane="leak")]
    result = machine_result(seen_machine(binary), cells)
    assert (result.colo, [r.device for r in result.because]) == (UNDECIDED, ["ahci"])


def test_that_the_platform_was_not_judged_comes_before_what_else_was_not(binary: QemuBinary) -> None:
    result = machine_result(seen_machine(binary), [cell_of(plan("ahci"), binary, HOST)])
    assert [(r.device, r.verdict) for r in result.because] == [("platform", None), ("ahci", HOST)]


#: Drift and leaks do not break a load: they are worth a remark, and no more.
SLOW = {Verdict.DRIFT: "drift", Verdict.LEAK: "leak"}
BREAKS = [verdict for verdict in Verdict if verdict.is_finding and verdict not in SLOW]


@pytest.mark.parametrize(("verdict", "lane"), SLOW.items())
def test_drift_and_leaks_are_a_remark(binary: QemuBinary, verdict: Verdict, lane: str) -> None:
    found = cell_of(plan("ahci"), binary, verdict, lane=lane)
    result = machine_result(seen_machine(binary), [cell_of(plan("platform"), binary), found])
    assert result.colo is Colo.REMARKS
    (reason,) = result.because
    assert (reason.device, reason.sections, reason.verdict, reason.hidden) == ("ahci", ("i8259",), verdict, False)
    assert machine_result(seen_machine(binary), [found]).colo is UNDECIDED


@pytest.mark.parametrize("verdict", BREAKS)
def test_any_break_makes_a_machine_unsafe_and_is_named_once(binary: QemuBinary, verdict: Verdict) -> None:
    cells = [cell_of(plan("platform"), binary), cell_of(plan("ahci"), binary, verdict)] * 2
    result = machine_result(seen_machine(binary), cells)
    assert result.colo is UNSAFE
    (reason,) = result.because
    assert (reason.sections, reason.verdict, reason.causes) == (("i8259",), verdict, (ended(),))


def test_cells_of_other_machines_and_builds_do_not_count(binary: QemuBinary) -> None:
    fine = cell_of(plan("platform"), binary)
    other_machine = changed(cell_of(plan("platform"), binary, CRASH), machine="pc-q35-7.2")
    other_build = cell_of(plan("platform"), replace(binary, sha256="0" * 64), CRASH)
    assert machine_result(seen_machine(binary), [fine, other_machine, other_build]).colo is SAFE
    assert machine_result(seen_machine(binary), [other_machine, other_build]).colo is UNDECIDED


@pytest.mark.parametrize(("ability", "colo"), [(DIES, Colo.UNSAFE), (RESETS, Colo.REMARKS)])
def test_where_a_build_resets_loads_in_one_buffer_are_a_remark(
    binary: QemuBinary, ability: ColoAbility, colo: Colo
) -> None:
    cells = [cell_of(plan("platform"), binary), cell_of(plan("ahci", BACK), binary, CRASH)]
    result = machine_result(seen_machine(binary, ability), cells)
    assert result.colo is colo
    assert result.because[0].hidden is (colo is Colo.REMARKS)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 4), ([OK], 0), ([OK, UNSUPPORTED], 0), ([UNSUPPORTED], 4), ([OK, HOST], 3), ([HOST, CRASH], 1),
        ([OK, Verdict.HARNESS_ERROR], 3), ([OK, Verdict.FLAKY], 1), ([UNSUPPORTED, HOST], 3),
    ],
)  # fmt: skip
def test_exit_codes(verdicts: list[Verdict], code: int) -> None:
    assert exit_code(verdicts) == code


def test_a_worker_that_ends_costs_its_own_cells(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(lambda plan, bench, _, __: iter([cell_of(plan, bench.binary)]))
    whole = LocalWorker.run

    def ends(worker: LocalWorker, task: Task, tell: Tell) -> None:
        def first_cell_alone(said: Reported) -> None:
            tell(said)
            raise HarnessError("the worker ended before its task was over: oops")

        whole(worker, task, first_cell_alone if task.request.phases == ("bound",) else tell)

    monkeypatch.setattr(LocalWorker, "run", ends)
    run, _, _ = make_run(schedules=(Schedule.SAME,))
    doc = load_pack_rows(run, pack)
    assert doc.complete
    assert {(cell.device, cell.phases[0]): cell.verdict for cell in doc.cells} == {
        **{(device, "kernel"): Verdict.OK for device in ("ahci", "virtio-blk", "platform")},
        ("platform", "bound"): Verdict.OK,
        ("ahci", "bound"): Verdict.HARNESS_ERROR,
        ("virtio-blk", "bound"): Verdict.HARNESS_ERROR,
    }
    ended = Undecided(why=Why.ERROR, said="the worker ended before its task was over: oops")
    assert {cell.outcome.causes for cell in doc.cells} == {(), (ended,)}


def test_an_own_build_has_its_name_in_cells_and_another_of_one_version_a_number(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, binary: QemuBinary
) -> None:
    judge(lambda plan, bench, _, __: iter([replace(cell_of(plan, bench.binary), key=plan.key)]))
    mine = replace(binary, sha256="ab" * 32, label="mybuild")
    twin = replace(binary, sha256="cd" * 32)
    run, _, _ = make_run(binaries=(binary, mine, twin))
    doc = load_pack_rows(run, pack)
    assert [machine.qemu.label for machine in doc.machines] == ["7.2.22", "mybuild", "7.2.22~2"]
    assert {str(cell.key.route) for cell in doc.cells} == {"7.2.22", "7.2.22>mybuild", "7.2.22>7.2.22~2"}


STOPPED = Hindered(how=Disturbance.STOPPED, seconds=21.0)
TERM = Hindered(how=Disturbance.ENDED, signal="SIGTERM")


class Host:
    """Disturbs the first tries of each cell; the cells come to what is told, try by try."""

    def __init__(self, *verdicts: Verdict, by: Hindered = TERM) -> None:
        self._verdicts = verdicts
        self._by = by
        self.tries: Counter[str] = Counter()

    def __call__(self, plan: CellPlan, bench: Bench, _on_loads: Any, _control: Any) -> Iterator[Cell]:
        key = str(plan.key)
        number = self.tries[key]
        self.tries[key] += 1
        verdict = self._verdicts[min(number, len(self._verdicts) - 1)]
        if number < len(self._verdicts) - (self._verdicts[-1] is Verdict.OK):
            current_account().ended(self._by)
        yield cell_of(plan, bench.binary, verdict)


def judged_on(host: Host, make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack) -> MatrixDoc:
    judge(host)
    run, _, _ = make_run(devices=("ahci",), schedules=(Schedule.SAME,), phases=("bound",))
    return load_pack_rows(run, pack)


def test_what_the_host_disturbed_is_right_at_the_second_try(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    host = Host(Verdict.HANG, Verdict.OK)
    (cell,) = judged_on(host, make_run, judge, pack).cells
    assert (cell.verdict, cell.outcome.causes, cell.outcome.hindered) == (Verdict.OK, (), (TERM,))
    assert host.tries.total() == 2


def test_what_the_host_disturbs_each_time_is_the_hosts_and_no_devices(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    host = Host(Verdict.GUEST_FAULT, Verdict.FLAKY, Verdict.HANG)
    (cell,) = judged_on(host, make_run, judge, pack).cells
    assert (cell.verdict, cell.outcome.causes, cell.blamed) == (Verdict.HOST, (TERM,), ())
    assert host.tries.total() == TRIES == 3


def test_what_passed_all_the_same_is_not_tried_again(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    host = Host(Verdict.OK, Verdict.OK)
    (cell,) = judged_on(host, make_run, judge, pack).cells
    assert (cell.verdict, cell.outcome.hindered, host.tries.total()) == (Verdict.OK, (), 1)


def test_a_crash_while_a_qemu_was_stopped_is_a_crash(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    host = Host(Verdict.CRASH, by=STOPPED)
    (cell,) = judged_on(host, make_run, judge, pack).cells
    assert (cell.verdict, host.tries.total()) == (Verdict.CRASH, 1)


def test_a_finding_that_nobody_disturbed_stands_at_once(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    tries: list[str] = []

    def hang(plan: CellPlan, bench: Bench, _on_loads: Any, _control: Any) -> Iterator[Cell]:
        tries.append(str(plan.key))
        yield cell_of(plan, bench.binary, Verdict.HANG)

    judge(hang)
    run, _, _ = make_run(devices=("ahci",), schedules=(Schedule.SAME,), phases=("bound",))
    (cell,) = load_pack_rows(run, pack).cells
    assert (cell.verdict, len(tries)) == (Verdict.HANG, 1)


def test_of_a_device_whose_rest_is_void_the_finding_is_told_once(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    tries: list[str] = []

    def crash_and_rest(plan: CellPlan, bench: Bench, _on_loads: Any, _control: Any) -> Iterator[Cell]:
        tries.append(plan.device)
        yield cell_of(plan, bench.binary, Verdict.CRASH)
        verdict = Verdict.OK
        if len(tries) == 1:
            current_account().ended(TERM)
            verdict = Verdict.HOST
        rest = cell_of(plan, bench.binary, verdict, blamed=(), excluded=("i8259",))
        yield changed(rest, rest=1)

    judge(crash_and_rest)
    run, _, seen = make_run(devices=("platform",), schedules=(Schedule.SAME,), phases=("bound",))
    doc = load_pack_rows(run, pack)
    assert [(cell.key.rest, cell.verdict) for cell in doc.cells] == [(0, Verdict.CRASH), (1, Verdict.OK)]
    assert len(tries) == 2
    assert sum(isinstance(event, Judged) for event in seen) == 2


@pytest.mark.parametrize(("last", "rest"), [(Verdict.OK, Verdict.OK), (Verdict.HOST, Verdict.HOST)])
def test_a_finding_that_was_told_does_not_hide_that_its_rest_was_not_judged(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack, last: Verdict, rest: Verdict
) -> None:
    tries: list[str] = []

    def crash_and_rest(plan: CellPlan, bench: Bench, _on_loads: Any, _control: Any) -> Iterator[Cell]:
        tries.append(plan.device)
        final = len(tries) == TRIES and last is Verdict.OK
        if len(tries) > 1 and not final:
            current_account().ended(TERM)
            yield cell_of(plan, bench.binary, Verdict.HOST)
            return
        yield cell_of(plan, bench.binary, Verdict.CRASH)
        if not final:
            current_account().ended(TERM)
        verdict = Verdict.OK if final else Verdict.HOST
        yield changed(cell_of(plan, bench.binary, verdict, blamed=(), excluded=("i8259",)), rest=1)

    judge(crash_and_rest)
    run, _, _ = make_run(devices=("platform",), schedules=(Schedule.SAME,), phases=("bound",))
    cells = load_pack_rows(run, pack).cells
    assert [(cell.key.rest, cell.verdict) for cell in cells] == [(0, Verdict.CRASH), (1, rest)]
    assert len(tries) == TRIES


def test_a_device_that_was_judged_is_so_whatever_comes_of_the_next_try(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    tries: Counter[str] = Counter()

    def one_is_ended(plan: CellPlan, bench: Bench, _on_loads: Any, _control: Any) -> Iterator[Cell]:
        tries[plan.device] += 1
        first = tries[plan.device] == 1
        current_account().ended(TERM)
        yield cell_of(plan, bench.binary, Verdict.OK if first and plan.device == "ahci" else Verdict.HOST)

    judge(one_is_ended)
    run, _, _ = make_run(devices=("ahci", "virtio-blk"), schedules=(Schedule.SAME,), phases=("bound",))
    cells = load_pack_rows(run, pack).cells
    assert {(cell.device, cell.key.rest, cell.verdict) for cell in cells} == {
        ("ahci", 0, Verdict.OK),
        ("virtio-blk", 0, Verdict.HOST),
    }


def test_a_recording_that_the_host_does_not_let_be_made_is_the_hosts(
    make_run: Callable[..., Any], pack: StatePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settles(*_: object) -> None:
        current_account().ended(TERM)
        raise QemuError("QEMU closed the session")

    monkeypatch.setattr(run_module, "probe_colo", lambda *_: DIES)
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: Admission())
    monkeypatch.setattr(guests_module, "guest_admission", lambda *_: Admission())
    monkeypatch.setattr(owners_module, "saved_labels", settles)
    wanted = {"profiles": tuple(load_recipes().devices.values()), "devices": ("ahci",), "phases": ("bound",)}
    run, _, _ = make_run(guest=lambda _: None, schedules=(Schedule.SAME,), **wanted)
    (cell,) = run.execute().cells
    assert (cell.verdict, cell.outcome.causes) == (Verdict.HOST, (TERM,))


@pytest.mark.parametrize("mine", [False, True])
def test_what_is_not_decided_beside_a_device_that_is_left_out_is_judged_in_a_guest_without_it(
    make_run: Callable[..., Any],
    judge: Callable[[Judge], None],
    pack: StatePack,
    monkeypatch: pytest.MonkeyPatch,
    mine: bool,
) -> None:
    dues: list[GuestDue] = []
    asked: list[str] = []

    def record(due: GuestDue) -> GuestOutcome:
        dues.append(due)
        return GuestOutcome(pack=pack, plans=due.plans)

    def breaks_beside(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        asked.append(plan.key.place)
        left_out = Undecided(why=Why.LEFT_OUT, sections=tuple(pack.sections_of("ahci" if mine else "virtio-blk")))
        broke = plan.key.place == "ahci/bound/same" and len(dues) == 1
        found = cell_of(plan, bench.binary, Verdict.HARNESS_ERROR if broke else Verdict.OK, blamed=())
        yield changed(found, causes=(left_out,)) if broke else found

    judge(breaks_beside)
    recorder = SimpleNamespace(record=record, recordings=SimpleNamespace(release=lambda _: None))
    monkeypatch.setattr(run_module, "GuestRecorder", lambda **_: recorder)
    run, _, _ = make_run(guest=lambda _: None, profiles=tuple(load_recipes().devices.values()))
    doc = run.execute()
    cells = {cell.key.place: cell.verdict for cell in doc.cells}
    assert len(cells) == len(doc.cells) == len(set(asked))
    wrong = {place for place, verdict in cells.items() if verdict is not Verdict.OK}
    if mine:  # no guest would decide it
        assert (wrong, len(dues)) == ({"ahci/bound/same"}, 1)
        return
    assert not wrong
    first, again = dues
    assert "virtio-blk" in first.guest.names
    assert again.guest.names == ("ahci",)
    assert [plan.key.place for plan in again.plans] == ["ahci/bound/same"]
    # nothing else is judged twice
    assert Counter(asked) == Counter({**dict.fromkeys(cells, 1), "ahci/bound/same": 2})


def test_a_task_that_spends_its_budget_gives_up_what_it_has_not_judged(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    def endless(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        if plan.device == "ahci":
            assert bench.scope.wait(60.0)
        yield cell_of(plan, bench.binary)

    judge(endless)
    # enough for a busy host to come to the platform, which is judged before the one that never ends
    run, _, _ = make_run(budget_s=2.0, jobs=2, schedules=(Schedule.SAME,), phases=("bound",))
    doc = load_pack_rows(run, pack)
    assert doc.complete
    verdicts = {cell.device: (cell.verdict, cell.outcome.causes) for cell in doc.cells}
    assert verdicts["platform"] == (Verdict.OK, ())
    spent = Undecided(why=Why.BUDGET, seconds=2.0)
    assert {verdicts[device] for device in ("ahci", "virtio-blk")} == {(Verdict.HARNESS_ERROR, (spent,))}
    assert "2 s that --budget allows" in cause_text(spent)


def test_a_stop_is_no_spent_budget(
    make_run: Callable[..., Any], judge: Callable[[Judge], None], pack: StatePack
) -> None:
    def stopped(plan: CellPlan, bench: Bench, _loads: Any, _control: Any) -> Iterator[Cell]:
        run.stop()
        bench.scope.check()
        yield cell_of(plan, bench.binary)

    judge(stopped)
    run, _, _ = make_run(budget_s=60.0, jobs=1)
    doc = load_pack_rows(run, pack)
    assert not doc.complete
    assert doc.cells == ()
