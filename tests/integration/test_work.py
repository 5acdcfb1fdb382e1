# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers of a PostgreSQL as processes: what they judge, what becomes of the jobs of a lost one, what they refuse."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest
from made_postgresql import Cluster

from harness.engines.schedule import Schedule
from harness.errors import HarnessError, Stopped
from harness.experiments.interview import recorded_devices
from harness.lanes.lane import Request
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.cmdline import Option
from harness.qemu.scope import ProcessScope
from harness.results.events import Event as RunEvent
from harness.results.events import Judged, Started
from harness.results.key import CellKey
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.store.read import open_history
from harness.work.asked import Options
from harness.work.jobs import Jobs, Pulse, open_jobs
from harness.work.remote import RemoteWorker, needed
from harness.work.run import Run, load_pack_rows
from harness.work.task import QemuFile, RecordingFile, Task
from harness.work.worker import Loaded, Reported, Worker

TIMEOUT_S = 180.0
#: A worker is taken for dead after so long.
LOST_S = 3.0
LOADS = 500
ENDLESS = 5_000_000


@pytest.fixture(scope="module")
def url(postgresql: Cluster) -> Iterator[str]:
    """Of the jobs of one resident worker."""
    name = postgresql.create()
    yield postgresql.url(name)
    postgresql.drop(name)


@pytest.fixture(scope="module")
def jobs(url: str) -> Iterator[Jobs]:
    with closing(open_jobs(url)) as opened:
        yield opened


@pytest.fixture
def other_jobs(postgresql: Cluster) -> Iterator[tuple[str, Jobs]]:
    """Jobs that the resident worker does not see."""
    name = postgresql.create()
    with closing(open_jobs(postgresql.url(name))) as opened:
        yield postgresql.url(name), opened
    postgresql.drop(name)


def worker_words(url: str, qemu: Path) -> list[str]:
    return ["work", "--store", url, "--qemu", str(qemu), "--jobs", "2", "--lost", str(LOST_S)]


def wait_for(jobs: Jobs, processes: Sequence[subprocess.Popen[str]], eventually: Callable[..., None]) -> None:
    """Until all of them have announced themselves."""

    def there() -> bool:
        for process in processes:
            assert process.poll() is None, process.communicate()
        return {process.pid for process in processes} <= {each.offer.pid for each in jobs.living(Pulse())}

    eventually(there, "the workers have announced themselves", TIMEOUT_S)


