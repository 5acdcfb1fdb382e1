# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night ends with: 1 for what is new, back or overdue, and never 0 for a night that did not look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import jsonschema
import pytest
from made_cells import QEMU
from made_runs import crashed, events, judged, started, write_nights, write_run

from harness.colo.messages import Step
from harness.nights.config import Quarantine
from harness.nights.document import AbsentQemu, Canary, NightDoc, Overdue, ReproducerAnswer, night_schema
from harness.nights.telling import excused_of, excuses_of, overdue_of, place_of, seen_twice, to_try_again, without
from harness.report.nightly import night_headline, night_text
from harness.report.schemas import shipped
from harness.results.cause import Broke
from harness.results.document import Cell
from harness.results.known import Issue, News, NewsKind
from harness.results.verdict import Verdict
from harness.store.compare import compare
from harness.store.document import CompareDoc
from harness.store.keep import put_excuses
from harness.store.read import History
from harness.store.states import ExcuseKind, Reproduced, read_rules

BOUND, BUSY = "pc-q35-7.2/ahci/bound/same", "pc-q35-7.2/ahci/busy/same"
RED = Canary(machine="pc-q35-7.2", qemu="7.2.22", verdict=Verdict.REJECT, section="timer", red=True)
GREEN = replace(RED, verdict=Verdict.OK, red=False)
LINK = "https://example.org/1"


def hung(place: str = BOUND) -> Cell:
    return judged(place, Verdict.HANG, causes=(Broke(step=Step.LOAD, load=1, how="late"),), blamed=("a/b",))


def compared(history: History, *nights: Any) -> CompareDoc:
    write_nights(history.engine, nights)
    newest, before = history.runs(limit=2)
    return compare(history, before, newest, read_rules())


def night(doc: CompareDoc, **more: Any) -> NightDoc:
    given: Mapping[str, Any] = {"first": False, "folder": "/n", "canaries": (RED,), "planned": 1, **more}
    return NightDoc(compared=doc, **given)


def test_a_night_in_which_nothing_changed_ends_well(history: History) -> None:
    doc = night(compared(history, [judged(BOUND)], [judged(BOUND)]))
    assert (doc.counts, doc.whole, doc.exit_code) == (True, True, 0)
    assert "canary: 1 of 1 machine told" in night_text(doc)
    assert doc.to_json()["exit_code"] == 0
    jsonschema.validate(doc.to_json(), night_schema() | {"additionalProperties": True})
    assert night_schema() == shipped("night-1.schema.json")


def test_what_is_new_ends_it_with_1_and_what_is_still_there_does_not(history: History) -> None:
    assert night(compared(history, [judged(BOUND)], [crashed(BOUND)])).exit_code == 1
    write_run(history.engine, started(2), events([crashed(BOUND)]))
    newest, before = history.runs(limit=2)
    assert night(compare(history, before, newest, read_rules())).exit_code == 0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"canaries": ()}, "no machine was asked for a planted fault"),
        ({"canaries": (RED, GREEN)}, "a planted fault was not told"),
        ({"missing": (f"7.2.22/{BUSY}",), "planned": 2}, "1 of 2 cells judged"),
        (
            {"missing": (f"7.2.22/{BUSY}",), "planned": 2, "budget_over": True, "budget_s": 600.0},
            "the budget of 10 min",
        ),
        ({"absent": (AbsentQemu(name="head", said="no such file"),)}, "head: no such file"),
    ],
)
def test_a_night_that_did_not_look_everywhere_is_red(history: History, broken: dict[str, Any], said: str) -> None:
    doc = night(compared(history, [judged(BOUND)], [judged(BOUND)]), **broken)
    assert doc.exit_code == 3
    assert said in night_text(doc)


@pytest.mark.parametrize("verdict", [None, Verdict.UNSUPPORTED, Verdict.HARNESS_ERROR, Verdict.HOST])
def test_an_empty_night_and_one_that_skipped_all_are_red(history: History, verdict: Verdict | None) -> None:
    last = [] if verdict is None else [judged(BOUND, verdict)]
    doc = night(compared(history, [judged(BOUND)], last))
    assert (doc.is_empty, doc.counts, doc.exit_code) == (True, False, 3)
    assert "this night does not count: nothing was judged" in night_text(doc)


def test_the_bug_reports_that_were_made_tonight_are_told_with_their_folders(history: History) -> None:
    doc = compared(history, [judged(BOUND)], [crashed(BOUND)])
    said = ReproducerAnswer(
        signature=doc.new[0].signature, qemu=QEMU, answer=Reproduced.STILL, at=doc.after.started, script="/n/bundles/x"
    )
    assert f"{doc.new[0].signature}: /n/bundles/x" in night_text(night(doc, made=(said,)))
    assert "bug reports" not in night_text(night(doc))


def test_an_undecided_cell_is_no_green_one(history: History) -> None:
    doc = night(compared(history, [judged(BOUND), judged(BUSY)], [judged(BOUND), judged(BUSY, Verdict.HOST)]))
    assert doc.exit_code == 3
    assert "this night is not whole" in night_text(doc)


def test_what_is_new_is_told_though_the_night_was_cut_short(history: History) -> None:
    doc = night(compared(history, [judged(BOUND)], [crashed(BOUND)]), missing=(f"7.2.22/{BUSY}",), budget_over=True)
    assert doc.exit_code == 1


def test_a_crash_counts_at_its_first_showing_and_a_hang_is_tried_again(history: History) -> None:
    doc = compared(history, [judged(BOUND), judged(BUSY)], [crashed(BOUND), hung(BUSY)])
    assert len(doc.new) == 2
    assert [change.signature.partition(":")[0] for change in to_try_again(doc, ())] == ["hang"]


