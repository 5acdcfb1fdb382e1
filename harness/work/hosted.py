# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker of a host: takes jobs that the host is able to do, and carries them out one by one or some at a time.

It holds a job only while the database says so. When it is taken for dead, because it was stopped or cut off for a
while, its jobs are another's: then it ends at once, and its QEMUs with it. When it is told to stop it gives its jobs
back. When the host itself cannot do a job, it gives that back too and ends: it would fail at all the others.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from harness.cache import cache_root, keep_answer, kept_answer
from harness.errors import BudgetError, HostError, PackError, PostloadError, Stopped
from harness.files import sha256_file, temp_dir
from harness.packs.pack import StatePack
from harness.packs.packfile import unpacked
from harness.qemu.installed import launched
from harness.qemu.scope import ProcessScope
from harness.work.ability import HostOffer
from harness.work.admitted import check_against, check_task
from harness.work.jobs import CARRY_OUT, TRIES, Held, Jobs, Pulse
from harness.work.process import Over, line_of, over_for
from harness.work.task import QemuFile, RecordingFile, Task
from harness.work.worker import LocalWorker, Reported

#: What was reported is written so often, and the database asked whether the job is still wanted.
REPORT_S = 1.0
_IMPORTED = re.compile(r"imported-[0-9a-f]{64}")
Say = Callable[[str], None]


class GivenBack(Exception):
    """A job is another worker's from now on."""


def given_up_line() -> str:
    """What is reported of a job whose workers were lost."""
    return line_of(Over(error=f"{TRIES} workers were lost with it, one after the other", whose="task"))


class OwnThings:
    """The QEMUs and recordings of this host, by their hashes.

    :param qemus: hash of a program to the path that starts it
    """

    def __init__(self, jobs: Jobs, qemus: Mapping[str, str]) -> None:
        self._jobs = jobs
        self._qemus = dict(qemus)
        self._lock = Lock()

    def admitted(self, text: str) -> Task:
        """A task from elsewhere with this host's own files.

        :raises UsageError: it is none, or asks for more than it may
        :raises HostError: its QEMU or recording is not here any more
        """
        task = Task.from_json(text)
        check_task(task)
        qemu, folder = self._qemu(task.loader.sha256), self._recording(task.recording.content)
        with StatePack(folder) as pack:
            check_against(task, pack, qemu)
        return replace(
            task,
            loader=QemuFile(path=qemu, sha256=task.loader.sha256),
            recording=RecordingFile(path=str(folder), content=task.recording.content),
        )

    def _qemu(self, sha256: str) -> str:
        path = self._qemus.get(sha256)
        if path is None:
            raise PackError(f"not a task for this host: it has no QEMU with the hash {sha256[:16]}")
        if launched(Path(path)).sha256 != sha256:
            raise HostError(f"{path} is another program than when the worker began")
        return path

    def _recording(self, content: str) -> Path:
        """Its folder in the cache."""
        key = f"contents/{content}.json"
        with self._lock:
            name = kept_answer(key)
            if isinstance(name, str) and _IMPORTED.fullmatch(name):
                folder = cache_root() / "packs" / name
                if folder.is_dir():
                    return folder
            packs = cache_root() / "packs"
            packs.mkdir(parents=True, exist_ok=True)
            with temp_dir(packs) as temp:
                folder = self._fetched(content, temp / "recording.pack")
            keep_answer(key, folder.name)
            return folder

    def _fetched(self, content: str, file: Path) -> Path:
        wanted = self._jobs.get_recording(content, file)
        if sha256_file(file) != wanted:
            raise PackError(f"the recording {content[:16]} in {self._jobs.name} is damaged")
        folder = unpacked(file)
        with StatePack(folder) as pack:
            if pack.content != content:
                raise PackError(
                    f"the recording {content[:16]} in {self._jobs.name} is another one: {pack.content[:16]}"
                )
        return folder


