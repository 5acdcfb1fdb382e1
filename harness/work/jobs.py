# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks as jobs in PostgreSQL, for workers on any number of hosts.

The jobs are procrastinate's: it hands each to one worker, and keeps the pulse of workers. What it leaves to its users
is here. A job whose worker has no pulse any more goes to another one, :data:`TRIES` times in all. What a worker reports
counts only while the job is its own, in the database's eyes: one that was taken for dead and comes back cannot say a
word. The jobs of a run that is gone are cancelled. Recordings lie beside the jobs, by the hash of their content.

All of it has a schema of its own (:data:`SCHEMA`) in the database of the history. It holds nothing that lasts: when its
tables change, it gets another name.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HostError, MissingError, UsageError
from harness.store.engine import CONNECT_S, shown, store_url
from harness.work.ability import Ability, HostOffer

if TYPE_CHECKING:
    import procrastinate
    import psycopg

#: Procrastinate's tables of 3.10 (pyproject.toml holds it there) and those below.
SCHEMA = "postload_work_1"
#: Name of the only kind of job.
CARRY_OUT = "carry_out"
#: A job is given to so many workers that are lost with it, or that cannot do it, before it is given up.
TRIES = 3
#: A run that was not heard of for so long is gone.
LEAD_LOST_S = 90.0
#: Recordings that no run has named for so long are removed, and jobs that are over for so long.
KEPT_S = 2 * 86400.0
#: A free connection is waited for so long; by whoever was told to stop not so long. The threads of a pool at its end.
_FREE_S, _LAST_FREE_S, _CLOSED_S = 15.0, 0.5, 0.1
#: An answer is waited for so long.
_ANSWER_S = 60.0
_PART_BYTES = 4 << 20
_LOCK = 0x706F73746C6F6165

_TABLES = """
CREATE TABLE leads (
    run text PRIMARY KEY, host text NOT NULL, pid integer NOT NULL, alive timestamptz NOT NULL DEFAULT now());
CREATE TABLE offers (
    worker_id bigint PRIMARY KEY REFERENCES procrastinate_workers (id) ON DELETE CASCADE, offer text NOT NULL);
CREATE TABLE tries (
    job_id bigint PRIMARY KEY REFERENCES procrastinate_jobs (id) ON DELETE CASCADE, count integer NOT NULL);
CREATE TABLE reports (
    id bigserial PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES procrastinate_jobs (id) ON DELETE CASCADE,
    host text NOT NULL,
    line text NOT NULL);
CREATE INDEX reports_job ON reports (job_id, id);
CREATE TABLE recordings (
    content text PRIMARY KEY, sha256 text NOT NULL, used timestamptz NOT NULL DEFAULT now());
CREATE TABLE recording_parts (
    content text REFERENCES recordings (content) ON DELETE CASCADE,
    number integer, data bytea NOT NULL, PRIMARY KEY (content, number));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How often a worker says that it lives, and after what silence it is taken for dead, in seconds."""

    beat_s: float = 5.0
    lost_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A job that a worker holds.

    :param attempt: how often it was given out before
    """

    job: int
    attempt: int
    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """A line that the worker of a job reported.

    :param host: of that worker
    """

    number: int
    job: int
    host: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Jobs of one queue that are not over.

    :param needs: what all of them need
    :param todo: that nobody has yet
    :param doing: that a worker has
    :param oldest_s: how long the oldest of those that nobody has waits
    """

    queue: str
    needs: Ability
    machines: tuple[str, ...]
    todo: int
    doing: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """A worker that has a pulse.

    :param doing: how many jobs it has
    """

    offer: HostOffer
    doing: int