def test_a_refusal_and_a_crash_that_came_once_in_three_tries_count_at_once(history: History) -> None:
    seldom = crashed(BOUND)
    seldom = replace(seldom, outcome=replace(seldom.outcome, repeats=None))
    doc = compared(history, [judged(BOUND)], [seldom])
    assert to_try_again(doc, ()) == []
    assert night(doc).exit_code == 1


def test_what_did_not_come_again_yesterday_and_is_there_today_is_tried_again(history: History) -> None:
    doc = compared(history, [judged(BOUND)], [hung(BOUND)], [hung(BOUND)])
    (still,) = doc.still
    assert to_try_again(doc, ()) == []
    assert to_try_again(doc, {place_of(still)}) == [still]


def test_what_does_not_come_again_is_told_and_does_not_count(history: History) -> None:
    doc = compared(history, [judged(BOUND), judged(BUSY)], [crashed(BOUND), hung(BUSY)])
    suspects = to_try_again(doc, ())
    left, once = seen_twice(doc, suspects, set())
    assert [change.signature.partition(":")[0] for change in left.new] == ["crash"]
    assert once == suspects
    assert "came once, and not when it was tried again" in night_text(night(left, once=tuple(once)))
    left, once = seen_twice(doc, suspects, {place_of(change) for change in suspects})
    assert (left, once) == (doc, [])


def test_what_came_once_yesterday_and_twice_today_is_new(history: History) -> None:
    doc = compared(history, [judged(BOUND)], [hung(BOUND)], [hung(BOUND)])
    suspects = to_try_again(doc, {place_of(doc.still[0])})
    left, once = seen_twice(doc, suspects, {place_of(doc.still[0])})
    assert (left.new, left.still, once) == (doc.still, (), [])
    assert night(left).exit_code == 1
    left, once = seen_twice(doc, suspects, set())
    assert (left.new, left.still, once) == ((), (), suspects)


def test_the_headline_says_what_counts(history: History) -> None:
    doc = night(compared(history, [judged(BOUND)], [crashed(BOUND)]), canaries=(RED, GREEN))
    assert night_headline(doc) == "postload night: 1 new, it does not count; 1 cell"
    doc = night(replace(doc.compared, new=()), planned=4)
    assert night_headline(doc) == "postload night: nothing new; 4 cells"
    assert night_headline(replace(doc, missing=("x",))) == "postload night: it is not whole; 3 cells"


def test_a_quarantined_finding_is_told_and_does_not_count_until_its_day(history: History) -> None:
    doc = compared(history, [judged(BOUND)], [crashed(BOUND)])
    entry = Quarantine(cell="*/pc-q35-*/ahci/*", link=LINK, until=date(2026, 2, 1))
    (excused,) = excused_of(doc, [entry], date(2026, 2, 1))
    hidden = night(without(doc, {place_of(excused.change)}), excused=(excused,))
    assert hidden.exit_code == 0
    assert f"until 2026-02-01: {LINK}" in night_text(hidden)
    assert excused_of(doc, [entry], date(2026, 2, 2)) == []


def test_the_history_says_of_a_night_what_the_night_said(history: History) -> None:
    doc = compared(history, [judged(BOUND), judged(BUSY)], [crashed(BOUND), hung(BUSY)])
    entry = Quarantine(cell="*/pc-q35-*/ahci/bound/*", link=LINK, until=date(2026, 2, 1))
    (excused,) = excused_of(doc, [entry], date(2026, 2, 1))
    left, once = seen_twice(without(doc, {place_of(excused.change)}), to_try_again(doc, ()), ())
    told = night(left, excused=(excused,), once=tuple(once))
    newest, before = history.runs(limit=2)
    put_excuses(history.engine, newest, excuses_of(told))
    again = compare(history, before, newest, read_rules())
    assert (again.new, again.exit_code) == (told.compared.new, told.exit_code) == ((), 0)
    assert {change.excuse.kind for change in again.excused if change.excuse} == {
        ExcuseKind.QUARANTINED,
        ExcuseKind.ONCE,
    }


def test_a_quarantine_that_is_past_counts_until_somebody_takes_it_out(history: History) -> None:
    doc = compared(history, [crashed(BOUND)], [crashed(BOUND)])
    assert night(doc).exit_code == 0  # still there
    entry = Quarantine(cell="*/pc-q35-*/ahci/*", link=LINK, until=date(2026, 2, 1))
    assert overdue_of(doc, [entry], (), date(2026, 2, 1)) == []
    overdue = overdue_of(doc, [entry], (), date(2026, 2, 2))
    assert overdue == [Overdue(what=entry.cell, link=LINK, until=entry.until, cells=(f"7.2.22/{BOUND}",))]
    told = night(doc, overdue=tuple(overdue))
    assert told.exit_code == 1
    assert "excused no longer, and counted until the entry is taken out" in night_text(told)


def test_a_known_issue_that_is_past_counts_too(history: History) -> None:
    doc = compared(history, [crashed(BOUND)], [crashed(BOUND)])
    issue = Issue(signature="crash:a:b:c:q35", affected=("*",), link=LINK, until=date(2026, 2, 1))
    news = News(kind=NewsKind.PAST, issue=issue, version="7.2.22", machine="pc-q35-7.2", cells=("x",))
    gone = replace(news, kind=NewsKind.GONE)
    (overdue,) = overdue_of(doc, (), [news, gone], date(2026, 2, 2))
    assert (overdue.what, overdue.cells) == (issue.signature, ("x",))
