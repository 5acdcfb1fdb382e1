# SPDX-License-Identifier: GPL-2.0-or-later
"""Writers that are killed at any moment, writers beside each other, and databases that go away for a while."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import psycopg
import pytest
import sqlalchemy as sa
from made_postgresql import Server
from made_runs import crashed, events, judged, started

from harness.results.document import Cell
from harness.results.events import EVENTS_NAME, EventLog, Judged, RunEnded, read_events
from harness.store import write
from harness.store.bounded import bounded_connection
from harness.store.engine import open_store
from harness.store.importing import heal
from harness.store.read import History
from harness.store.write import RunSink, RunState

MOMENTS = 20
CELLS = 400
DEADLINE_S = 60.0
HERE = {"name": os.uname().nodename}


def cells(count: int = CELLS) -> list[Cell]:
    """Every seventh breaks, each in a way of its own."""
    lanes = ("same", "walk", "drift", "leak")
    places = [f"pc-q35-7.2/device-{number // 4}/bound/{lanes[number % 4]}" for number in range(count)]
    return [judged(place) if number % 7 else crashed(place, f"died {number}x") for number, place in enumerate(places)]


def write_run(store: str, folder: Path, name: str, count: int = CELLS) -> None:
    """A run that goes into its folder and into a history, as ``postload matrix --store`` writes it."""
    engine = open_store(store)
    sink = RunSink(engine, str(folder))
    with EventLog(folder) as log:
        for event in (started(run=name, host=HERE), *events(cells(count))):
            log.write(event)
            sink.take(event)
    sink.close()


def forked(do: Callable[[], None]) -> int:
    """A process that does something and ends with 0, or 1 where that fails; its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            do()
            status = 0
        finally:
            os._exit(status)
    return pid


@contextmanager
def child(do: Callable[[], None]) -> Iterator[int]:
    """A process of its own, gone behind the block; its pid."""
    pid = forked(do)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_for(path: Path, size_bytes: int) -> None:
    """Until a file has grown so large."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not path.exists() or path.stat().st_size < size_bytes:
        assert time.monotonic() < deadline_s
        time.sleep(0.0005)


def told(folder: Path) -> tuple[Counter[str], bool]:
    """What a folder says was judged, and whether the run ended."""
    found = list(read_events(folder / EVENTS_NAME))
    keys = Counter(event.cell.id for event in found if isinstance(event, Judged))
    return keys, any(isinstance(event, RunEnded) for event in found)


def test_a_writer_that_is_killed_loses_no_cell_and_writes_none_twice(
    store: str, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "BATCH_S", 0.005)
    monkeypatch.setattr(write, "BATCH_EVENTS", 20)
    history.engine.dispose()  # nothing of it goes into the children
    moments = random.Random(20260105)
    whole_bytes = 250_000
    seen = Counter[RunState]()
    # on a busy machine many a run is over before it is killed
    for number in range(5 * MOMENTS):
        if number >= MOMENTS and seen[RunState.KILLED] >= MOMENTS // 2:
            break
        folder, name = tmp_path / str(number), f"killed-{number:02d}"
        with child(partial(write_run, store, folder, name)):
            wait_for(folder / EVENTS_NAME, moments.randrange(1, whole_bytes))
            time.sleep(moments.random() * 0.05)
        heal(history.engine)
        row = history.run(name)
        keys, ended = told(folder)
        outcomes = history.cells(row)
        assert row.state is (RunState.ENDED if ended else RunState.KILLED)
        assert Counter(each.cell for each in outcomes if each.verdict is not None) == keys
        assert len(outcomes) == len({each.cell for each in outcomes})
        seen[row.state] += 1
    # else the moments were not in the middle of a run
    assert seen[RunState.KILLED] >= MOMENTS // 2


def test_two_writers_at_a_time_write_all(store: str, history: History, tmp_path: Path) -> None:
    history.engine.dispose()

    def three(name: str) -> None:
        for number in range(3):
            write_run(store, tmp_path / name / str(number), f"{name}-{number}")

    pids = [forked(partial(three, name)) for name in ("one", "two")]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    rows = history.runs()
    assert sorted(row.name for row in rows) == [f"{name}-{n}" for name in ("one", "two") for n in range(3)]
    assert {(row.state, row.judged, row.planned) for row in rows} == {(RunState.ENDED, CELLS, CELLS)}
    assert len(history.keys("")) == CELLS


def test_a_database_that_is_away_for_a_while_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_postgresql: Server
) -> None:
    monkeypatch.setattr(write, "RETRY_S", 0.1)
    monkeypatch.setattr(write, "BATCH_S", 0.01)
    first, *rest = [started(), *events(cells(100))]
    engine = open_store(own_postgresql.cluster.url())
    sink = RunSink(engine, str(tmp_path))
    sink.take(first)
    for event in rest[:50]:
        sink.take(event)
    own_postgresql.kill()
    for event in rest[50:]:
        sink.take(event)
    own_postgresql.start()
    sink.close()
    assert (sink.error, sink.lost) == (None, 0)
    (row,) = History(engine).runs()
    assert (row.state, row.judged) == (RunState.ENDED, 100)
    engine.dispose()


def test_what_a_database_did_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, engine: sa.Engine
) -> None:
    monkeypatch.setattr(write, "LAST_TRIES_S", 0.2)
    monkeypatch.setattr(write, "RETRY_S", 0.05)
    sink = RunSink(engine, str(tmp_path))
    first, *rest = [started(), *events(cells(10))]
    sink.take(first)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE outcomes RENAME TO away"))
    try:
        for event in rest:
            sink.take(event)
        sink.close()
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO outcomes"))
    assert sink.lost == len(rest)
    assert "outcomes" in str(sink.error)


@pytest.mark.parametrize("gone", ["killed", "frozen"])
def test_a_run_that_is_told_to_stop_does_not_wait_for_a_database_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_postgresql: Server, gone: str
) -> None:
    """Without an ear for the stop, it waits for longer than this test does."""
    monkeypatch.setattr(write, "LAST_TRIES_S", 3600.0)
    monkeypatch.setattr(write, "BATCH_S", 0.01)
    first, *rest = [started(), *events(cells(10), complete=False)]
    sink = RunSink(open_store(own_postgresql.cluster.url()), str(tmp_path))
    sink.take(first)
    own_postgresql.kill() if gone == "killed" else own_postgresql.freeze()
    for event in rest:
        sink.take(event)
    closing = Thread(target=sink.close, daemon=True)
    closing.start()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    assert sink.lost == len(rest)
    assert ("does not answer" in str(sink.error)) is (gone == "frozen")


def test_a_question_that_is_not_answered_is_given_up(tmp_path: Path, own_postgresql: Server) -> None:
    with bounded_connection(0.2).connect(own_postgresql.cluster.url()) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        own_postgresql.freeze()
        with pytest.raises(psycopg.OperationalError, match="does not answer"):
            connection.execute("SELECT 1")
        assert connection.closed
