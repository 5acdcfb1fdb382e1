# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker for a run that has its tasks done by the workers of a store, on any hosts.

To the run it is a worker like others. It hands out jobs, tells what is reported of them, and puts the names of this
host's files in the place of those of the other. A job that several workers began, because some of them were lost, tells
each cell once.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from harness.errors import HarnessError, HostError, HostsError
from harness.files import sha256_file
from harness.lanes.registry import LANES
from harness.packs.export import export_pack
from harness.packs.pack import StatePack
from harness.qemu.scope import ProcessScope
from harness.results.document import Cell
from harness.results.key import CellKey
from harness.work.ability import Ability
from harness.work.hosted import given_up_line
from harness.work.jobs import JobReport, Jobs, Pulse
from harness.work.process import Over, raise_for, said_in
from harness.work.task import RecordingFile, Task
from harness.work.worker import CellDone, Tell

_POLL_S = 0.3
_AGAIN_S = 2.0
#: A database that is away for so long ends the run.
_DATABASE_S = 120.0
#: A job that no living worker is able to do is given up after so long.
NOBODY_S = 600.0
_KEEP_S = 5.0
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gone:
    """A job that is over; its reports were all told before.

    :param error: why nothing more comes, where it was not the job that ended
    """

    job: int
    status: str
    error: HostError | HarnessError | None = None


_News = JobReport | _Gone


class RemoteWorker:
    """Has tasks carried out by the workers of a store. It is closed when its run is over.

    :param run: names the run in the store
    :param hosts: each task is done by each of these hosts; empty: by any one that is able to
    :param scope: of the run
    :param say: told what the user should know
    """

    def __init__(
        self,
        jobs: Jobs,
        run: str,
        scope: ProcessScope,
        say: Say,
        *,
        hosts: Sequence[str] = (),
        pulse: Pulse | None = None,
    ) -> None:
        self._jobs, self._run, self._scope, self._hosts = jobs, run, scope, tuple(hosts)
        jobs.listen(lambda: scope.stopped)
        self._sent: set[str] = set()
        self._lock = Lock()
        self._followed = _Followed(jobs, run, scope, say, pulse or Pulse())

    def close(self) -> None:
        """The run is over: what is left of its jobs is cancelled."""
        self._followed.close()

    def run(self, task: Task, tell: Tell) -> None:
        """See :meth:`harness.work.worker.Worker.run`."""
        self._patiently(lambda: self._send(task.recording))
        text = self.bare(task).to_json()
        jobs: dict[int, Ability] = {}
        try:
            for host in self._hosts or ("",):
                needs = needed(task, host)
                jobs[self._patiently(partial(self._jobs.defer, self._run, text, needs))] = needs
            self._follow(task, jobs, tell)
        finally:
            if not self._scope.stopped:  # they are cancelled with the run
                with suppress(HostError):
                    for job in jobs:
                        self._jobs.forget(job)

    def bare(self, task: Task) -> Task:
        """The task as it goes to another host: without files of this one."""
        return replace(task, loader=replace(task.loader, path=""), recording=replace(task.recording, path=""))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the database, also when it is away for a while."""
        end_s = time.monotonic() + _DATABASE_S
        while True:
            try:
                return ask()
            except HostError:
                if time.monotonic() > end_s:
                    raise
            self._scope.wait(_AGAIN_S)
            self._scope.check()

    def _follow(self, task: Task, jobs: Mapping[int, Ability], tell: Tell) -> None:
        errors: dict[str, HarnessError] = {}
        told: set[tuple[CellKey, str]] = set()
        open_jobs = set(jobs)
        with self._followed.by(jobs) as news:
            while open_jobs:
                self._scope.check()
                try:
                    new = news.get(timeout=_POLL_S)
                except Empty:
                    continue
                if new.job not in open_jobs:
                    continue
                needs = jobs[new.job]
                try:
                    over = _ended(new) if isinstance(new, _Gone) else self._told(task, needs, new, tell, told)
                    if over is None:
                        continue
                    raise_for(over, task.budget_s)
                except HarnessError as error:
                    errors[needs.host] = error
                open_jobs.discard(new.job)
        if errors:
            raise HostsError(errors) if self._hosts else errors[""]

    def _told(
        self, task: Task, needs: Ability, report: JobReport, tell: Tell, told: set[tuple[CellKey, str]]
    ) -> Over | None:
        """Tell what was reported; how the job ended, when it did."""
        said = said_in(report.line)
        if said is None:
            raise HarnessError(f"{report.host} reported what is no report: {report.line[:100]!r}")
        if isinstance(said, Over):
            return said
        if isinstance(said, CellDone):
            key = (said.cell.key, needs.host)
            if key in told:
                return None
            told.add(key)
            said = replace(said, cell=_as_here(said.cell, task, report.host))
        tell(said)
        return None

    def _send(self, recording: RecordingFile) -> None:
        """Have the store carry it, once a run."""
        with self._lock:
            if recording.content in self._sent:
                return
            if not self._jobs.has_recording(recording.content):
                with tempfile.TemporaryDirectory() as folder, StatePack(Path(recording.path)) as pack:
                    file = export_pack(pack, Path(folder) / "recording.pack")
                    self._jobs.put_recording(recording.content, file, sha256_file(file))
            self._sent.add(recording.content)


def needed(task: Task, host: str = "") -> Ability:
    """What a host needs to be able to do a task.

    :param host: the only one that will do
    """
    key = task.answers[0]
    return Ability(
        qemu=task.loader.sha256,
        version=key.route.loader,
        accel=key.accel,
        # a host that is named is to be compared with others, whatever its kernel
        kernel=platform.release() if key.accel == "kvm" and not host else "",
        host=host,
        waits=LANES[task.request.lane].waits,
    )


def _as_here(cell: Cell, task: Task, host: str) -> Cell:
    """The cell with the paths of this host, which has the same files, and with the name of the one that judged it."""
    loader = replace(cell.load_qemu, path=task.loader.path)
    same = cell.record_qemu.sha256 == cell.load_qemu.sha256
    return replace(
        cell,
        load_qemu=loader,
        record_qemu=replace(cell.record_qemu, path=task.loader.path) if same else cell.record_qemu,
        pack=task.recording.path if cell.pack else "",
        host=host,
    )


def _ended(gone: _Gone) -> Over:
    """A job that ended without a word of its worker's."""
    if gone.error is not None:
        raise gone.error
    return Over(error=f"its job ended as {gone.status}, and no worker said why", whose="task")