@pytest.fixture(scope="module")
def resident(url: str, jobs: Jobs, qemu_path: Path, eventually: Callable[..., None]) -> Iterator[psutil.Process]:
    """A worker that stays."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *worker_words(url, qemu_path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(jobs, [process], eventually)
    yield psutil.Process(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def pc_binary(qemu_path: Path, pc_pack: StatePack) -> QemuBinary:
    return probe_binary(qemu_path, pc_pack.device_types)


@pytest.fixture(scope="module")
def task(pc_pack: StatePack, pc_binary: QemuBinary) -> Task:
    """A few loads of ahci."""
    machine = pc_pack.manifest.machine
    return Task(
        recording=RecordingFile(path=str(pc_pack.source), content=pc_pack.content),
        loader=QemuFile(path=pc_binary.path, sha256=pc_binary.sha256),
        request=Request(lane="same", machine=machine, phases=("bound",), devices=("ahci",), loads=5),
        answers=(CellKey.parse(f"{pc_binary.version}/{machine}/ahci/bound/same"),),
        guest=recorded_devices(pc_pack, None),
        controls=False,
    )


class Watcher:
    """Has nothing to say."""

    def loads(self, cell_id: str, total: int) -> None: ...
    def start_cell(self, cell_id: str) -> None: ...
    def stage(self, text: str) -> None: ...


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_jobs_of_a_worker_that_ends_are_anothers_and_no_cell_is_lost_or_comes_twice(
    how: signal.Signals,
    started: Callable[..., subprocess.Popen[str]],
    other_jobs: tuple[str, Jobs],
    pc_pack: StatePack,
    pc_binary: QemuBinary,
    eventually: Callable[..., None],
) -> None:
    """One that is told to stop gives them back; those of a killed one are taken when it has no pulse any more."""
    url, jobs = other_jobs
    options = Options(
        binaries=(pc_binary,), accel="tcg", machines=(pc_pack.manifest.machine,), profiles=(),
        devices=("ahci",), phases=("bound",), schedules=(Schedule.SAME, Schedule.BACK_TO_BACK),
        guest_modes=(GuestMode.PARKED,), loads=LOADS, jobs=1, run_s=0.01, quick=True,
    )  # fmt: skip
    events: list[RunEvent] = []
    remotes: list[RemoteWorker] = []

    def remote(scope: ProcessScope) -> Worker:
        remotes.append(RemoteWorker(jobs, "ended", scope, lambda _: None, pulse=Pulse(lost_s=LOST_S)))
        return remotes[0]

    workers = [started(*worker_words(url, Path(pc_binary.path))) for _ in range(2)]
    wait_for(jobs, workers, eventually)
    first = Started(command=("postload",), host={})
    run = Run(options, watcher=Watcher(), started=first, write=events.append, remote=remote)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(load_pack_rows, run, pc_pack)
        try:
            busy, qemus = first_busy(workers, eventually)
            busy.send_signal(how)
            busy.send_signal(signal.SIGCONT)
            assert busy.wait(TIMEOUT_S) == (0 if how is signal.SIGTERM else -how)
            doc = ended.result(TIMEOUT_S)
        finally:
            run.stop()
            for each in remotes:
                each.close()
    eventually(lambda: not any(each.is_running() for each in qemus), "its QEMUs are gone", TIMEOUT_S)
    judged = [event.planned for event in events if isinstance(event, Judged)]
    assert sorted(judged) == sorted(set(judged))
    assert {(cell.device, cell.lane, cell.verdict, cell.loads_acked) for cell in doc.cells} == {
        ("ahci", lane, Verdict.OK, LOADS) for lane in ("same", "back-to-back")
    }
    assert doc.complete


def first_busy(
    workers: Sequence[subprocess.Popen[str]], eventually: Callable[..., None]
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """The worker that is first seen with a QEMU, stopped so that it cannot end its job before it is told to."""
    found: list[tuple[subprocess.Popen[str], list[psutil.Process]]] = []

    def stopped_at_work() -> bool:
        for worker in workers:
            if qemus_of(worker.pid):
                worker.send_signal(signal.SIGSTOP)
                qemus = qemus_of(worker.pid)
                if qemus:
                    found.append((worker, qemus))
                    return True
                worker.send_signal(signal.SIGCONT)
        return False

    eventually(stopped_at_work, "a worker is in the middle", TIMEOUT_S)
    return found[0]


def qemus_of(pid: int) -> list[psutil.Process]:
    """The QEMUs that a worker has just now."""
    return psutil.Process(pid).children(recursive=True)


def document(out: Path) -> dict[str, Any]:
    """A run's document without times, rates, hosts, paths, and what was typed."""
    found: dict[str, Any] = json.loads((out / "matrix.json").read_text())
    for name in ("command", "started", "seconds", "host", "totals"):
        found.pop(name, None)
    for cell in found["cells"]:
        for name in ("seconds", "loads_per_second", "host"):
            del cell[name]
    return found


def test_a_run_of_workers_has_the_document_of_one_that_was_done_here(
    resident: psutil.Process,
    postload: Callable[..., subprocess.CompletedProcess[str]],
    url: str,
    q35_pack: StatePack,
    qemu_path: Path,
    tmp_path: Path,
) -> None:
    """With a crash in it, which is found, told apart from the rest, and no failed job."""
    words = ("replay", q35_pack.path, "--qemu", qemu_path, "--device", "platform,ahci", "--phase", "bound")
    options = ("--schedule", "same", "--loads", "3", "--quick")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(postload, *words, *options, "--out", tmp_path / "here")
        there = postload(*words, *options, "--out", tmp_path / "there", "--store", url, "--remote")
        here = first.result(TIMEOUT_S)
    assert there.returncode == here.returncode, there.stderr
    assert document(tmp_path / "there") == document(tmp_path / "here")
    cells = json.loads((tmp_path / "there" / "matrix.json").read_text())["cells"]
    assert {cell["host"] for cell in cells} == {platform.node()}


#: The same file on each host, and on that of one name another machine: what comes in there meets another network card
#: than it left.
HOSTS_DIFFER = """#!/bin/sh
case "$0 $* " in */beta/*" -incoming "*) set -- "$@" -global virtio-net-pci.disable-legacy=on ;; esac
exec {qemu} "$@"
"""


