# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that had each cell judged on each host: which of them differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import made_cell
from made_runs import crashed, events, judged, started

from harness.report.onhosts import hosts_lines
from harness.results.document import Cell, MatrixDoc
from harness.results.events import Fold
from harness.results.verdict import Verdict, exit_code

HOSTS = ("alpha", "beta", "gamma")
PLACE = "pc-q35-7.2/ahci/bound/same"


def document(*cells: Cell) -> MatrixDoc:
    first = started(hosts=HOSTS)
    fold = Fold(first)
    for event in events(cells):
        fold.add(event)
    return MatrixDoc.from_json(fold.document().to_json())


def on(hosts: str, cell: Cell) -> list[Cell]:
    return [replace(cell, host=host) for host in HOSTS if host[0] in hosts]


def test_hosts_that_differ_are_named_with_what_each_of_them_says() -> None:
    busy = judged("pc-q35-7.2/ahci/busy/same")
    doc = document(*on("ab", judged(PLACE)), *on("g", crashed(PLACE)), *on("abg", busy))
    assert [(each.cell, each.differs) for each in doc.each_host] == [
        (f"7.2.22/{PLACE}", True),
        ("7.2.22/pc-q35-7.2/ahci/busy/same", False),
    ]
    assert (doc.cells[0].verdict, doc.cells[0].host) == (Verdict.CRASH, "gamma")
    assert hosts_lines(doc) == [
        "2 cells on each of alpha, beta, gamma: 1 differs",
        f"7.2.22/{PLACE}  ok: alpha, beta; crash: gamma",
    ]


def test_two_crashes_of_two_signatures_differ() -> None:
    doc = document(*on("ab", crashed(PLACE)), *on("g", crashed(PLACE, words="gone")))
    (line,) = hosts_lines(doc)[1:]
    died, gone = "crash (crash:-:died:ich9_ahci:q35)", "crash (crash:-:gone:ich9_ahci:q35)"
    assert line == f"7.2.22/{PLACE}  {died}: alpha, beta; {gone}: gamma"


def test_a_host_that_did_not_judge_a_cell_is_not_passed_over() -> None:
    doc = document(*on("ab", judged(PLACE)))
    assert hosts_lines(doc)[1:] == [f"7.2.22/{PLACE}  ok: alpha, beta; not judged: gamma"]


@pytest.mark.parametrize(
    ("other", "stands", "code"),
    [
        (Verdict.HARNESS_ERROR, Verdict.HARNESS_ERROR, 3),
        (Verdict.HOST, Verdict.HOST, 3),
        (Verdict.CRASH, Verdict.CRASH, 1),
        (Verdict.UNSUPPORTED, Verdict.OK, 0),
    ],
)
def test_that_one_host_could_not_decide_is_no_green_cell(other: Verdict, stands: Verdict, code: int) -> None:
    doc = document(*on("ab", judged(PLACE)), *on("g", made_cell(PLACE, other)))
    assert [cell.verdict for cell in doc.cells] == [stands]
    assert exit_code(cell.verdict for cell in doc.cells) == code


def test_a_further_look_is_made_by_the_hosts_that_found_something() -> None:
    rest = judged(PLACE)
    rest = replace(rest, key=replace(rest.key, rest=1))
    doc = document(*on("ab", judged(PLACE)), *on("g", crashed(PLACE)), *on("g", rest))
    further = doc.each_host[1]
    assert (further.cell, [each.host for each in further.outcomes]) == (f"7.2.22/{PLACE}+rest", ["gamma"])


def test_a_run_that_any_host_judged_has_no_such_part() -> None:
    fold = Fold(started())
    for event in events([replace(judged(PLACE), host="beta")]):
        fold.add(event)
    assert fold.document().each_host == ()
    assert hosts_lines(fold.document()) == []
