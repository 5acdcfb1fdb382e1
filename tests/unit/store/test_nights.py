# SPDX-License-Identifier: GPL-2.0-or-later
"""Many runs at once: strips of the last nights, what each run counted, and what was not ok in it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from made_cells import QEMU
from made_runs import crashed, events, judged, started, write_nights, write_run

from harness.results.document import Qemu
from harness.results.verdict import Verdict
from harness.store import nights
from harness.store.nights import WORST_FIRST, Mark, Missing, newest, read_nights, worst_of
from harness.store.read import History

CRASH = "crash:-:died:ich9_ahci:q35"
BOUND, BUSY = "pc-q35-7.2/ahci/bound/same", "pc-q35-7.2/ahci/busy/same"
OK, BROKE, NOT, NONE = Verdict.OK, Verdict.CRASH, Missing.NOT_JUDGED, Missing.ABSENT


def test_a_line_has_a_mark_for_each_night_the_oldest_first(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)], [crashed(BOUND), judged(BUSY)], [judged(BOUND)]])
    write_run(engine, started(3), events([judged(BUSY)], planned=[f"7.2.22/{BOUND}"]))
    found = read_nights(history, last=3)
    assert [run.name for run in found.shown] == ["night-1", "night-2", "night-3"]
    assert [run.name for run in found.runs] == ["night-3", "night-2", "night-1", "night-0"]
    bound, busy = found.lines[f"7.2/{BOUND}"], found.lines[f"7.2/{BUSY}"]
    assert (bound.marks, bound.newest, bound.signature) == ((BROKE, OK, NOT), NOT, CRASH)
    assert (busy.marks, busy.newest, busy.signature) == ((OK, NONE, OK), OK, "")


def test_point_releases_and_further_looks_are_one_line(engine: sa.Engine, history: History) -> None:
    later = Qemu(version="7.2.23", build="", path="/q", sha256="56" * 32, label="7.2.23")
    write_nights(engine, [[crashed(BOUND), judged(BOUND, rest=1)], [judged(BOUND, load_qemu=later, record_qemu=later)]])
    (line,) = read_nights(history, last=30).lines.values()
    assert (line.marks, line.cell.key, line.cell.route) == ((BROKE, OK), f"7.2.23/{BOUND}", "7.2")


def test_a_run_is_counted_by_device_and_route(engine: sa.Engine, history: History) -> None:
    told = events([crashed(BOUND), judged(BUSY)], planned=["7.2.22/pc-q35-7.2/nvme/bound/same"])
    write_run(engine, started(), told)
    (tallies,) = read_nights(history, last=1).tallies.values()
    assert {(each.device, each.route, each.mark): each.cells for each in tallies} == {
        ("ahci", "7.2", BROKE): 1,
        ("ahci", "7.2", OK): 1,
        ("nvme", "7.2", NOT): 1,
    }


def test_remarks_are_what_neither_passed_nor_is_unsupported(engine: sa.Engine, history: History) -> None:
    odd = judged("pc-q35-7.2/nvme/bound/same", Verdict.UNSUPPORTED)
    write_run(engine, started(), events([crashed(BOUND), judged(BUSY), odd], planned=["7.2.22/pc/x/bound/same"]))
    (remarks,) = read_nights(history, last=1).remarks.values()
    assert [(each.cell.device, each.mark, each.signature) for each in remarks] == [
        ("ahci", BROKE, CRASH),
        ("x", NOT, ""),
    ]


def test_answers_of_machines_are_by_their_labels(engine: sa.Engine, history: History) -> None:
    write_run(engine, started(), events([judged()]))
    (answers,) = read_nights(history, last=1).answers.values()
    assert [tuple(each) for each in answers] == [("pc-q35-7.2", QEMU.label, QEMU.label, "undecided")]


def test_what_a_run_brings_meanwhile_is_left_for_the_next_time(
    engine: sa.Engine, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(engine, started(), events([judged(BUSY), crashed(BOUND)]))
    read = nights._cells

    def before(kept: History) -> dict[int, nights.CellName]:
        return {number: cell for number, cell in read(kept).items() if cell.phases != "bound"}

    monkeypatch.setattr(nights, "_cells", before)
    found = read_nights(history, last=30)
    assert list(found.lines) == [f"7.2/{BUSY}"]
    assert dict(found.remarks) == {}
    monkeypatch.undo()
    monkeypatch.setattr(nights, "_signatures", lambda _: {None: ""})
    assert list(read_nights(history, last=30).lines) == [f"7.2/{BUSY}"]


def test_a_history_without_runs_is_empty(history: History) -> None:
    found = read_nights(history, last=30)
    assert (found.runs, found.shown, dict(found.lines)) == ((), (), {})


def test_what_was_not_judged_hides_no_finding_and_is_hidden_by_nothing_that_passed() -> None:
    strips: list[tuple[Mark, ...]] = [
        (OK, OK, NONE, NONE),
        (NOT, OK, NONE, Verdict.UNSUPPORTED),
        (BROKE, NOT, NONE, OK),
    ]
    assert worst_of(strips) == (BROKE, NOT, NONE, OK)


def test_every_verdict_has_its_place() -> None:
    assert set(WORST_FIRST) == {*Verdict, *Missing}


@pytest.mark.parametrize(("marks", "mark"), [((OK, BROKE, NONE), BROKE), ((NONE, NONE), NONE), ((BROKE, NOT), NOT)])
def test_the_newest_mark_is_of_the_last_night_that_planned_it(marks: tuple[Mark, ...], mark: Mark) -> None:
    assert newest(marks) is mark
