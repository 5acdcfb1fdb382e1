# SPDX-License-Identifier: GPL-2.0-or-later
"""Older runs into a history, from their folders; and what a killed run could not write any more."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from harness.errors import UsageError
from harness.results.document import MatrixDoc
from harness.results.events import (
    EVENTS_NAME,
    CellsPlanned,
    Event,
    Fold,
    Judged,
    MachineSeen,
    RunEnded,
    Started,
    is_being_written,
    read_events,
)
from harness.results.folder import folder_of, held_against, read_matrix
from harness.store import tables as t
from harness.store.engine import told, writing
from harness.store.write import BATCH_EVENTS, RunState, RunWriter

#: A run of another host that did not write for so long is taken for dead.
LOST_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A run that was read from a folder.

    :param new: it was not in the history before
    :param cells: that were judged
    """

    run: str
    state: RunState
    new: bool
    cells: int


def import_run(engine: sa.Engine, folder: Path) -> Imported:
    """Take the run of a folder into the history; one that is there already gets what it lacks.

    Of a folder that has no ``cells.jsonl``, ``matrix.json`` is read.

    :param folder: that a run wrote with ``--out``, or one of these files
    :raises UsageError: there is no run, it still goes on, or a line is damaged; names file and line
    :raises HostError: the database does not take it
    """
    events = folder / EVENTS_NAME if folder.is_dir() else folder
    if events.name != EVENTS_NAME or not events.exists():
        return _import(engine, _events_of(read_matrix(folder)), folder_of(folder))
    if is_being_written(events):
        raise UsageError(f"{events}: the run still goes on; import it when it has ended")
    return _import(engine, read_events(events), events.parent)


def heal(engine: sa.Engine) -> list[Imported]:
    """Find runs that are said to go on and do not; each is marked, and gets what its folder has and it lacks.

    :return: those that were found
    :raises HostError: the database cannot be read or written
    """
    query = (
        sa.select(t.runs.c.id, t.runs.c.name, t.runs.c.folder, t.runs.c.alive, t.hosts.c.name.label("host"))
        .join_from(t.runs, t.hosts)
        .where(t.runs.c.state == RunState.RUNNING)
    )
    with told(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        events = Path(row.folder) / EVENTS_NAME
        if row.host == platform.node() and _is_of(events, row.name):
            if not is_being_written(events):
                with suppress(UsageError):  # a damaged line: what is before it is in the history
                    found.append(import_run(engine, events))
        elif time.time() - row.alive > LOST_S:
            with told(engine), writing(engine) as connection:
                connection.execute(t.runs.update().where(t.runs.c.id == row.id).values(state=RunState.KILLED))
            found.append(Imported(run=row.name, state=RunState.KILLED, new=False, cells=0))
    return found


def _is_of(events: Path, name: str) -> bool:
    """Whether a file has the events of a run."""
    try:
        started = next(read_events(events), None)
    except UsageError:
        return False
    return isinstance(started, Started) and started.name == name


def _import(engine: sa.Engine, events: Iterator[Event], folder: Path) -> Imported:
    started = next(events, None)
    if not isinstance(started, Started):
        raise UsageError(f"{folder}: no run in it; expected the folder that a run wrote with --out")
    writer, fold = RunWriter(engine, str(folder.absolute())), Fold(started)
    new, cells = writer.begin(started), 0
    try:
        while batch := list(islice(events, BATCH_EVENTS)):
            writer.write(batch)
            for event in batch:
                fold.add(event)
                cells += isinstance(event, Judged)
        writer.answer(held_against(fold.document(), started).doc.machines)
    finally:
        # its end is in the events, or it was killed
        writer.end(RunState.KILLED if writer.state is RunState.RUNNING else writer.state)
    return Imported(run=started.name, state=writer.state, new=new, cells=cells)


def _events_of(doc: MatrixDoc) -> Iterator[Event]:
    """The events of a run of which the document is left. What was planned and not judged is not in it."""
    yield Started(command=doc.command, host=doc.host, started=doc.started, program=doc.program)
    for machine in doc.machines:
        yield MachineSeen(machine=machine)
    for cell in doc.cells:
        yield CellsPlanned(row=cell.key.row, cells=(cell.id,))
        yield Judged(planned=cell.id, cell=cell)
    yield RunEnded(at_s=doc.seconds, complete=doc.complete)
