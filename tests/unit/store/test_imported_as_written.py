# SPDX-License-Identifier: GPL-2.0-or-later
"""A night that is imported from its folder is in a history as one that was written while it went on: each column of
each table, but for the numbers of rows and the time of the last word."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from click.testing import CliRunner
from made_cells import QEMU
from made_runs import crashed, events, judged, started

from harness.cli import cli
from harness.colo.messages import Step
from harness.nights.config import Quarantine
from harness.nights.document import NightDoc, ReproducerAnswer, as_text, read_night
from harness.nights.folder import NIGHT
from harness.nights.kept import put_answer
from harness.nights.telling import excused_of, excuses_of, place_of, seen_twice, to_try_again, without
from harness.results.cause import Broke
from harness.results.document import Qemu
from harness.results.events import Event, EventLog, Fold, GuestBooted, RunEnded, Started
from harness.results.folder import JSON_NAME, held_against
from harness.results.known import Issue
from harness.results.verdict import Verdict
from harness.store import tables as t
from harness.store.compare import compare
from harness.store.engine import open_store
from harness.store.importing import heal, import_run
from harness.store.keep import put_excuses
from harness.store.read import History
from harness.store.states import Reproduced, read_rules
from harness.store.write import RunSink

CRASH = "crash:-:died:ich9_ahci:q35"
BUSY, KERNEL = "pc-q35-7.2/ahci/busy/same", "pc-q35-7.2/ahci/kernel/same"
LATE = Broke(step=Step.LOAD, load=1, how="late")
OTHER = Qemu(version="7.2.23", build="Debian", path="/n", sha256="ab" * 32, label="mine")
KNOWN = Issue(signature="crash:-:old:ich9_ahci:q35", affected=("*",), link="https://example.org/1", until=date.max)
QUARANTINED = Quarantine(cell="*/ahci/bound/same", link="https://example.org/2", until=date.max)


def first(number: int) -> Started:
    """What a night begins with that is held against a known issue."""
    return replace(started(number), command=("postload", "nightly"), known=[KNOWN.model_dump(mode="json")], night="x")


def told(number: int) -> list[Event]:
    """A night: what is known, what is quarantined, what came once, a further look, and what nobody came to."""
    cells = [
        crashed(seconds=1.5) if number else judged(seconds=1.5),
        crashed(BUSY, "old"),
        judged(KERNEL, Verdict.HANG, causes=(LATE,), blamed=("a/b",)) if number else judged(BUSY, rest=1),
        judged("pc-q35-7.2/virtio-net/bound/same", load_qemu=OTHER, record_qemu=OTHER, loads_per_second=12.5),
    ]
    boots = [GuestBooted(machine="pc-q35-7.2", qemu=name, processor_s=3.0, yardstick_s=0.5) for name in ("7.2.22", "m")]
    return [*boots, *events(cells, planned=["7.2.22/pc-q35-7.2/ahci/unbound/same"], complete=number == 0)]


def document(history: History, number: int, folder: Path) -> NightDoc:
    """What the second night told: a finding in quarantine, one that came once, and three answers of reproducers."""
    runs = history.runs()[::-1]
    compared = compare(history, runs[0], runs[number], read_rules(), excusing=False)
    excused = excused_of(compared, [QUARANTINED], date(2026, 1, 2))
    left = without(compared, {place_of(each.change) for each in excused})
    left, once = seen_twice(left, to_try_again(left, ()), ())
    said = [
        ReproducerAnswer(signature=CRASH, qemu=qemu, answer=answer, at=runs[number].started, script="/bundles/x")
        for qemu, answer in ((QEMU, Reproduced.STILL), (OTHER, Reproduced.GONE))
    ]
    return NightDoc(
        compared=left,
        first=False,
        folder=str(folder),
        excused=tuple(excused),
        once=tuple(once),
        reproduced=tuple(said[1:]),
        made=tuple(said[:1]),
    )


def write_live(engine: sa.Engine, folder: Path, number: int) -> None:
    """A night as ``postload nightly`` writes it."""
    begun, fold, sink = first(number), Fold(first(number)), RunSink(engine, str(folder))
    with EventLog(folder) as log:
        for event in (begun, *told(number)):
            log.write(event)
            fold.add(event)
            sink.take(event)
        sink.end(fold.document().machines)
    if number:
        history = History(engine)
        doc = document(history, number, folder)
        for said in (*doc.reproduced, *doc.made):
            put_answer(engine, said)
        put_excuses(engine, history.run("last"), excuses_of(doc))
        (folder / NIGHT).write_bytes(as_text(doc))


@pytest.fixture
def live(empty_file: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    """A history that two nights were written into while they went on, in the folders 0 and 1."""
    engine = open_store(str(shutil.copy(empty_file, tmp_path / "live.db")))
    for number in range(2):
        write_live(engine, tmp_path / str(number), number)
    yield engine
    engine.dispose()


def rows(engine: sa.Engine) -> dict[str, list[str]]:
    """All tables as text; where a row names another one, that stands in its place."""
    found: dict[str, list[str]] = {}
    named: dict[str, dict[int, Any]] = {}
    with engine.connect() as connection:
        for table in t.metadata.sorted_tables:
            mine = [_row(table, row, named) for row in connection.execute(sa.select(table)).mappings()]
            if "id" in table.c:
                named[table.name] = dict(mine)
            found[table.name] = sorted(json.dumps(row, sort_keys=True) for _, row in mine)
    return found


def _row(table: sa.Table, row: Any, named: dict[str, dict[int, Any]]) -> tuple[int, dict[str, Any]]:
    plain = {name: value for name, value in row.items() if (table.name, name) != ("runs", "alive") and name != "id"}
    for column in table.c:
        for key in column.foreign_keys:
            if plain[column.name] is not None:
                plain[column.name] = named[key.column.table.name][plain[column.name]]
    if table is t.logs:
        plain["cell"] = json.loads(zstandard.decompress(plain["cell"]))
    return row.get("id", 0), plain


def imported(store: str, *folders: Path) -> None:
    done = CliRunner().invoke(cli, ["import", "--store", store, *map(str, folders)], standalone_mode=False)
    assert done.return_value == 0, done.output


def test_what_is_compared_here_is_there(live: sa.Engine) -> None:
    found = rows(live)
    assert [name for name, lines in found.items() if not lines] == ["marks"]
    assert {json.loads(line)["kind"] for line in found["excuses"]} == {"known", "quarantined", "once"}
    assert len(found["reproductions"]) == 2


def test_imported_nights_are_as_those_that_were_written(
    live: sa.Engine, engine: sa.Engine, store: str, tmp_path: Path
) -> None:
    for _ in range(2):  # once more changes nothing
        imported(store, tmp_path / "0", tmp_path / "1")
        assert rows(engine) == rows(live)
    # nor does it where they were written
    before = rows(live)
    imported(str(tmp_path / "live.db"), tmp_path / "0", tmp_path / "1")
    assert rows(live) == before


def test_a_night_that_was_killed_is_imported_as_it_was_found(engine: sa.Engine, store: str, tmp_path: Path) -> None:
    killed, folder = open_store(str(tmp_path / "killed.db"), create=True), tmp_path / "killed"
    here = replace(first(0), host={"name": platform.node()})
    with EventLog(folder) as log:
        sink = RunSink(killed, str(folder))
        sink.take(here)  # and it does not live to write more
        for event in (here, *told(0)):
            if not isinstance(event, RunEnded):
                log.write(event)
    heal(killed)
    imported(store, folder)
    assert rows(engine) == rows(killed)
    assert '"state": "killed"' in rows(engine)["runs"][0]
    killed.dispose()


def test_of_a_document_alone_known_issues_are_kept(live: sa.Engine, engine: sa.Engine, tmp_path: Path) -> None:
    fold = Fold(first(0))
    for event in told(0):
        fold.add(event)
    path = tmp_path / "alone" / JSON_NAME
    path.parent.mkdir()
    path.write_text(json.dumps(held_against(fold.document(), first(0)).doc.to_json()))
    import_run(engine, path)
    folder = {json.loads(line)["folder"] for line in rows(engine)["runs"]}
    assert folder == {str(path.parent)}
    (_, kept) = History(live).runs()
    (alone,) = History(engine).runs()
    judged_cells = [replace(row, run="") for row in History(live).cells(kept) if row.verdict is not None]
    assert [replace(row, run="") for row in History(engine).cells(alone)] == judged_cells


def test_a_night_document_is_read_as_it_was_written(live: sa.Engine, tmp_path: Path) -> None:
    doc = read_night((tmp_path / "1" / NIGHT).read_bytes())
    assert as_text(doc) == (tmp_path / "1" / NIGHT).read_bytes()
    assert (len(doc.excused), len(doc.once), doc.reproduced[0].qemu) == (1, 1, OTHER)


def test_a_damaged_night_document_is_told(store: str, live: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / "1" / NIGHT).write_text('{"schema": "postload.night/1"}')
    done = CliRunner().invoke(cli, ["import", "--store", store, str(tmp_path / "1")], standalone_mode=False)
    assert done.return_value == 2
    assert "night.json: not a postload.night/1 document: compared" in done.stderr


def test_an_answer_about_a_finding_that_no_run_has_is_left_out(
    store: str, engine: sa.Engine, live: sa.Engine, tmp_path: Path
) -> None:
    doc = read_night((tmp_path / "1" / NIGHT).read_bytes())
    lost = replace(doc.reproduced[0], signature="crash:of:an:earlier:night")
    (tmp_path / "1" / NIGHT).write_bytes(as_text(replace(doc, reproduced=(lost,))))
    imported(store, tmp_path / "1")
    assert [each.signature for each in History(engine).reproductions()] == [CRASH]