class Reporter:
    """Reports what comes of one job, from a thread of its own, while the job is this worker's.

    :param scope: of the job; closed when nobody waits for it any more
    :param lost: called when the job is another's
    """

    def __init__(self, jobs: Jobs, held: Held, host: str, scope: ProcessScope, pulse: Pulse, lost: Say) -> None:
        self._jobs, self._held, self._host = jobs, held, host
        self._scope, self._pulse, self._lost = scope, pulse, lost
        self._changed = Condition()
        self._said: list[tuple[Any, str]] = []
        self._over = False
        self._heard_s = time.monotonic()
        self._thread = Thread(target=self._report_on, name=f"report-{held.job}", daemon=True)
        self._thread.start()

    def tell(self, said: Reported | Over) -> None:
        """One more line; of counts of one cell the last is enough."""
        key = (said.kind, said.cell) if said.kind == "loaded" else None
        with self._changed:
            if key is not None and self._said and self._said[-1][0] == key:
                self._said.pop()
            self._said.append((key, line_of(said)))
            if key is None:
                self._changed.notify()

    def end(self) -> None:
        """Nothing more comes: all is reported when this returns."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    def _report_on(self) -> None:
        over = False
        while not over:
            with self._changed:
                if not self._over:
                    self._changed.wait(REPORT_S)
                over = self._over
            while not self._flush() and over:
                time.sleep(REPORT_S)

    def _flush(self) -> bool:
        """Whether all was written."""
        with self._changed:
            said = list(self._said)
        try:
            wanted = self._jobs.report(self._held, self._host, [line for _, line in said])
        except HostError as error:
            if time.monotonic() - self._heard_s > self._pulse.lost_s:
                self._lost(f"no word with the database for {self._pulse.lost_s:g} s: {error}")
            return False
        self._heard_s = time.monotonic()
        if wanted is None:
            self._lost("this worker was taken for dead, and its jobs are another's")
        elif not wanted:
            self._scope.close()
        with self._changed:
            del self._said[: len(said)]
            return not self._said


class HostWorker:
    """Serves the jobs of a store on this host.

    :param qemus: hash of a program to the path that starts it
    :param say: told what goes on
    :param idle_s: it ends when it had no job for so long; None: it waits for the next
    """

    def __init__(
        self,
        jobs: Jobs,
        offer: HostOffer,
        qemus: Mapping[str, str],
        scope: ProcessScope,
        say: Say,
        *,
        pulse: Pulse | None = None,
        idle_s: float | None = None,
    ) -> None:
        self._jobs, self._offer, self._say, self._idle_s = jobs, offer, say, idle_s
        self._pulse = pulse or Pulse()
        self._scope = ProcessScope(scope)
        self._things = OwnThings(jobs, qemus)
        self._worker = LocalWorker(self._scope)
        self._lock = Lock()
        self._doing = 0
        self._idle_since_s = time.monotonic()
        self._unable: HostError | None = None
        self._stop: Callable[[], object] = lambda: None

    def serve(self) -> None:
        """Carry out jobs until it is told to stop by SIGTERM or SIGINT.

        :raises HostError: the database is lost, or this host cannot do a job
        """
        asyncio.run(self._serve())
        if self._unable is not None:
            raise self._unable

    async def _serve(self) -> None:
        import procrastinate
        import psycopg_pool
        from procrastinate.worker import Worker

        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = partial(loop.call_soon_threadsafe, stopped.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        loop.set_default_executor(ThreadPoolExecutor(2 * self._offer.jobs + 4, thread_name_prefix="job"))
        app = self._jobs.worker_app()
        app.task(name=CARRY_OUT, pass_context=True, retry=_retry_strategy())(self._carry_out)
        try:
            async with app.open_async():
                pullers: list[Any] = [
                    Worker(
                        app,
                        queues=self._offer.queues(waits=waits),
                        name=self._offer.host,
                        concurrency=self._offer.jobs,
                        install_signal_handlers=False,
                        update_heartbeat_interval=self._pulse.beat_s,
                        stalled_worker_timeout=self._pulse.lost_s,
                    )
                    for waits in (False, True)
                ]
                await self._pull(pullers, stopped)
        except (procrastinate.exceptions.ProcrastinateException, psycopg_pool.PoolTimeout) as error:
            raise HostError(f"the jobs in {self._jobs.name}: {error.__cause__ or error}") from error

    async def _pull(self, pullers: Sequence[Any], stopped: asyncio.Event) -> None:
        """Until it is told to stop, or the first of them ends because the database is lost."""
        running = [asyncio.create_task(puller.run()) for puller in pullers]
        pulse = asyncio.create_task(self._keep(pullers, stopped))
        told = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([*running, told, pulse], return_when=asyncio.FIRST_COMPLETED)
            ended_well = stopped.is_set()
        finally:
            self._scope.close()
            for puller in pullers:
                puller.stop()
            pulse.cancel()
            told.cancel()
            done = await asyncio.gather(*running, pulse, told, return_exceptions=True)
        errors = [each for each in done if isinstance(each, Exception)]
        if errors or not ended_well:
            why = f": {errors[0]}" if errors else ""
            raise HostError(f"the jobs in {self._jobs.name}: the worker cannot go on{why}") from next(
                iter(errors), None
            )

    async def _keep(self, pullers: Sequence[Any], stopped: asyncio.Event) -> None:
        """Announce the worker; then sweep now and then, and see whether it is idle."""
        announced: set[int] = set()
        while not stopped.is_set():
            for number, puller in enumerate(pullers):
                if number not in announced and puller.worker_id is not None:
                    await asyncio.to_thread(self._jobs.offer, puller.worker_id, self._offer)
                    announced.add(number)
                    if len(announced) == len(pullers):
                        self._say("ready")
            with suppress(HostError):  # the heartbeat tells when it lasts
                taken = await asyncio.to_thread(self._jobs.sweep, self._pulse, given_up_line())
                if taken:
                    self._say(f"jobs of lost workers given to others: {taken}")
            if self._idle_s is not None and self._idle_for_s() > self._idle_s:
                self._say(f"no job for {self._idle_s:g} s: ends")
                stopped.set()
            with suppress(TimeoutError):
                wait_s = self._pulse.beat_s if len(announced) == len(pullers) else 0.1
                await asyncio.wait_for(stopped.wait(), wait_s)

    def _idle_for_s(self) -> float:
        with self._lock:
            return 0.0 if self._doing else time.monotonic() - self._idle_since_s

    def _carry_out(self, context: Any, /, **given: Any) -> None:
        """One job, in a thread."""
        job = context.job
        held = Held(job=job.id, attempt=job.attempts, worker=job.worker_id or 0)
        with self._lock:
            self._doing += 1
        try:
            with ProcessScope(self._scope) as scope:
                reporter = Reporter(self._jobs, held, self._offer.host, scope, self._pulse, self._leave)
                try:
                    over = self._over(held, json.dumps(given.get("task")), reporter, scope)
                    if over is not None:
                        reporter.tell(over)
                finally:
                    reporter.end()
        finally:
            with self._lock:
                self._doing -= 1
                self._idle_since_s = time.monotonic()

    def _over(self, held: Held, text: str, reporter: Reporter, scope: ProcessScope) -> Over | None:
        """Carry out a task; how it ended, None when nobody waits for it."""
        try:
            task = self._things.admitted(text)
            self._say(
                f"job {held.job}: {task.answers[0]}" + (f" and {len(task.answers) - 1} more" * bool(task.answers[1:]))
            )
            self._worker.run(task, reporter.tell, scope)
        except Stopped as error:
            if self._scope.stopped:
                raise GivenBack from error
            return None
        except HostError as error:
            return self._cannot(held, error)
        except PostloadError as error:
            if not isinstance(error, BudgetError):
                self._say(f"job {held.job}: {error}")
            return over_for(error)
        except Exception as error:
            traceback.print_exc()
            return Over(error=f"a mistake in postload itself, on {self._offer.host}: {error!r}", whose="task")
        return Over()

    def _cannot(self, held: Held, error: HostError) -> Over:
        """This host cannot do it: another one may, until enough could not."""
        self._unable = error
        self._stop()
        if self._jobs.count_try(held.job) < TRIES:
            raise GivenBack from error
        return Over(error=f"{TRIES} workers could not do it; on {self._offer.host}: {error}", whose="task")

    def _leave(self, why: str) -> None:
        """End at once: a job that is another's must not be said to be done. QEMUs die with this process."""
        self._say(why)
        self._scope.close()
        sys.stderr.flush()
        os._exit(HostError.exit_code)


def _retry_strategy() -> Any:
    from procrastinate import BaseRetryStrategy, RetryDecision

    class Strategy(BaseRetryStrategy):
        """What was given back may be taken at once; nothing else is tried again."""

        def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision | None:
            return RetryDecision(retry_in={"seconds": 0}) if isinstance(exception, GivenBack) else None

    return Strategy()
