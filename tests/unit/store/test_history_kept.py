# SPDX-License-Identifier: GPL-2.0-or-later
"""A history on disk: its tables, runs that are written into it, read from it, imported, and killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from made_cells import QEMU, made_cell
from made_runs import crashed, events, judged, started, write_nights, write_run

from harness.cli import cli
from harness.errors import HostError, UsageError
from harness.report.writer import write_reports
from harness.results.document import Colo, Qemu
from harness.results.events import (
    EVENTS_NAME,
    CellsPlanned,
    Event,
    EventLog,
    Fold,
    GuestBooted,
    Judged,
    ShardOf,
    fold_file,
)
from harness.results.verdict import FailureClass, Verdict
from harness.store.engine import open_store, store_url
from harness.store.importing import heal, import_run
from harness.store.read import History, open_history
from harness.store.tables import metadata
from harness.store.write import RateKind, RunSink, RunState, RunWriter

CRASH = "crash:-:died:ich9_ahci:q35"
FAILS = FailureClass.FAILS


def test_the_migrations_make_the_tables_of_the_program(engine: sa.Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_run_is_read_as_it_was_written(engine: sa.Engine, history: History) -> None:
    cells = [judged(loads_acked=100), crashed("pc-q35-7.2/ahci/busy/same", seconds=1.25)]
    write_run(engine, started(), events(cells, planned=["7.2.22/pc-q35-7.2/ahci/kernel/same"]))
    (run,) = history.runs()
    assert (run.name, run.state, run.host, run.seconds) == ("night-0", RunState.ENDED, "alpha", 10.0)
    assert (run.planned, run.judged, run.findings) == (3, 2, 1)
    assert run.counts == {Verdict.CRASH: 1, Verdict.OK: 1}
    bound, busy, kernel = history.cells(run)
    assert (bound.verdict, bound.loads_acked, bound.signature, bound.loader) == (Verdict.OK, 100, "", QEMU.sha256)
    assert (busy.verdict, busy.signature, busy.seconds, busy.host) == (Verdict.CRASH, CRASH, 1.25, "alpha")
    assert (kernel.verdict, kernel.cell) == (None, "7.2.22/pc-q35-7.2/ahci/kernel/same")
    assert busy.line == "7.2/pc-q35-7.2/ahci/busy/same"


def test_a_cell_that_is_judged_only_without_its_culprit_is_not_left_unjudged(
    engine: sa.Engine, history: History
) -> None:
    plain, further = "7.2.22/pc-q35-7.2/ahci/bound/drift", judged("pc-q35-7.2/ahci/bound/drift", rest=1)
    write_run(engine, started(), [CellsPlanned(row="row", cells=(plain,)), Judged(planned=plain, cell=further)])
    (run,) = history.runs()
    assert [(row.cell, row.verdict) for row in history.cells(run)] == [(f"{plain}+rest", Verdict.OK)]
    assert (run.planned, run.judged) == (1, 1)


def test_a_further_look_takes_nothing_from_the_first(engine: sa.Engine, history: History) -> None:
    first, further = crashed(), judged(rest=1)
    told: list[Event] = [CellsPlanned(row="row", cells=(first.id,)), Judged(planned=first.id, cell=first)]
    write_run(engine, started(), [*told, Judged(planned=first.id, cell=further)])
    (run,) = history.runs()
    assert [row.verdict for row in history.cells(run)] == [Verdict.CRASH, Verdict.OK]


def test_what_was_not_plainly_ok_is_kept_whole(engine: sa.Engine, history: History) -> None:
    broken = crashed(log="a line\nof QEMU\n")
    write_run(engine, started(), events([judged("pc-q35-7.2/ahci/busy/same"), broken]))
    run = history.run("last")
    assert history.log(run, broken.id) == broken
    assert history.log(run, "7.2.22/pc-q35-7.2/ahci/busy/same") is None


def test_events_that_come_twice_are_one(engine: sa.Engine, history: History) -> None:
    for _ in range(2):
        write_run(engine, started(), events([judged(), crashed("pc-q35-7.2/ahci/busy/same")]))
    assert [run.planned for run in history.runs()] == [2]
    assert len(history.cells(history.run("night-0"))) == 2


def test_a_signature_knows_where_it_was_seen(engine: sa.Engine, history: History) -> None:
    newer = Qemu(version="7.2.23", build="", path="/n", sha256="ab" * 32, label="7.2.23")
    moved = crashed(load_qemu=newer, record_qemu=newer)
    write_nights(engine, [[judged()], [crashed()], [moved], [judged()]])
    (found,) = history.signatures()
    assert (found.name, found.kind, found.section, found.family) == (CRASH, "crash", "ich9_ahci", "q35")
    assert (found.first_run, found.last_run, found.runs) == ("night-1", "night-2", 2)
    assert (found.qemus, found.devices, found.hosts) == (("7.2.22", "7.2.23"), ("ahci",), ("alpha",))
    through = history.through(line="7.2/pc-q35-7.2/ahci/bound/same")
    assert [row.verdict for row in through] == [Verdict.OK, Verdict.CRASH, Verdict.CRASH, Verdict.OK]
    assert [row.run for row in history.through(signature=CRASH)] == ["night-2", "night-1"]


@pytest.mark.parametrize(("text", "name"), [("last", "night-2"), ("last~2", "night-0"), ("night-1", "night-1")])
def test_a_run_has_several_names(engine: sa.Engine, history: History, text: str, name: str) -> None:
    write_nights(engine, [[judged()]] * 3)
    assert history.run(text).name == name


@pytest.mark.parametrize("text", ["last~3", "last~x", "baseline", "night", "other"])
def test_a_run_that_is_none_is_told(engine: sa.Engine, history: History, text: str) -> None:
    write_nights(engine, [[judged()]] * 3)
    with pytest.raises(UsageError, match=text):
        history.run(text)


def test_known_issues_of_the_run_are_kept_with_its_cells(engine: sa.Engine, history: History) -> None:
    issue = {"signature": CRASH, "affected": ["7.2"], "link": "https://example.org/1"}
    write_run(engine, started(known=[issue]), events([crashed()]))
    (row,) = history.cells(history.run("last"))
    assert row.known == "https://example.org/1"
    assert history.signatures()[0].known == "https://example.org/1"


def folder(path: Path, *, end: bool = True) -> Path:
    with EventLog(path) as log:
        log.write(started())
        for event in events([judged(), crashed("pc-q35-7.2/ahci/busy/same")])[: None if end else -1]:
            log.write(event)
    return path


def test_a_folder_is_imported_once(engine: sa.Engine, history: History, tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    assert [import_run(engine, run).new for _ in range(2)] == [True, False]
    (row,) = history.runs()
    assert (row.state, row.judged, row.folder) == (RunState.ENDED, 2, str(run))
    assert history.machines(row)[0].colo is Colo.UNSAFE


def test_a_folder_with_the_document_alone_is_imported(engine: sa.Engine, history: History, tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    write_reports(fold_file(run / EVENTS_NAME).document(), run, ["json"])
    (run / EVENTS_NAME).unlink()
    names = {import_run(engine, run).run for _ in range(2)}
    assert [(row.name, row.judged) for row in history.runs()] == [(names.pop(), 2)]


def test_a_folder_without_a_run_is_told(engine: sa.Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--out"):
        import_run(engine, tmp_path)


def test_a_damaged_line_is_told_and_what_is_before_it_stays(
    engine: sa.Engine, history: History, tmp_path: Path
) -> None:
    run = folder(tmp_path / "run")
    path = run / EVENTS_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], b'{"event": "judged"}\n', lines[-1]]))
    with pytest.raises(UsageError, match=rf"{EVENTS_NAME}:{len(lines) - 1}"):
        import_run(engine, run)
    assert [row.state for row in history.runs()] == [RunState.KILLED]


def test_a_sink_writes_a_run_while_it_goes_on(engine: sa.Engine, history: History, tmp_path: Path) -> None:
    sink = RunSink(engine, str(tmp_path))
    first, *rest, last = [started(), *events([judged(), crashed("pc-q35-7.2/ahci/busy/same")])]
    sink.take(first)
    assert [row.state for row in history.runs()] == [RunState.RUNNING]
    for event in [*rest, last]:
        sink.take(event)
    sink.close()
    assert [(row.state, row.judged) for row in history.runs()] == [(RunState.ENDED, 2)]
    assert (sink.lost, sink.error) == (0, None)


def test_a_sink_that_is_closed_before_the_end_says_that_the_run_was_stopped(
    engine: sa.Engine, history: History, tmp_path: Path
) -> None:
    sink = RunSink(engine, str(tmp_path))
    for event in [started(), *events([judged()])[:-1]]:
        sink.take(event)
    sink.close()
    assert [(row.state, row.judged) for row in history.runs()] == [(RunState.STOPPED, 1)]


def test_a_run_that_was_killed_is_marked_and_has_all_that_it_judged(
    engine: sa.Engine, history: History, tmp_path: Path
) -> None:
    run = folder(tmp_path / "run", end=False)
    here = {"name": os.uname().nodename}
    (run / EVENTS_NAME).unlink()
    with EventLog(run) as log:
        first, told = started(host=here), events([judged(), crashed("pc-q35-7.2/ahci/busy/same")])[:-1]
        log.write(first)
        sink = RunSink(engine, str(run))
        sink.take(first)  # and it does not live to write more
        for event in told:
            log.write(event)
        assert heal(engine) == []  # the run's lock is held: it goes on
    assert [(row.run, row.state, row.cells) for row in heal(engine)] == [("night-0", RunState.KILLED, 2)]
    assert [(row.state, row.judged) for row in history.runs()] == [(RunState.KILLED, 2)]
    assert heal(engine) == []


def test_a_history_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no history"), open_history(str(tmp_path / "none.db")):
        pass


@pytest.mark.parametrize("text", ["", "mysql://x/y", "sqlite://", "://"])
def test_what_is_no_url_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        store_url(text)


def test_a_password_is_not_told() -> None:
    with pytest.raises(HostError) as told:
        open_store("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value)
    assert "127.0.0.1" in str(told.value)


def test_a_newer_history_is_left_alone(engine: sa.Engine, store: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UsageError, match="newer"):
        open_store(store)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to be taken for one" * 10)
    with pytest.raises(HostError, match="not a database"):
        open_store(str(tmp_path / "x.db"))


def test_a_run_without_a_history_does_not_import_its_libraries() -> None:
    script = "import sys, harness.commands.matrix; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert {"sqlalchemy", "alembic", "psycopg"}.isdisjoint(done.stdout.split())


def test_cells_of_point_releases_have_one_line() -> None:
    lines = {made_cell().key.line, made_cell(load_qemu=_named("7.2.23"), record_qemu=_named("7.2.23")).key.line}
    assert lines == {"7.2/pc-q35-7.2/ahci/bound/same"}
    assert made_cell(record_qemu=_named("7.2.21")).key.line.startswith("7.2.21>7.2.22/")
    assert made_cell(load_qemu=_named("11.1.3")).key.line.startswith("7.2>11.1/")
    assert made_cell(load_qemu=_named("mine"), record_qemu=_named("mine")).key.line.startswith("mine/")


def _named(label: str) -> Qemu:
    return Qemu(version="1.0", build="", path="/q", sha256=label.encode().hex().ljust(64, "0"), label=label)


def booted(seconds: float, at_s: float = 0.0, qemu: str = "7.2.22") -> GuestBooted:
    return GuestBooted(at_s=at_s, machine="pc-q35-7.2", qemu=qemu, processor_s=seconds, yardstick_s=0.5)


def test_what_guests_took_to_boot_is_kept_with_its_control(engine: sa.Engine, history: History) -> None:
    writer = RunWriter(engine)
    writer.begin(started())
    writer.write([booted(3.0), booted(9.0, qemu="mine")])
    for _ in range(2):  # a batch may be written again
        writer.write([booted(4.0, at_s=1.0), booted(8.0, at_s=2.0)])
    write_run(engine, started(1), [booted(6.0)])
    assert [(rate.run, rate.subject, rate.ratio, rate.samples) for rate in history.rates(kind=RateKind.BOOT)] == [
        ("night-1", "7.2/pc-q35-7.2", 12.0, 1),
        ("night-0", "7.2/pc-q35-7.2", 8.0, 3),
        ("night-0", "mine/pc-q35-7.2", 18.0, 1),
    ]
    assert history.rates(subject="other") == []


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_cell_that_was_judged_twice_the_worst_is_kept(engine: sa.Engine, history: History, order: int) -> None:
    for cells in ([judged(), crashed()], [judged(verdict=Verdict.HOST, causes=()), judged()]):
        write_run(engine, started(len(history.runs())), events(cells[::order]))
    assert [[row.verdict for row in history.cells(run)] for run in history.runs()] == [[Verdict.OK], [Verdict.CRASH]]


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("order", [1, -1])
def test_a_history_and_a_document_keep_the_same_of_equals(
    engine: sa.Engine, history: History, order: int, size: int
) -> None:
    """Several guests of a machine tell of the platform, in any order."""
    cells = [crashed(words="b"), crashed(words="a"), crashed(words="c"), crashed(words="d", failure_class=FAILS)]
    first, told = started(), events(cells[::order])
    fold, writer = Fold(first), RunWriter(engine)
    writer.begin(first)
    for at in range(0, len(told), size):
        writer.write(told[at : at + size])
    for event in told:
        fold.add(event)
    (kept,), (row,) = fold.document().cells, history.cells(history.run("last"))
    assert kept.signature == row.signature == "crash:-:d:ich9_ahci:q35"
    assert history.log(history.run("last"), kept.id) == kept


def test_a_batch_that_was_not_confirmed_is_written_again_as_it_was(
    engine: sa.Engine, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, told = RunWriter(engine), events([judged(), crashed(words="b"), crashed(words="a")])
    writer.begin(started())

    def broken(*_: object) -> None:
        raise HostError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_update_run", broken)  # the last of a batch
        with pytest.raises(HostError):
            writer.write(told)
    assert history.run("last").judged == 0
    writer.write(told)
    writer.write(told)
    assert [row.signature for row in history.cells(history.run("last"))] == ["crash:-:a:ich9_ahci:q35"]


def test_of_a_shard_only_what_it_judged_is_kept(engine: sa.Engine, history: History) -> None:
    shard = ShardOf(number=1, of=2, plan="x")
    others = ["7.2.22/pc-q35-7.2/ahci/busy/same"]
    write_run(engine, started(shard=shard), events([judged()], planned=others))
    assert [row.planned for row in history.runs()] == [1]


def test_a_folder_that_cannot_be_imported_keeps_none_out(store: str, tmp_path: Path) -> None:
    folders = [str(tmp_path / "none"), str(folder(tmp_path / "run"))]
    done = CliRunner().invoke(cli, ["import", "--store", store, *folders], standalone_mode=False)
    assert done.return_value == 2
    assert "run night-0 imported: ended, 2 cells judged" in done.output
    assert "none" in done.stderr
