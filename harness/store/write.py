# SPDX-License-Identifier: GPL-2.0-or-later
"""A run into a history, event by event.

:class:`RunWriter` writes batches of events, each in one transaction, and may write the same event twice: a cell that is
there already stays one, and of several that tell of one cell the same stands for it as in the document
(:func:`harness.results.document.weight_of`). So a run can be written while it goes on (:class:`RunSink`), and what was
lost of it read from its folder (:mod:`harness.store.importing`).
"""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from enum import StrEnum
from statistics import median
from threading import Event as Flag
from threading import Thread
from typing import Any

import sqlalchemy as sa
import zstandard

from harness.errors import HostError
from harness.results.document import Cell, MachineResult, Qemu, Weight, weight_of
from harness.results.events import CellsPlanned, Event, GuestBooted, Judged, MachineSeen, RunEnded, Started
from harness.results.key import CellKey, release_line
from harness.results.known import Issue, known_link
from harness.results.signature import Signature, name_of, signature_of_cell
from harness.results.verdict import Verdict
from harness.store import tables as t
from harness.store.engine import CONNECT_S, insert_into, shown, told, writing
from harness.store.states import Excuse, ExcuseKind

#: A batch is written when it has so many events, or its first one is so old.
BATCH_EVENTS, BATCH_S = 500, 1.0
#: A run that has nothing to tell says so often that it is alive.
ALIVE_S = 60.0
#: How long a database that does not take events is tried again before a try, and in all when the run has ended.
RETRY_S, LAST_TRIES_S = 5.0, 30.0
#: In place of that when the run was told to stop.
STOPPED_TRIES_S = 1.0
#: Names are looked up so many at a time: SQLite takes no more than 32,766 values in one statement.
_CHUNK = 500


class RunState(StrEnum):
    """What became of a run."""

    RUNNING = "running"
    ENDED = "ended"
    STOPPED = "stopped"  # by Ctrl-C, or by an error that it could tell
    KILLED = "killed"  # it is gone, and did not say so


class RateKind(StrEnum):
    """What is measured; the value is what is stored."""

    LOADS = "loads-per-second"
    BOOT = "boot-seconds"


