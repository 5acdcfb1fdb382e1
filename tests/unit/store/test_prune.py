# SPDX-License-Identifier: GPL-2.0-or-later
"""Old runs are taken out of a history, and what is wanted of them stays; older histories are brought up to date."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from click.testing import CliRunner
from made_runs import crashed, judged, started, write_nights

from harness.cli import cli
from harness.errors import UsageError
from harness.store import tables
from harness.store.compare import compare
from harness.store.engine import open_store, store_url, writing
from harness.store.keep import prune, put_excuses, set_mark
from harness.store.read import History
from harness.store.states import Excuse, ExcuseKind, read_rules
from harness.store.write import RunState, RunWriter

BOUND, BUSY = "pc-q35-7.2/ahci/bound/same", "pc-q35-7.2/ahci/busy/same"
CRASH = "crash:-:died:ich9_ahci:q35"


def names(history: History) -> list[str]:
    return [run.name for run in history.runs()]


def test_what_a_run_did_not_count_goes_with_it(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)], [judged(BOUND)]])
    runs = history.runs()
    for run in runs:
        put_excuses(engine, run, [Excuse(kind=ExcuseKind.ONCE, line="x", signature=CRASH)])
    assert prune(engine, keep_runs=1).runs == ("night-0",)
    assert list(history.excuses(runs)) == [history.run("last").number]


def test_the_last_runs_stay_and_the_baseline(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)]] * 5)
    set_mark(engine, history.run("night-0"))
    assert prune(engine, keep_runs=2).runs == ("night-1", "night-2")
    assert names(history) == ["night-4", "night-3", "night-0"]
    assert history.run("baseline").name == "night-0"


def test_a_run_that_goes_on_stays(engine: sa.Engine, history: History) -> None:
    RunWriter(engine).begin(started(0))
    assert prune(engine, keep_runs=0).runs == ()
    assert [run.state for run in history.runs()] == [RunState.RUNNING]


def test_younger_runs_stay(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)]] * 5)
    prune(engine, keep_days=2.5, now=datetime(2026, 1, 5, 22, tzinfo=UTC))
    assert names(history) == ["night-4", "night-3", "night-2"]


def test_logs_go_before_their_runs(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[crashed(BOUND)]] * 3)
    pruned = prune(engine, log_days=1.5, now=datetime(2026, 1, 3, 22, tzinfo=UTC))
    assert (pruned.runs, pruned.logs) == ((), 1)
    kept = [history.log(run, f"7.2.22/{BOUND}") is not None for run in history.runs()]
    assert kept == [True, True, False]
    assert [run.findings for run in history.runs()] == [1, 1, 1]


def test_a_dry_run_takes_nothing(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[crashed(BOUND)]] * 3)
    assert prune(engine, keep_runs=1, log_days=0, dry_run=True).runs == ("night-0", "night-1")
    assert len(names(history)) == 3


def test_a_signature_knows_when_it_was_seen_first_though_that_run_is_gone(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[crashed(BOUND)], [crashed(BOUND)], [judged(BOUND)], [crashed(BOUND)]])
    prune(engine, keep_runs=2)
    (found,) = history.signatures()
    assert (found.first_run, found.first_seen[:10], found.last_run, found.runs) == (
        "night-0",
        "2026-01-01",
        "night-3",
        1,
    )
    doc = compare(history, history.run("last~1"), history.run("last"), read_rules())
    assert [change.signature for change in doc.back] == [CRASH]


def test_cells_that_no_run_has_any_more_go(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BUSY)], [judged(BOUND)]])
    prune(engine, keep_runs=1)
    assert history.keys("") == [f"7.2.22/{BOUND}"]


def test_the_command_says_what_it_took(engine: sa.Engine, store: str) -> None:
    write_nights(engine, [[crashed(BOUND)]] * 3)

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, ["prune", "--store", store, *words], standalone_mode=False)
        if done.exception:
            raise done.exception
        return done.output

    assert run("--keep", "1", "--dry-run") == "would be removed: 2 runs, 0 logs; 3 runs there\n"
    assert json.loads(run("--keep", "1", "--json"))["runs"] == ["night-0", "night-1"]
    for words in ((), ("--keep", "x"), ("--keep", "3w")):
        with pytest.raises(UsageError, match="--keep"):
            run(*words)


def test_an_older_history_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    config = Config()
    config.set_main_option("script_location", str(Path(tables.__file__).with_name("migrations")))
    old = sa.create_engine(store_url(str(path)))
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = {"key": "a+rest2", "line": "b+rest2", "recorder": "", "loader": "", "machine": "", "device": "x"}
        connection.execute(tables.cells.insert().values({**row, "phases": "", "lane": ""}))
    old.dispose()
    engine = open_store(str(path))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        assert connection.execute(sa.select(tables.cells.c.line)).scalar_one() == "b"
    engine.dispose()


def test_what_failed_half_way_is_not_there(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)]])

    def fail() -> None:
        with writing(engine) as connection:
            connection.execute(tables.outcomes.delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert history.run("last").judged == 1
