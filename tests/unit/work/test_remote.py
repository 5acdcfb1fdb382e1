# SPDX-License-Identifier: GPL-2.0-or-later
"""A run's side of jobs in a real PostgreSQL; the workers are made here, and say what they are told to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from made_cells import QEMU, made_cell
from made_postgresql import Cluster, Server

from harness.errors import BudgetError, HarnessError, HostError, HostsError, Stopped
from harness.lanes.lane import Request
from harness.packs.pack import StatePack
from harness.qemu.scope import ProcessScope
from harness.results.document import Cell
from harness.results.key import CellKey
from harness.results.verdict import Verdict
from harness.work import jobs as jobs_module
from harness.work import remote as remote_module
from harness.work.ability import Ability, HostOffer, OfferedQemu
from harness.work.hosted import given_up_line
from harness.work.jobs import Held, Jobs, Pulse, open_jobs
from harness.work.process import Over, line_of
from harness.work.remote import RemoteWorker, needed
from harness.work.task import QemuFile, RecordingFile, Task
from harness.work.worker import CellDone, Learnt, Loaded, Reported

TIMEOUT_S = 60.0
PLACE = "pc-q35-7.2/ahci/bound/same"
AHCI, BLK = made_cell(PLACE), made_cell("pc-q35-7.2/virtio-blk/bound/same")


@pytest.fixture
def jobs(postgresql: Cluster) -> Iterator[Jobs]:
    name = postgresql.create()
    with closing(open_jobs(postgresql.url(name))) as opened:
        yield opened
    postgresql.drop(name)


@pytest.fixture
def task(make_pack: Callable[..., Path]) -> Task:
    path = make_pack()
    with StatePack(path) as pack:
        content = pack.content
    return Task(
        recording=RecordingFile(path=str(path), content=content),
        loader=QemuFile(path="/here/qemu", sha256=QEMU.sha256),
        request=Request(lane="same", machine="pc-q35-7.2", phases=("bound",), devices=("ahci", "virtio-blk")),
        answers=(AHCI.key, BLK.key),
        budget_s=7.0,
    )


class MadeWorker:
    """Takes jobs of one queue, one by one."""

    def __init__(self, jobs: Jobs, host: str, needs: Ability) -> None:
        self._jobs, self._needs, self.host = jobs, needs, host
        offered = OfferedQemu(qemu=needs.qemu, version="7.2.22", path="/there/qemu")
        offer = HostOffer(host=host, pid=1, jobs=1, arch="x86_64", kernel="6.1", kvm=False, qemus=(offered,))
        with jobs.connected() as connection:
            row = connection.execute("SELECT worker_id FROM procrastinate_register_worker_v1()").fetchone()
            assert row is not None
            self.number = int(row[0])
        jobs.offer(self.number, offer)

    def take(self) -> Held:
        """The next job; waits for it."""
        end_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end_s:
            with self._jobs.connected() as connection:
                query = "SELECT id, attempts FROM procrastinate_fetch_job_v2(%s::varchar[], %s)"
                found = connection.execute(query, ([self._needs.queue], self.number)).fetchone()
            if found is not None and found[0] is not None:
                return Held(job=found[0], attempt=found[1], worker=self.number)
            time.sleep(0.02)
        raise AssertionError("no job came")

    def say(self, held: Held, *said: Reported | Over) -> None:
        assert self._jobs.report(held, self.host, [line_of(each) for each in said])

    def die(self) -> None:
        """Its pulse stops, and somebody sees it."""
        with self._jobs.connected() as connection:
            query = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour' WHERE id = %s"
            connection.execute(query, (self.number,))
        self._jobs.sweep(Pulse(), given_up_line())


def done(cell: Cell, **changes: object) -> CellDone:
    return CellDone(planned=cell.id, cell=replace(cell, **changes))  # type: ignore[arg-type]


@pytest.fixture
def begun(
    jobs: Jobs, task: Task
) -> Iterator[Callable[[Sequence[str]], tuple[Future[None], list[Reported], list[str]]]]:
    """Has a run do the task on some hosts: when it is over, what was told, what was said."""
    said: list[str] = []
    with ThreadPoolExecutor() as pool, ProcessScope() as scope:
        made: list[RemoteWorker] = []

        def begin(hosts: Sequence[str] = ()) -> tuple[Future[None], list[Reported], list[str]]:
            told: list[Reported] = []
            made.append(RemoteWorker(jobs, "run", scope, said.append, hosts=hosts))
            return pool.submit(made[-1].run, task, told.append), told, said

        yield begin
        scope.close()
        for each in made:
            each.close()


Begun = Callable[..., tuple[Future[None], list[Reported], list[str]]]


def test_what_a_worker_reports_is_told_with_the_files_of_this_host(jobs: Jobs, task: Task, begun: Begun) -> None:
    worker = MadeWorker(jobs, "beta", needed(task))
    over, told, _ = begun()
    held = worker.take()
    there = replace(QEMU, path="/there/qemu")
    worker.say(held, Loaded(cell=AHCI.id, total=3), done(AHCI, load_qemu=there, record_qemu=there, pack="/there/pack"))
    worker.say(held, done(BLK, load_qemu=there, record_qemu=there), Learnt(exclusions=()), Over())
    over.result(TIMEOUT_S)
    here = {
        "load_qemu": replace(QEMU, path="/here/qemu"),
        "record_qemu": replace(QEMU, path="/here/qemu"),
        "host": "beta",
    }
    assert told == [
        Loaded(cell=AHCI.id, total=3),
        done(AHCI, **here, pack=task.recording.path),
        done(BLK, **here),
        Learnt(exclusions=()),
    ]
    with jobs.connected() as connection:
        row = connection.execute(
            "SELECT args->'task'->'loader'->>'path', args::text FROM procrastinate_jobs"
        ).fetchone()
    assert row is not None
    assert row[0] == ""
    assert task.recording.path not in row[1]


def test_a_cell_that_two_workers_judged_since_one_was_lost_is_told_once(jobs: Jobs, task: Task, begun: Begun) -> None:
    first, second = (MadeWorker(jobs, name, needed(task)) for name in ("beta", "gamma"))
    over, told, _ = begun()
    first.say(first.take(), done(AHCI))
    first.die()
    second.say(second.take(), done(AHCI), done(BLK), Over())
    over.result(TIMEOUT_S)
    assert [(each.planned, each.cell.host) for each in told if isinstance(each, CellDone)] == [
        (AHCI.id, "beta"),
        (BLK.id, "gamma"),
    ]


def test_a_job_that_three_workers_were_lost_with_is_an_error_and_what_was_told_stands(
    jobs: Jobs, task: Task, begun: Begun
) -> None:
    over, told, _ = begun()
    for number in range(3):
        worker = MadeWorker(jobs, f"host{number}", needed(task))
        held = worker.take()
        if not number:
            worker.say(held, done(AHCI))
        worker.die()
    with pytest.raises(HarnessError, match="3 workers were lost with it"):
        over.result(TIMEOUT_S)
    assert [each.planned for each in told if isinstance(each, CellDone)] == [AHCI.id]


@pytest.mark.parametrize(
    ("last", "kind", "said"),
    [
        (line_of(Over(error="no place", whose="task")), HarnessError, "no place"),
        (line_of(Over(error="too long", whose="budget")), BudgetError, "7 s"),
        ("not a report", HarnessError, "beta reported what is no report"),
    ],
)
def test_how_a_task_ended_is_told(
    jobs: Jobs, task: Task, begun: Begun, last: str, kind: type[Exception], said: str
) -> None:
    worker = MadeWorker(jobs, "beta", needed(task))
    over, _, _ = begun()
    assert jobs.report(worker.take(), "beta", [last])
    with pytest.raises(kind, match=said):
        over.result(TIMEOUT_S)


def test_each_host_judges_and_those_that_cannot_are_named(jobs: Jobs, task: Task, begun: Begun) -> None:
    workers = [MadeWorker(jobs, name, needed(task, name)) for name in ("alpha", "beta", "gamma")]
    over, told, _ = begun(["alpha", "beta", "gamma"])
    alpha, beta, gamma = workers
    alpha.say(alpha.take(), done(AHCI), done(BLK), Over())
    beta.say(beta.take(), done(made_cell(PLACE, Verdict.CRASH)), done(BLK), Over())
    gamma.say(gamma.take(), done(AHCI), Over(error="no space", whose="task"))
    with pytest.raises(HostsError) as caught:
        over.result(TIMEOUT_S)
    assert {name: str(error) for name, error in caught.value.errors.items()} == {"gamma": "no space"}
    found = [(each.cell.host, each.cell.device, each.cell.verdict) for each in told if isinstance(each, CellDone)]
    assert sorted(found) == [
        ("alpha", "ahci", Verdict.OK),
        ("alpha", "virtio-blk", Verdict.OK),
        ("beta", "ahci", Verdict.CRASH),
        ("beta", "virtio-blk", Verdict.OK),
        ("gamma", "ahci", Verdict.OK),
    ]


def test_a_job_that_nobody_is_able_to_do_is_told_of_and_given_up(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "NOBODY_S", 0.0)
    monkeypatch.setattr(remote_module, "_KEEP_S", 0.2)
    over, _, said = begun()
    with pytest.raises(HarnessError, match=r"no living worker had QEMU 7\.2\.22 \(.*\) with TCG for 0 minutes"):
        over.result(TIMEOUT_S)
    who = f"QEMU 7.2.22 ({QEMU.sha256[:12]}) with TCG"
    assert [line.partition(";")[0] for line in said] == [f"no living worker has {who}"]


def test_what_is_needed_of_a_host() -> None:
    key = CellKey.parse("7.2.22/pc-q35-7.2+accel=kvm/ahci/bound/leak")
    like = Task(
        recording=RecordingFile(path="", content=""),
        loader=QemuFile(path="", sha256="ab" * 32),
        request=Request(lane="leak", machine="pc-q35-7.2", phases=("bound",), devices=("ahci",)),
        answers=(key,),
    )
    assert needed(like).kernel != ""
    assert needed(like, "beta").kernel == ""
    assert needed(like).waits
    assert json.loads(like.to_json())["request"]["lane"] == "leak"


@pytest.mark.parametrize("gone", ["killed", "frozen"])
def test_a_run_that_is_told_to_stop_does_not_wait_for_a_database_that_is_gone(
    own_postgresql: Server, task: Task, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Without an ear for the stop, it waits for longer than this test does."""
    monkeypatch.setattr(jobs_module, "_FREE_S", 3600.0)
    monkeypatch.setattr(jobs_module, "_ANSWER_S", 3600.0)
    with ThreadPoolExecutor() as pool, ProcessScope() as scope:
        jobs = open_jobs(own_postgresql.cluster.url())
        worker = RemoteWorker(jobs, "run", scope, lambda said: None)
        over = pool.submit(worker.run, task, lambda said: None)
        MadeWorker(jobs, "beta", needed(task)).take()
        own_postgresql.kill() if gone == "killed" else own_postgresql.freeze()
        another = pool.submit(worker.run, task, lambda said: None)
        time.sleep(1.0)  # so that all are about to ask
        scope.close()
        for each in (over, another):
            assert isinstance(each.exception(TIMEOUT_S), Stopped | HostError)
        for close in (worker.close, jobs.close):
            closing = Thread(target=close, daemon=True)
            closing.start()
            closing.join(TIMEOUT_S)
            assert not closing.is_alive()