class _Followed:
    """The jobs of a run: one thread asks for all of them, says that the run lives, and sweeps."""

    def __init__(self, jobs: Jobs, run: str, scope: ProcessScope, say: Say, pulse: Pulse) -> None:
        self._jobs, self._run, self._scope, self._say, self._pulse = jobs, run, scope, say, pulse
        self._lock = Lock()
        self._last: dict[int, int] = {}
        self._news: dict[int, SimpleQueue[_News]] = {}
        self._needs: dict[int, Ability] = {}
        self._lonely_s: dict[str, float] = {}
        self._over, self._is_there = Event(), True
        jobs.begin(run)
        self._thread = Thread(target=self._follow_on, name="jobs", daemon=True)
        self._thread.start()

    @contextmanager
    def by(self, jobs: Mapping[int, Ability]) -> Iterator[SimpleQueue[_News]]:
        """What is new of some jobs, as it comes."""
        news: SimpleQueue[_News] = SimpleQueue()
        with self._lock:
            for job, needs in jobs.items():
                self._last[job], self._news[job], self._needs[job] = 0, news, needs
        try:
            yield news
        finally:
            with self._lock:
                for job in jobs:
                    del self._last[job], self._news[job], self._needs[job]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        if self._is_there:  # whoever sweeps cancels the jobs of a run that is not heard of
            with suppress(HostError):
                self._jobs.end(self._run)

    def _follow_on(self) -> None:
        well_s, kept_s = time.monotonic(), 0.0
        while not self._over.wait(_POLL_S) and not self._scope.stopped:
            try:
                self._ask()
                if time.monotonic() > kept_s + _KEEP_S:
                    self._keep()
                    kept_s = time.monotonic()
                well_s, self._is_there = time.monotonic(), True
            except HostError as error:
                self._is_there = False
                if time.monotonic() > well_s + _DATABASE_S:
                    self._tell_all(error)

    def _ask(self) -> None:
        with self._lock:
            last = dict(self._last)
        if not last:
            return
        reports, status = self._jobs.follow(last)
        with self._lock:
            for report in reports:
                if report.job in self._last:
                    self._last[report.job] = report.number
                    self._news[report.job].put(report)
            for job, state in status.items():
                if state not in ("todo", "doing") and job in self._news:
                    self._news[job].put(_Gone(job=job, status=state))

    def _keep(self) -> None:
        """Say that the run lives, sweep, and see whether anybody is able to do what waits."""
        self._jobs.begin(self._run)
        self._jobs.sweep(self._pulse, given_up_line())
        with self._lock:
            needs = {each.queue: each for each in self._needs.values()}
        if not needs:
            return
        living = self._jobs.living(self._pulse)
        for queue, each in needs.items():
            if any(one.offer.has(queue) for one in living):
                self._lonely_s.pop(queue, None)
            elif queue not in self._lonely_s:
                self._lonely_s[queue] = time.monotonic()
                self._say(f"no living worker has {named(each)}; postload work status tells what waits for which")
            elif time.monotonic() > self._lonely_s[queue] + NOBODY_S:
                self._give_up(queue, each)

    def _give_up(self, queue: str, needs: Ability) -> None:
        error = HarnessError(f"no living worker had {named(needs)} for {NOBODY_S / 60:g} minutes")
        with self._lock:
            for job in [job for job, each in self._needs.items() if each.queue == queue]:
                self._news[job].put(_Gone(job=job, status="todo", error=error))

    def _tell_all(self, error: HostError) -> None:
        with self._lock:
            for job, news in self._news.items():
                news.put(_Gone(job=job, status="", error=error))


def named(needs: Ability) -> str:
    """What is needed, for people."""
    kernel = f" and kernel {needs.kernel}" if needs.kernel else ""
    host = f" on {needs.host}" if needs.host else ""
    return f"QEMU {needs.version} ({needs.qemu[:12]}) with {needs.accel.upper()}{kernel}{host}"
