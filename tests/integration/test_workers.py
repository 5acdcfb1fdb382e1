# SPDX-License-Identifier: GPL-2.0-or-later
"""A task that goes to another process as JSON gives the cells that it gives here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import psutil
import pytest

from harness.engines.schedule import LoadCount
from harness.errors import BudgetError, HarnessError, Stopped
from harness.experiments.interview import recorded_devices
from harness.lanes.lane import Request
from harness.lanes.registry import LANES
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.scope import ProcessScope
from harness.results.document import Cell
from harness.results.key import CellKey, Route
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.work.planning import Wanted, plan_tasks
from harness.work.process import ProcessWorker
from harness.work.task import QemuFile, RecordingFile, Task
from harness.work.worker import CellDone, Learnt, Loaded, LocalWorker, Reported, Worker

TIMEOUT_S = 180.0


@pytest.fixture(scope="module")
def q35_binary(qemu_path: Path, q35_pack: StatePack) -> QemuBinary:
    return probe_binary(qemu_path, q35_pack.device_types)


def tasks(pack: StatePack, binary: QemuBinary, lanes: Sequence[str], devices: Sequence[str], loads: int) -> list[Task]:
    like = Task(
        recording=RecordingFile(path=str(pack.source), content=pack.content),
        loader=QemuFile(path=binary.path, sha256=binary.sha256),
        request=Request(lane="", machine=pack.manifest.machine, phases=(), devices=()),
        answers=(),
        guest=recorded_devices(pack, None),
    )
    route = Route(recorder=binary.version, loader=binary.version)
    key = CellKey(route=route, machine=pack.manifest.machine, device="", phases=(), lane="")
    wanted = Wanted(
        key=key, reached=dict.fromkeys(devices, ("bound",)), phases=("bound",),
        lanes=tuple(LANES[name] for name in lanes), modes=(GuestMode.RUNNING,), loads=LoadCount(each=loads), like=like,
    )  # fmt: skip
    return plan_tasks(wanted)


def told_by(worker: Worker, task: Task) -> list[Reported]:
    told: list[Reported] = []
    worker.run(Task.from_json(task.to_json()), told.append)
    return [said for said in told if isinstance(said, CellDone | Learnt)]


def untimed(said: Reported) -> Reported:
    """What is left of a cell without times and rates."""
    if not isinstance(said, CellDone):
        return said
    return replace(said, cell=replace(said.cell, seconds=0.0, loads_per_second=0.0))


@pytest.mark.parametrize("lane", ["plain", "same", "back-to-back", "drift"])
def test_another_process_gives_the_same_cells(lane: str, q35_pack: StatePack, q35_binary: QemuBinary) -> None:
    (task,) = tasks(q35_pack, q35_binary, [lane], ["platform"], 20)
    with ProcessScope() as scope:
        here = told_by(LocalWorker(scope), task)
        there = told_by(ProcessWorker(scope), task)
        assert scope.processes == 0
    assert [untimed(said) for said in there] == [untimed(said) for said in here]
    assert {said.planned for said in there if isinstance(said, CellDone)} == {str(task.answers[0])}


def test_what_breaks_is_judged_and_learnt_there(q35_pack: StatePack, q35_binary: QemuBinary) -> None:
    """With its section, its class and what the controls gave, and the rest behind it."""
    (task,) = tasks(q35_pack, q35_binary, ["same"], ["platform"], 5)
    with ProcessScope() as scope:
        told = told_by(ProcessWorker(scope), task)
    cells: list[Cell] = [said.cell for said in told if isinstance(said, CellDone)]
    assert [cell.verdict for cell in cells] == [Verdict.CRASH, Verdict.OK]
    learnt = told[-1]
    assert isinstance(learnt, Learnt)
    assert [(one.section, one.phase) for one in learnt.exclusions] == [("0000:00:1f.0/ICH9LPC", "bound")]
    assert cells[1].excluded == ("0000:00:1f.0/ICH9LPC",)


def test_a_recording_or_a_qemu_that_is_another_one_is_not_taken(q35_pack: StatePack, q35_binary: QemuBinary) -> None:
    (task,) = tasks(q35_pack, q35_binary, ["same"], ["ahci"], 5)
    other = replace(task, recording=replace(task.recording, content="0" * 64))
    with ProcessScope() as scope, pytest.raises(HarnessError, match="another one than that of the task"):
        ProcessWorker(scope).run(other, lambda _: None)


@pytest.mark.parametrize("kind", [LocalWorker, ProcessWorker])
def test_a_budget_ends_a_task_and_its_qemus_and_no_other_task(
    kind: Callable[[ProcessScope], Worker], pc_pack: StatePack, qemu_path: Path
) -> None:
    binary = probe_binary(qemu_path, pc_pack.device_types)
    (task,) = tasks(pc_pack, binary, ["back-to-back"], ["ahci"], 10_000_000)
    told: list[Reported] = []
    with ProcessScope() as scope:
        worker = kind(scope)
        with pytest.raises(BudgetError, match="3 s"):
            worker.run(replace(task, budget_s=3.0), told.append)
        assert scope.processes == 0
        assert any(isinstance(said, Loaded) and said.total for said in told)
        assert not any(isinstance(said, CellDone | Learnt) for said in told)
        (few,) = tasks(pc_pack, binary, ["back-to-back"], ["ahci"], 100)
        cells = [said.cell for said in told_by(worker, replace(few, budget_s=60.0)) if isinstance(said, CellDone)]
    assert [cell.verdict for cell in cells] == [Verdict.OK]


def test_a_stop_ends_a_worker_and_its_qemus(
    pc_pack: StatePack, qemu_path: Path, eventually: Callable[..., None]
) -> None:
    binary = probe_binary(qemu_path, pc_pack.device_types)
    (task,) = tasks(pc_pack, binary, ["back-to-back"], ["ahci"], 10_000_000)
    loading = Event()
    scope = ProcessScope()
    # other tests of the session have servers of their own, whose processes come and go
    others = set(psutil.Process().children())

    def tell(said: Reported) -> None:
        if isinstance(said, Loaded) and said.total:
            loading.set()

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(ProcessWorker(scope).run, task, tell)
        try:
            assert loading.wait(TIMEOUT_S)
            (process,) = set(psutil.Process().children()) - others
            children = [process, *process.children(recursive=True)]
        finally:
            scope.close()
        with pytest.raises(Stopped):
            ended.result(TIMEOUT_S)
    assert len(children) == 2, "the worker and its secondary"
    eventually(lambda: not any(child.is_running() for child in children), "worker and QEMU are gone", TIMEOUT_S)