class RunWriter:
    """Writes one run. Not thread-safe.

    :param folder: where its events are, an absolute path; empty where nobody knows
    :param clock: seconds since 1970
    :param state: of the run, by the events that were written
    """

    def __init__(self, engine: sa.Engine, folder: str = "", clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._folder = folder
        self._clock = clock
        self._run = self._host = 0
        self._host_name = ""
        self._each_host = self._several_hosts = False
        self._known: tuple[Issue, ...] = ()
        self._day = date.min
        self._keeps_plan = True
        self.state = RunState.RUNNING
        self._ids: dict[str, dict[str, int]] = {}
        self._fresh: dict[str, dict[str, int]] = {}
        #: What stands in the history for each cell, and what a transaction puts there.
        self._weights: dict[tuple[str, str], Weight] = {}
        self._fresh_weights: dict[tuple[str, str], Weight] = {}
        self._boots: set[GuestBooted] = set()
        self._press = zstandard.ZstdCompressor(level=3)

    def begin(self, started: Started) -> bool:
        """Have the run in the history; whether it was not there yet.

        :raises HostError: the database does not take it; so do all others here
        """
        # each shard names the cells of the whole run: the plan is kept with the run that they are merged to
        self._keeps_plan = started.shard is None
        self._day = datetime.fromisoformat(started.started).date()
        self._known = tuple(Issue.model_validate(issue) for issue in started.known or ())
        host = _host_row({name: value for name, value in started.host.items() if name not in ("accel", "python")})
        self._host_name = host["name"]
        self._each_host = bool(started.hosts)
        with self._transaction() as connection:
            self._host = self._look_up(connection, t.hosts, "sha256", [host])[host["sha256"]]
            row = {
                "name": started.name,
                "started": started.started,
                "command": json.dumps(started.command),
                "program": started.program.version,
                "host_id": self._host,
                "folder": self._folder,
                "state": RunState.RUNNING,
                "seconds": 0.0,
                "alive": self._clock(),
            }
            insert = insert_into(self._engine, t.runs).values(row).on_conflict_do_nothing().returning(t.runs.c.id)
            made = connection.execute(insert).scalar()
            query = sa.select(t.runs.c.id).where(t.runs.c.name == started.name)
            self._run = connection.execute(query).scalar_one()
            insert_excuses(connection, self._engine, self._run, _of_issues(self._known))
        return made is not None

    def write(self, events: Sequence[Event]) -> None:
        """Write a batch, or nothing of it."""
        with self._transaction() as connection:
            self._write(connection, events)

    def touch(self) -> None:
        """Say that the run is alive."""
        with self._transaction() as connection:
            self._update_run(connection)

    def end(self, state: RunState) -> None:
        """Say what became of the run."""
        self.state = state
        self.touch()

    def answer(self, machines: Iterable[MachineResult]) -> None:
        """Keep the answers for the machines of the run."""
        with self._transaction() as connection:
            self._put_machines(connection, list(machines))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """What is looked up or put there within counts for later ones when it is committed: a batch that a database
        took and did not confirm is written again as it was."""
        self._fresh, self._fresh_weights = {}, {}
        with told(self._engine), writing(self._engine) as connection:
            yield connection
        for name, found in self._fresh.items():
            self._ids.setdefault(name, {}).update(found)
        self._weights |= self._fresh_weights

    def _write(self, connection: sa.Connection, events: Sequence[Event]) -> None:
        answers = self._worse(event for event in events if isinstance(event, Judged))
        judged = [event.cell for event in answers]
        plans = [event for event in events if isinstance(event, CellsPlanned) and self._keeps_plan]
        planned = [name for event in plans for name in event.cells]
        self._put_machines(connection, [event.machine for event in events if isinstance(event, MachineSeen)])
        keys = {cell.id: cell.key for cell in judged} | {name: CellKey.parse(name) for name in planned}
        cells = self._ids_of(connection, t.cells, "key", map(_cell_row, keys.values()))
        if planned:
            rows = [{"run_id": self._run, "cell_id": cells[name], "host_id": self._host} for name in planned]
            connection.execute(insert_into(self._engine, t.outcomes).on_conflict_do_nothing(), rows)
        if judged:
            self._put_outcomes(connection, judged, cells)
            self._take_out_answered(connection, answers)
        self._put_boots(connection, [event for event in events if isinstance(event, GuestBooted)])
        for ended in (event for event in events if isinstance(event, RunEnded)):
            self.state = RunState.ENDED if ended.complete else RunState.STOPPED
        self._update_run(connection, max((event.at_s for event in events), default=0.0))

    def _worse(self, judged: Iterable[Judged]) -> list[Judged]:
        """Of each cell the one that stands for it from now on, where that is not what stood for it before."""
        found: dict[tuple[str, str], Judged] = {}
        for event in judged:
            key = (event.cell.id, event.cell.host if self._each_host else "")
            weight, known = weight_of(event.cell), self._fresh_weights.get(key) or self._weights.get(key)
            if known is None or weight < known:
                self._fresh_weights[key] = weight
                found[key] = event
        return list(found.values())

    def _take_out_answered(self, connection: sa.Connection, answers: Sequence[Judged]) -> None:
        """What was planned and judged only without its culprit is answered by that cell: it is not left unjudged."""
        names = [event.planned for event in answers if event.planned != event.cell.id]
        if names:
            cells = self._ids_of(connection, t.cells, "key", [_cell_row(CellKey.parse(name)) for name in names])
            mine = (t.outcomes.c.run_id == self._run, t.outcomes.c.host_id == self._host)
            own = t.outcomes.c.cell_id.in_([cells[name] for name in names])
            connection.execute(t.outcomes.delete().where(*mine, own, t.outcomes.c.verdict.is_(None)))

    def _put_outcomes(self, connection: sa.Connection, judged: Sequence[Cell], cells: Mapping[str, int]) -> None:
        qemus = [qemu for cell in judged for qemu in (cell.record_qemu, cell.load_qemu)]
        builds = self._ids_of(connection, t.builds, "sha256", map(build_row, qemus))
        named = [(cell, name_of(cell)) for cell in judged]
        found = (_signature_row(cell, name) for cell, name in named if name)
        signatures = self._ids_of(connection, t.signatures, "name", found)
        hosts = self._hosts_of(connection, judged)
        for host in set(hosts.values()) if self._several_hosts else ():
            self._drop_others(connection, host, [cells[cell.id] for cell in judged if hosts[cell.host] == host])
        rows = [
            {
                "run_id": self._run,
                "cell_id": cells[cell.id],
                "host_id": hosts[cell.host],
                "signature_id": signatures[name] if name else None,
                "loader_id": builds[cell.load_qemu.sha256],
                "recorder_id": builds[cell.record_qemu.sha256],
                "known": known_link(cell, self._known, self._day) or cell.known or None,
                **_figures(cell),
            }
            for cell, name in named
        ]
        self._upsert(connection, t.outcomes, rows)
        logs = [
            {
                "run_id": self._run,
                "cell_id": cells[cell.id],
                "host_id": hosts[cell.host],
                "cell": self._press.compress(json.dumps(cell.to_json(), default=str).encode("utf-8", "replace")),
            }
            for cell in judged
            if cell.verdict is not Verdict.OK
        ]
        self._upsert(connection, t.logs, logs)

    def _hosts_of(self, connection: sa.Connection, judged: Sequence[Cell]) -> dict[str, int]:
        """By the name that a cell has of it: the host that judged it. Of another than the run's, only that is known."""
        others = {cell.host for cell in judged} - {"", self._host_name}
        self._several_hosts |= bool(others)
        rows = {name: _host_row({"name": name}) for name in others}
        found = self._ids_of(connection, t.hosts, "sha256", rows.values())
        return {"": self._host, self._host_name: self._host} | {n: found[row["sha256"]] for n, row in rows.items()}

    def _drop_others(self, connection: sa.Connection, host: int, cells: Sequence[int]) -> None:
        """Of cells that a host judged, what was planned for the run's own; and what others of less weight said, unless
        each host was asked."""
        rows = (t.outcomes.c.run_id == self._run) & (t.outcomes.c.host_id != host)
        if self._each_host:
            rows &= (t.outcomes.c.host_id == self._host) & t.outcomes.c.verdict.is_(None)
        for first in range(0, len(cells), _CHUNK):
            these = t.outcomes.c.cell_id.in_(cells[first : first + _CHUNK])
            connection.execute(t.outcomes.delete().where(rows & these))

    def _put_machines(self, connection: sa.Connection, machines: Sequence[MachineResult]) -> None:
        qemus = [qemu for each in machines for qemu in (each.qemu, each.record_qemu or each.qemu)]
        builds = self._ids_of(connection, t.builds, "sha256", map(build_row, qemus))
        rows = [
            {
                "run_id": self._run,
                "machine": each.machine,
                "loader_id": builds[each.qemu.sha256],
                "recorder_id": builds[(each.record_qemu or each.qemu).sha256],
                "colo": each.colo,
                "document": json.dumps(each.to_json(), default=str),
            }
            for each in machines
        ]
        self._upsert(connection, t.machines, rows)

    def _put_boots(self, connection: sa.Connection, booted: Sequence[GuestBooted]) -> None:
        """How long the guests of a machine took to boot: the median of those that did in this run."""
        self._boots.update(booted)  # one that is written again is there already
        rows = []
        for subject in sorted({_booted_on(event) for event in booted}):
            boots = [event for event in self._boots if _booted_on(event) == subject]
            figures = {
                "value": median(event.processor_s for event in boots),
                "control": median(event.yardstick_s for event in boots),
                "samples": len(boots),
            }
            rows.append({"run_id": self._run, "kind": RateKind.BOOT, "subject": subject, **figures})
        self._upsert(connection, t.rates, rows)

    def _update_run(self, connection: sa.Connection, seconds: float = 0.0) -> None:
        changes = {
            "alive": self._clock(),
            # again and again: another host may have taken a run for dead that could not write for a while
            "state": self.state,
            "seconds": sa.case((t.runs.c.seconds < seconds, seconds), else_=t.runs.c.seconds),
        }
        connection.execute(t.runs.update().where(t.runs.c.id == self._run).values(changes))

    def _ids_of(
        self,
        connection: sa.Connection,
        table: sa.Table,
        column: str,
        rows: Iterable[dict[str, Any]],
    ) -> Mapping[str, int]:
        """Row numbers by a unique column; those that are not there are made, in an order that all writers have."""
        known = {**self._ids.get(table.name, {}), **self._fresh.get(table.name, {})}
        missing = {row[column]: row for row in rows if row[column] not in known}
        if missing:
            found = self._look_up(connection, table, column, [missing[name] for name in sorted(missing)])
            self._fresh.setdefault(table.name, {}).update(found)
            known |= found
        return known

    def _look_up(
        self, connection: sa.Connection, table: sa.Table, column: str, rows: Sequence[dict[str, Any]]
    ) -> dict[str, int]:
        connection.execute(insert_into(self._engine, table).on_conflict_do_nothing(), rows)
        query = sa.select(table.c[column], table.c.id)
        found: dict[str, int] = {}
        for first in range(0, len(rows), _CHUNK):
            names = [row[column] for row in rows[first : first + _CHUNK]]
            for name, number in connection.execute(query.where(table.c[column].in_(names))):
                found[name] = number
        return found

    def _upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        insert = insert_into(self._engine, table)
        keys = [column.name for column in table.primary_key]
        changed = {name: insert.excluded[name] for name in rows[0] if name not in keys}
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def insert_excuses(connection: sa.Connection, engine: sa.Engine, run: int, excuses: Iterable[Excuse]) -> None:
    """Keep excuses with a run, by its number; those that are there stay."""
    rows = [
        {
            "run_id": run,
            "kind": each.kind,
            "line": each.line,
            "signature": each.signature,
            "link": each.link,
            "until": each.until.isoformat() if each.until else "",
        }
        for each in excuses
    ]
    if rows:
        connection.execute(insert_into(engine, t.excuses).on_conflict_do_nothing(), rows)


def _of_issues(known: Iterable[Issue]) -> Iterator[Excuse]:
    for issue in known:
        yield Excuse(kind=ExcuseKind.KNOWN, line="", signature=issue.signature, link=issue.link, until=issue.until)


class RunSink:
    """Takes the events of a run and writes them from a thread of its own, so that no cell waits for a database.

    A database that is gone for a while costs nothing: what it did not take is tried again. What it has not taken
    :data:`LAST_TRIES_S` after the end is in the run's folder, and can be imported. A run that was told to stop, or that
    is interrupted at its end, does not wait so long, and not at all for a database that does not answer.

    :param lost: of a sink that is closed, how many events are not in the history
    """

    def __init__(self, engine: sa.Engine, folder: str) -> None:
        self._engine, self._writer = engine, RunWriter(engine, folder)
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._batch: list[Event] = []
        self._closing, self._stopped = Flag(), Flag()
        self._thread: Thread | None = None
        self.lost = 0
        self.error: HostError | None = None

    def take(self, event: Event) -> None:
        """The next event; the first of a run waits for the database, so that a run without a history does not begin.

        :raises HostError: the database does not take the first
        """
        if isinstance(event, Started):
            self._writer.begin(event)
            self._thread = Thread(target=self._write_on, name="history", daemon=True)
            self._thread.start()
        else:
            if isinstance(event, RunEnded) and not event.complete:
                self._stopped.set()
            self._queue.put(event)

    def end(self, machines: Iterable[MachineResult]) -> None:
        """The run has ended: keep its answers too.

        :raises HostError: the database does not take them
        """
        self.close()
        if self.error is None and self._writer.state is not RunState.RUNNING:
            self._writer.answer(machines)

    def close(self) -> None:
        """Write what is left; :attr:`lost` and :attr:`error` say what could not be."""
        self._closing.set()
        if self._thread is None:
            return
        try:
            self._thread.join(self._last_tries_s + (0.5 if self._stopped.is_set() else CONNECT_S))
        except KeyboardInterrupt:
            self._stopped.set()
            raise
        if self._thread.is_alive():
            self._give_up(HostError(f"the history {shown(self._engine.url)} does not answer"))
        self._thread = None

    @property
    def _last_tries_s(self) -> float:
        return STOPPED_TRIES_S if self._stopped.is_set() else LAST_TRIES_S

    def _give_up(self, error: HostError) -> None:
        self.error, self.lost = error, len(self._batch) + self._queue.qsize()

    def _write_on(self) -> None:
        last_s, closed_s = time.monotonic(), 0.0
        while True:
            closing = self._closing.is_set()
            if closing and not closed_s:
                closed_s = time.monotonic()
            self._fill(wait=not closing)
            try:
                if self._batch:
                    self._writer.write(self._batch)
                    self._batch.clear()
                elif closing:
                    if self._writer.state is RunState.RUNNING:
                        self._writer.end(RunState.STOPPED)
                    return
                elif time.monotonic() > last_s + ALIVE_S:
                    self._writer.touch()
                else:
                    continue
                last_s = time.monotonic()
            except HostError as error:
                if closing and time.monotonic() > closed_s + self._last_tries_s:
                    self._give_up(error)
                    return
                self._closing.wait(RETRY_S) if not closing else time.sleep(min(RETRY_S, 0.5))

    def _fill(self, *, wait: bool) -> None:
        """Take what there is, until the batch is full or its first event old enough."""
        due_s = time.monotonic() + BATCH_S
        while len(self._batch) < BATCH_EVENTS:
            left_s = due_s - time.monotonic()
            try:
                if wait and not self._closing.is_set() and left_s > 0:
                    self._batch.append(self._queue.get(timeout=left_s))
                else:
                    self._batch.append(self._queue.get_nowait())
            except queue.Empty:
                return


def _booted_on(event: GuestBooted) -> str:
    """A machine as curves name it."""
    return f"{release_line(event.qemu)}/{event.machine}"


def _host_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(facts, sort_keys=True, default=str)
    return {"name": facts.get("name", ""), "facts": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _cell_row(key: CellKey) -> dict[str, Any]:
    return {
        "key": str(key),
        "line": key.line,
        "recorder": key.route.recorder,
        "loader": key.route.loader,
        "machine": key.machine,
        "device": key.device,
        "phases": key.where,
        "lane": key.lane,
    }


def build_row(qemu: Qemu) -> dict[str, Any]:
    """A QEMU as a row of ``builds``, without its number."""
    return {
        "sha256": qemu.sha256,
        "version": qemu.version,
        "build": qemu.build,
        "path": qemu.path,
        "label": qemu.label or qemu.version,
    }


def _signature_row(cell: Cell, name: str) -> dict[str, Any]:
    found = signature_of_cell(cell) or Signature(kind=name.partition(":")[0])
    return {**found.to_json(), "name": name}


def _figures(cell: Cell) -> dict[str, Any]:
    """What an outcome says by itself."""
    outcome, repeats = cell.outcome, cell.outcome.repeats
    return {
        "verdict": outcome.verdict,
        "failure_class": outcome.failure_class,
        "seen": repeats and repeats.seen,
        "tries": repeats and repeats.of,
        "loads_asked": outcome.loads_asked,
        "loads_acked": outcome.loads_acked,
        "seconds": cell.seconds,
        "loads_per_second": cell.loads_per_second,
    }