def test_each_host_says_for_itself_what_a_cell_comes_to(
    started: Callable[..., subprocess.Popen[str]],
    postload: Callable[..., subprocess.CompletedProcess[str]],
    other_jobs: tuple[str, Jobs],
    pc_pack: StatePack,
    qemu_path: Path,
    scratch: Path,
    eventually: Callable[..., None],
) -> None:
    url, jobs = other_jobs
    builds = {name: scratch / name / "qemu" for name in ("alpha", "beta")}
    for build in builds.values():
        build.parent.mkdir()
        build.write_text(HOSTS_DIFFER.format(qemu=qemu_path))
        build.chmod(0o755)
    workers = [started(*worker_words(url, build), "--name", name) for name, build in builds.items()]
    wait_for(jobs, workers, eventually)
    words = ("replay", pc_pack.path, "--qemu", builds["alpha"], "--device", "virtio-net", "--phase", "bound")
    options = ("--schedule", "same", "--loads", "2", "--quick", "--each-host", "--store", url)
    done = postload(*words, *options, "--out", scratch / "out")
    assert done.returncode == 1, done.stderr
    assert "on each of these hosts: alpha, beta" in done.stderr
    cell, *rest = json.loads((scratch / "out" / "matrix.json").read_text())["each_host"]
    assert cell["cell"].endswith("/virtio-net/bound/same")
    assert [(each["host"], each["verdict"]) for each in cell["outcomes"]] == [("alpha", "ok"), ("beta", "reject")]
    # without what was blamed the host that found something looks once more
    assert [each["host"] for further in rest for each in further["outcomes"]] == ["beta"]
    with open_history(url) as history:
        rows = [row for row in history.cells(history.run("last")) if not row.cell.endswith("+rest")]
    assert {(row.host, row.verdict, row.signature[:28]) for row in rows} == {
        ("alpha", Verdict.OK, ""),
        ("beta", Verdict.REJECT, "reject:get_pci_config_device"),
    }


def test_a_forged_task_is_refused_and_the_worker_goes_on(resident: psutil.Process, jobs: Jobs, task: Task) -> None:
    """It comes by the store as it is, past whoever would make a good one of it."""
    sha256 = task.loader.sha256
    # the beginning of the hash names the queue
    forgeries: dict[str, dict[str, Any]] = {
        "names a file": {"loader": QemuFile(path="/bin/sh", sha256=sha256)},
        "expected -global alone": {"overrides": (Option(name="device", first="vfio-pci"),)},
        "romfile": {"overrides": (Option(name="global", props={"virtio-net-pci.romfile": "/etc/passwd"}),)},
        "no QEMU with the hash": {"loader": QemuFile(path="", sha256=sha256[:32] + "0" * 32)},
    }
    with ProcessScope() as scope:
        for said, forged in forgeries.items():
            with (
                closing(Forger(jobs, "forged", scope, forged)) as forger,
                pytest.raises(HarnessError, match=f"not a task for this host: .*{said}"),
            ):
                forger.run(task, lambda _: None)
        told: list[Reported] = []
        with closing(RemoteWorker(jobs, "good", scope, lambda _: None)) as remote:
            remote.run(task, told.append)
    assert [each.kind for each in told].count("cell") == 1
    assert resident.is_running()


class Forger(RemoteWorker):
    """Changes tasks on their way."""

    def __init__(self, jobs: Jobs, run: str, scope: ProcessScope, forged: dict[str, Any]) -> None:
        super().__init__(jobs, run, scope, lambda _: None)
        self._forged = forged

    def bare(self, task: Task) -> Task:
        return replace(super().bare(task), **self._forged)


def test_a_worker_without_the_qemu_never_gets_the_job_and_the_status_says_so(
    resident: psutil.Process,
    postload: Callable[..., subprocess.CompletedProcess[str]],
    jobs: Jobs,
    url: str,
    task: Task,
) -> None:
    other = replace(task, loader=replace(task.loader, sha256="ab" * 32))
    jobs.begin("lonely")
    job = jobs.defer("lonely", other.to_json(), needed(other))
    done = postload("work", "status", "--store", url)
    assert done.returncode == 1, done.stderr
    assert "1 living worker" in done.stdout
    assert "(abababababab), TCG\n    able: NO LIVING WORKER" in done.stdout
    assert jobs.follow({job: 0})[1][job] == "todo"
    jobs.end("lonely")


def test_a_run_that_is_stopped_ends_the_jobs_of_its_workers(
    resident: psutil.Process, jobs: Jobs, task: Task, eventually: Callable[..., None]
) -> None:
    endless = replace(task, request=replace(task.request, loads=ENDLESS))
    loading = Event()

    def tell(said: Reported) -> None:
        if isinstance(said, Loaded) and said.total:
            loading.set()

    scope = ProcessScope()
    with closing(RemoteWorker(jobs, "stopped", scope, lambda _: None)) as remote, ThreadPoolExecutor() as pool:
        ended = pool.submit(remote.run, endless, tell)
        assert loading.wait(TIMEOUT_S)
        assert qemus_of(resident.pid)
        scope.close()
        with pytest.raises(Stopped):
            ended.result(TIMEOUT_S)
    eventually(lambda: not qemus_of(resident.pid), "the secondary is gone", TIMEOUT_S)
    assert resident.is_running()
    eventually(lambda: all(not each.doing for each in jobs.living(Pulse())), "the worker is free", TIMEOUT_S)