class Jobs:
    """The jobs of a store. Safe to use from several threads.

    :param name: the store as it is told
    """

    def __init__(self, name: str, url: str, options: Mapping[str, Any]) -> None:
        # here, because nothing but this needs them
        import procrastinate

        from harness.store.bounded import bounded_connection

        self.name = name
        self._url = url
        self._options = dict(options)
        self._stopped: Callable[[], bool] = lambda: False
        self._kind = bounded_connection(_ANSWER_S, lambda: self._stopped())
        self._pool: dict[str, Any] = {
            "conninfo": url,
            "kwargs": self._options,
            "min_size": 1,
            "max_size": 8,
            "timeout": CONNECT_S,
        }
        self._connector: Any = procrastinate.SyncPsycopgConnector(**self._pool, connection_class=self._kind)
        self._app = procrastinate.App(connector=self._connector)

    def worker_app(self) -> procrastinate.App:
        """One for the event loop of a worker."""
        import procrastinate

        return procrastinate.App(connector=procrastinate.PsycopgConnector(**self._pool))

    def listen(self, stopped: Callable[[], bool]) -> None:
        """Wait no more for a database that does not answer when somebody was told to stop."""
        self._stopped = stopped

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in a transaction, which is committed when the block ends well.

        :raises HostError: the database is not there, or does not take it
        """
        import psycopg

        pool = self._connector.pool
        try:
            with self._free(pool) as connection:
                yield connection
        except psycopg.Error as error:
            raise HostError(f"the jobs in {self.name}: {_first_line(error)}") from error

    @contextmanager
    def _free(self, pool: Any) -> Iterator[psycopg.Connection[Any]]:
        """A connection of the pool, which is waited for in short steps."""
        import psycopg_pool

        ends_s = time.monotonic() + _FREE_S
        while True:
            try:
                connection = pool.getconn(timeout=_LAST_FREE_S)
                break
            except psycopg_pool.PoolTimeout:
                if self._stopped() or time.monotonic() > ends_s:
                    raise
        try:
            with connection:
                yield connection
        finally:
            pool.putconn(connection)

    def close(self) -> None:
        """Give the connections back."""
        self._connector.pool.close(timeout=_CLOSED_S)
        self._app.close()

    # What a run does

    def begin(self, run: str) -> None:
        """A run begins, or is still there: its jobs are cancelled when it was not heard of for a while."""
        with self.connected() as connection:
            connection.execute(
                "INSERT INTO leads (run, host, pid) VALUES (%s, %s, %s) ON CONFLICT (run) DO UPDATE SET alive = now()",
                (run, platform.node(), os.getpid()),
            )

    def end(self, run: str) -> None:
        """It has ended: what is left of its jobs is cancelled."""
        with self.connected() as connection:
            connection.execute("DELETE FROM leads WHERE run = %s", (run,))
            _cancel_orphans(connection)

    def defer(self, run: str, task: str, needs: Ability) -> int:
        """One more job; returns its number.

        :param task: as JSON
        """
        import procrastinate

        try:
            with self.connected() as connection:
                plan = self._app.configure_task(CARRY_OUT, queue=needs.queue, allow_unknown=True, connection=connection)
                return plan.defer(run=run, task=json.loads(task), needs=asdict(needs))
        except procrastinate.exceptions.ProcrastinateException as error:
            raise HostError(f"the jobs in {self.name}: {_first_line(error.__cause__ or error)}") from error

    def follow(self, last: Mapping[int, int]) -> tuple[list[JobReport], dict[int, str]]:
        """What became of some jobs.

        :param last: number of a job to that of the last report of it that is known
        :returns: newer reports in their order; and the status of each job, ``gone`` where it is not there
        """
        jobs = list(last)
        with self.connected() as connection:
            # first: a job that is over reports nothing more
            rows = connection.execute("SELECT id, status FROM procrastinate_jobs WHERE id = ANY(%s)", (jobs,))
            status = dict.fromkeys(jobs, "gone") | {row[0]: row[1] for row in rows}
            query = """SELECT r.id, r.job_id, r.host, r.line
                FROM unnest(%s::bigint[], %s::bigint[]) AS f (job, last)
                JOIN reports r ON r.job_id = f.job AND r.id > f.last ORDER BY r.id"""
            found = connection.execute(query, (jobs, list(last.values())))
            reports = [JobReport(number=row[0], job=row[1], host=row[2], line=row[3]) for row in found]
        return reports, status

    def forget(self, job: int) -> None:
        """Nobody waits for a job any more: it is removed, or its worker is told to leave off."""
        with self.connected() as connection:
            connection.execute("SELECT procrastinate_cancel_job_v1(%s, true, false)", (job,))
            connection.execute("DELETE FROM reports WHERE job_id = %s", (job,))
            connection.execute("DELETE FROM procrastinate_jobs WHERE id = %s AND status <> 'doing'", (job,))

    def has_recording(self, content: str) -> bool:
        """Whether a recording is there; it stays for a while then."""
        with self.connected() as connection:
            done = connection.execute("UPDATE recordings SET used = now() WHERE content = %s", (content,))
            return done.rowcount > 0

    def put_recording(self, content: str, file: Path, sha256: str) -> None:
        """Put a recording there, whole or not at all. Two may do so at once.

        :param content: its hash; see :attr:`harness.packs.pack.StatePack.content`
        :param file: its form as one file
        :param sha256: of that file
        """
        with self.connected() as connection, file.open("rb") as data:
            done = connection.execute(
                "INSERT INTO recordings (content, sha256) VALUES (%s, %s) ON CONFLICT DO NOTHING", (content, sha256)
            )
            number = 0
            while done.rowcount and (part := data.read(_PART_BYTES)):
                connection.execute("INSERT INTO recording_parts VALUES (%s, %s, %s)", (content, number, part))
                number += 1

    # What a worker does

    def get_recording(self, content: str, file: Path) -> str:
        """Write a recording to a file; returns the hash that the file is to have.

        :raises HostError: it is not there
        """
        with self.connected() as connection, file.open("wb") as out:
            found = connection.execute("SELECT sha256 FROM recordings WHERE content = %s", (content,)).fetchone()
            if found is None:
                raise HostError(f"the recording {content[:16]} is not in {self.name}")
            number = 0
            query = "SELECT data FROM recording_parts WHERE content = %s AND number = %s"
            while (part := connection.execute(query, (content, number), binary=True).fetchone()) is not None:
                out.write(part[0])
                number += 1
        return str(found[0])

    def offer(self, worker: int, offer: HostOffer) -> None:
        """Say what a worker can do, for as long as it lives."""
        with self.connected() as connection:
            query = "INSERT INTO offers VALUES (%s, %s) ON CONFLICT (worker_id) DO UPDATE SET offer = excluded.offer"
            connection.execute(query, (worker, offer.to_json()))

    def report(self, held: Held, host: str, lines: Sequence[str]) -> bool | None:
        """Report lines of a job, all or none.

        :returns: whether the worker shall go on with the job; None where it is not its own any more, since it was
            taken for dead
        """
        with self.connected() as connection:
            mine = connection.execute(
                """SELECT abort_requested FROM procrastinate_jobs
                WHERE id = %s AND status = 'doing' AND attempts = %s AND worker_id = %s FOR UPDATE""",
                (held.job, held.attempt, held.worker),
            ).fetchone()
            if mine is None:
                return None
            if lines and not mine[0]:
                connection.execute(
                    "INSERT INTO reports (job_id, host, line) "
                    "SELECT %s, %s, line FROM unnest(%s::text[]) WITH ORDINALITY AS l (line, n) ORDER BY n",
                    (held.job, host, list(lines)),
                )
            return not mine[0]

    def count_try(self, job: int) -> int:
        """A worker could not do a job; returns how many could not so far."""
        with self.connected() as connection:
            return _count_try(connection, job)

    # What everybody does now and then

    def sweep(self, pulse: Pulse, given_up: str) -> int:
        """Give the jobs of lost workers to others, cancel those of lost runs, and remove what is old.

        Whoever does it, does it alone.

        :param given_up: reported for a job that was tried often enough
        :returns: how many jobs were taken from lost workers
        """
        with self.connected() as connection:
            if not _locked(connection, wait=False):
                return 0
            stalled = connection.execute(
                """SELECT j.id FROM procrastinate_jobs j LEFT JOIN procrastinate_workers w ON w.id = j.worker_id
                WHERE j.status = 'doing'
                AND (w.id IS NULL OR w.last_heartbeat < now() - make_interval(secs => %s))
                ORDER BY j.id FOR UPDATE OF j""",
                (pulse.lost_s,),
            ).fetchall()
            for (job,) in stalled:
                if _count_try(connection, job) < TRIES:
                    query = "SELECT procrastinate_retry_job_v2(%s, now(), NULL, NULL, NULL)"
                    connection.execute(query, (job,))
                else:
                    connection.execute("INSERT INTO reports (job_id, host, line) VALUES (%s, '', %s)", (job, given_up))
                    connection.execute("SELECT procrastinate_finish_job_v1(%s, 'failed', false)", (job,))
            _cancel_orphans(connection)
            connection.execute("DELETE FROM recordings WHERE used < now() - make_interval(secs => %s)", (KEPT_S,))
            return len(stalled)

    def waiting(self) -> list[Waiting]:
        """The queues with jobs that are not over, the longest first."""
        with self.connected() as connection:
            rows = connection.execute(
                """SELECT queue_name, (array_agg(args->'needs' ORDER BY id))[1],
                    array_agg(DISTINCT args->'task'->'request'->>'machine'),
                    count(*) FILTER (WHERE status = 'todo'), count(*) FILTER (WHERE status = 'doing'),
                    extract(epoch FROM now() - min(since.at) FILTER (WHERE status = 'todo'))
                FROM procrastinate_jobs j
                LEFT JOIN LATERAL (SELECT max(at) AS at FROM procrastinate_events e WHERE e.job_id = j.id) since ON true
                WHERE status IN ('todo', 'doing') GROUP BY queue_name ORDER BY 4 DESC, 1"""
            ).fetchall()
        return [
            Waiting(
                queue=queue,
                needs=Ability.from_plain(needs),
                machines=tuple(sorted(name for name in machines if name)),
                todo=todo,
                doing=doing,
                oldest_s=float(oldest or 0.0),
            )
            for queue, needs, machines, todo, doing, oldest in rows
        ]

    def living(self, pulse: Pulse) -> list[Living]:
        """The workers that have a pulse, by host."""
        with self.connected() as connection:
            rows = connection.execute(
                """SELECT o.offer, count(j.id) FROM offers o JOIN procrastinate_workers w ON w.id = o.worker_id
                LEFT JOIN procrastinate_jobs j ON j.worker_id = w.id AND j.status = 'doing'
                WHERE w.last_heartbeat >= now() - make_interval(secs => %s) GROUP BY w.id, o.offer ORDER BY w.id""",
                (pulse.lost_s,),
            ).fetchall()
        doing: dict[tuple[str, int], Living] = {}
        for text, count in rows:
            offer = HostOffer.from_json(text)
            if offer is not None:
                before = doing.get((offer.host, offer.pid))
                doing[offer.host, offer.pid] = Living(offer=offer, doing=count + (before.doing if before else 0))
        return [doing[key] for key in sorted(doing)]


def open_jobs(store: str) -> Jobs:
    """The jobs of a store, whose tables are made when they are not there.

    :raises UsageError: the store is no PostgreSQL
    :raises MissingError: a package is missing that only this needs
    :raises HostError: it cannot be opened
    """
    url = store_url(store)
    if url.get_backend_name() != "postgresql":
        raise UsageError(f"{store}: workers of several hosts need postgresql://USER@HOST/DATABASE; this is a file")
    options = " ".join(part for part in (url.query.get("options"), f"-c search_path={SCHEMA}") if isinstance(part, str))
    plain = url.set(drivername="postgresql")
    text = plain.render_as_string(hide_password=False)
    try:
        jobs = Jobs(shown(plain), text, {"options": options, "connect_timeout": CONNECT_S})
    except ImportError as error:
        raise MissingError(f"work on several hosts needs the package {error.name}: {_INSTALL}") from error
    _open(jobs)
    return jobs


_INSTALL = "pip install 'postload[workers]', in a clone: .venv/bin/pip install -e '.[workers]'"


def _open(jobs: Jobs) -> None:
    import procrastinate
    import psycopg

    try:
        with jobs._kind.connect(jobs._url, **jobs._options) as connection:
            _locked(connection, wait=True)
            there = connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.recordings",)).fetchone()
            if there is None or there[0] is None:
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                connection.execute(procrastinate.schema.SchemaManager.get_schema())
                connection.execute(_TABLES)
        jobs._app.open()
    except (psycopg.Error, procrastinate.exceptions.ProcrastinateException) as error:
        raise HostError(f"the jobs in {jobs.name}: {_first_line(error.__cause__ or error)}") from error


def _locked(connection: psycopg.Connection[Any], *, wait: bool) -> bool:
    """Have all others wait until the transaction is over, or see that another one is at it."""
    if wait:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        return True
    found = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone()
    return bool(found and found[0])


def _count_try(connection: psycopg.Connection[Any], job: int) -> int:
    query = (
        "INSERT INTO tries VALUES (%s, 1) ON CONFLICT (job_id) DO UPDATE SET count = tries.count + 1 RETURNING count"
    )
    found = connection.execute(query, (job,)).fetchone()
    return int(found[0]) if found else 0


def _cancel_orphans(connection: psycopg.Connection[Any]) -> None:
    """The jobs of runs that are not there, or were not heard of for long."""
    lost = "make_interval(secs => %s)"
    connection.execute(f"DELETE FROM leads WHERE alive < now() - {lost}", (LEAD_LOST_S,))
    connection.execute(
        """SELECT procrastinate_cancel_job_v1(id, true, false) FROM procrastinate_jobs
        WHERE status IN ('todo', 'doing') AND NOT abort_requested
        AND NOT EXISTS (SELECT FROM leads WHERE run = args->>'run')"""
    )
    connection.execute(
        """DELETE FROM procrastinate_jobs WHERE status NOT IN ('todo', 'doing')
        AND NOT EXISTS (SELECT FROM leads WHERE run = args->>'run')"""
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
