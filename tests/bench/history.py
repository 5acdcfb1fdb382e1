# SPDX-License-Identifier: GPL-2.0-or-later
"""What a history of a million outcomes costs: comparing, reading, and writing beside a run.

``python tests/bench/history.py [--runs N] [--cells N] [--store URL] [--database sqlite,postgresql]``. So many runs of
so many cells each are made, judged on paper as ``tests/bench/cells.py`` has them: 150 devices on each machine, some of
them broken, others broken in some runs only. PostgreSQL is Debian's, started on a unix socket in a temporary folder.

Measured are ``postload compare last~1 last``, the list of the last 30 runs, one cell through them, all signatures; and
what writing one more run takes beside it: seconds of this process's processor for each cell, against :data:`CELL_S`,
less than judging one takes. Ends with 1 when a comparison takes more than :data:`COMPARE_S`, or writing more than
:data:`OVERHEAD` of a run's time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cells import HOST, paper_cell, rows

from harness.results.document import Cell
from harness.results.events import CellsPlanned, Event, Judged, RunEnded, Started
from harness.results.outcome import Outcome
from harness.results.signature import name_of
from harness.results.verdict import Verdict
from harness.store import tables as t
from harness.store.asked import ask
from harness.store.compare import compare
from harness.store.engine import open_store, writing
from harness.store.read import History
from harness.store.signatures import signatures_on
from harness.store.states import read_rules
from harness.store.write import BATCH_EVENTS, RunSink, RunWriter

RUNS, CELLS = 100, 10_000
#: Of so many nights each is another one; then they come again.
WEEK = 7
COMPARE_S, OVERHEAD = 1.0, 0.02
#: Seconds; a matrix of 4 devices on two machines takes 0.5 s a cell on two cores.
CELL_S = 0.25
FIRST = datetime(2026, 1, 1, 22, tzinfo=UTC)


def cells(count: int) -> list[Cell]:
    """The cells of a run, with their signatures."""
    made: list[Cell] = []
    for machine, _, keys in rows():
        for column, key in enumerate(keys):
            cell = paper_cell(machine, key, column)
            made.append(replace(cell, signature=name_of(cell) or None))
            if len(made) == count:
                return made
    return made


def events(made: list[Cell], night: int) -> list[Event]:
    """One night: of each fifty findings one comes and goes, and one came in the last night."""
    told: list[Event] = []
    planned: dict[str, list[str]] = {}
    for number, cell in enumerate(made):
        planned.setdefault(cell.key.row, []).append(cell.id)
        gone = cell.verdict.is_finding and number % 50 == night % WEEK
        if gone:
            cell = replace(cell, outcome=Outcome(verdict=Verdict.OK, loads_asked=100, loads_acked=100), signature=None)
        told.append(Judged(at_s=float(number), planned=cell.id, cell=cell))
    plans: list[Event] = [CellsPlanned(row=row, cells=tuple(names)) for row, names in planned.items()]
    return [*plans, *told, RunEnded(at_s=float(len(made)), complete=True)]


def started(night: int) -> Started:
    when = (FIRST + timedelta(days=night)).isoformat(timespec="seconds")
    return Started(
        command=("postload", "matrix"), host={**HOST, "name": "bench"}, started=when, run=f"night-{night:04}"
    )


def fill(engine: sa.Engine, made: list[Cell], count: int) -> None:
    """Write the runs: those of a first week as a run writes them, and what comes again as copies of their rows."""
    began_s = time.monotonic()
    for night in range(count):
        writer = RunWriter(engine)
        writer.begin(started(night))
        told = events(made, night) if night < WEEK else [RunEnded(at_s=float(len(made)), complete=True)]
        for first in range(0, len(told), 10 * BATCH_EVENTS):
            writer.write(told[first : first + 10 * BATCH_EVENTS])
        if night >= WEEK:
            copy_rows(engine, started(night % WEEK).name, started(night).name)
        if night % 10 == 9:
            print(f"  {night + 1} runs after {time.monotonic() - began_s:.0f} s", flush=True)


def copy_rows(engine: sa.Engine, name: str, other: str) -> None:
    """Give a run the outcomes and logs of an equal one."""
    number = {each: sa.select(t.runs.c.id).where(t.runs.c.name == each).scalar_subquery() for each in (name, other)}
    with writing(engine) as connection:
        for table in (t.outcomes, t.logs):
            rest = [column for column in table.columns if column.name != "run_id"]
            rows = sa.select(number[other], *rest).where(table.c.run_id == number[name])
            connection.execute(table.insert().from_select(["run_id", *(column.name for column in rest)], rows))


def timed(what: str, do: Callable[[], object], times: int = 3) -> float:
    """The shortest of some tries, in seconds; printed."""
    took = []
    for _ in range(times):
        began_s = time.monotonic()
        do()
        took.append(time.monotonic() - began_s)
    print(f"  {what}: {min(took):.2f} s (at most {max(took):.2f} s)", flush=True)
    return min(took)


def written(engine: sa.Engine, made: list[Cell], night: int) -> float:
    """Processor time of this process for each cell of a run that is written by its sink, in seconds."""
    told = events(made, night)
    sink = RunSink(engine, "")
    before_s, began_s = time.process_time(), time.monotonic()
    sink.take(started(night))
    for event in told:
        sink.take(event)
    sink.close()
    cpu_s, took_s = time.process_time() - before_s, time.monotonic() - began_s
    assert sink.error is None
    print(f"  a run of {len(made):,} cells is written in {took_s:.1f} s, {cpu_s:.1f} s of them processor time")
    return cpu_s / len(made)


@contextmanager
def stores(kinds: list[str], url: str | None) -> Iterator[list[tuple[str, str]]]:
    """Empty histories, by name of the database."""
    sys.path.append(str(Path(__file__).parents[1] / "unit" / "made"))
    from made_postgresql import programs, started_server

    with tempfile.TemporaryDirectory() as folder:
        found = [("given", url)] if url else []
        if not url and "sqlite" in kinds:
            found.append(("SQLite", f"{folder}/history.db"))
        bin_dir = programs()
        if url or "postgresql" not in kinds or bin_dir is None:
            yield found
            return
        with started_server(bin_dir) as server:
            yield [*found, ("PostgreSQL", server.cluster.url(server.cluster.create()))]


def measure(name: str, url: str, runs: int, count: int) -> bool:
    """Fill one and measure; whether all is within the limits."""
    print(f"{name}: {runs} runs of {count:,} cells")
    engine = open_store(url, create=True)
    history, rules, made = History(engine), read_rules(), cells(count)
    fill(engine, made, runs)
    if engine.dialect.name == "sqlite":
        print(f"  {Path(url).stat().st_size / 1e6:.0f} MB")
    last, before = history.run("last"), history.run("last~1")
    took = timed("compare last~1 last", lambda: compare(history, before, last, rules))
    doc = compare(history, before, last, rules)
    lists = {each: len(getattr(doc, each)) for each in ("new", "back", "unseen", "flaky", "still", "not_run")}
    print(f"    {lists}")
    timed("compare the first and the last", lambda: compare(history, history.run("night-0000"), last, rules))
    timed("the last 30 runs", lambda: history.runs(limit=30))
    timed("all cells of a run", lambda: history.cells(last))
    timed("one cell through the last 30 runs", lambda: ask(history, made[0].id, 30))
    timed("all signatures", history.signatures)
    timed("all signatures and their states", lambda: signatures_on(history, rules))
    share = written(engine, made, runs) / CELL_S
    print(f"  writing takes {share:.2%} of a run whose cells take {CELL_S} s each")
    engine.dispose()
    return took <= COMPARE_S and share <= OVERHEAD


def main() -> int:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--store", help="an empty history to fill, in place of temporary ones")
    parser.add_argument("--database", default="sqlite,postgresql", help="which, several by commas")
    given = parser.parse_args()
    with stores(given.database.split(","), given.store) as found:
        fine = [measure(name, url, given.runs, given.cells) for name, url in found]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
