# SPDX-License-Identifier: GPL-2.0-or-later
"""Nights made by hand, held against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import jsonschema
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from made_cells import QEMU, changed
from made_runs import crashed, events, judged, night, started, write_nights, write_run

from harness.cli import cli
from harness.errors import UsageError
from harness.report.schemas import shipped
from harness.results.cause import Drifted
from harness.results.document import Cell, Qemu
from harness.results.verdict import Verdict
from harness.store.compare import compare
from harness.store.document import ChangedCell, CompareDoc, compare_schema
from harness.store.keep import put_excuses, put_reproduction, set_mark
from harness.store.read import History
from harness.store.signatures import signatures_on
from harness.store.states import Excuse, ExcuseKind, Look, Reproduced, read_rules

BOUND, BUSY = "pc-q35-7.2/ahci/bound/same", "pc-q35-7.2/ahci/busy/same"
DRIFT = "pc-q35-7.2/ahci/bound/drift"
CRASH, OTHER = "crash:-:died:ich9_ahci:q35", "crash:-:other:ich9_ahci:q35"
RULES = read_rules()
LINK = "https://example.org/1"
NEWER = Qemu(version="7.2.23", build="", path="/n", sha256="ab" * 32, label="7.2.23")


def drifted() -> Cell:
    return judged(DRIFT, Verdict.DRIFT, causes=(Drifted(section="x", fields=(), count=0, loads=9),), blamed=("x",))


def told(history: History, before: str = "last~1", after: str = "last") -> CompareDoc:
    return compare(history, history.run(before), history.run(after), RULES)


def lists(doc: CompareDoc) -> dict[str, list[str]]:
    """What is in each list that has something: ``PHASES/LANE SIGNATURE WAS>IS``."""
    names = ("new", "back", "fixed", "unseen", "still", "flaky", "not_run")
    return {name: [_short(change) for change in getattr(doc, name)] for name in names if getattr(doc, name)}


def _short(change: ChangedCell) -> str:
    return f"{'/'.join(change.cell.split('/')[3:])} {change.signature} {change.was}>{change.now}"


@pytest.mark.parametrize(
    ("nights", "expected", "code"),
    [
        pytest.param([[judged(BOUND)], [judged(BOUND)]], {}, 0, id="nothing"),
        pytest.param([[judged(BOUND)], [crashed(BOUND)]], {"new": [f"bound/same {CRASH} ok>crash"]}, 1, id="new"),
        pytest.param([[crashed(BOUND)]] * 2, {"still": [f"bound/same {CRASH} crash>crash"]}, 0, id="still"),
        pytest.param([[crashed(BOUND)], [judged(BOUND)]], {"unseen": [f"bound/same {CRASH} crash>ok"]}, 0, id="unseen"),
        pytest.param(
            [[crashed(BOUND)], [judged(BOUND)], [crashed(BOUND)]],
            {"back": [f"bound/same {CRASH} ok>crash"]}, 1, id="back",
        ),
        pytest.param(
            [[crashed(BOUND)], [crashed(BOUND, "other")]],
            {"new": [f"bound/same {OTHER} crash>crash"], "unseen": [f"bound/same {CRASH} crash>crash"]}, 1,
            id="another finding in one cell is two things",
        ),
        pytest.param(
            [[crashed(BOUND), judged(BUSY)], [crashed(BOUND), crashed(BUSY)]],
            {"new": [f"busy/same {CRASH} ok>crash"], "still": [f"bound/same {CRASH} crash>crash"]}, 1,
            id="an old finding in a cell that passed",
        ),
        pytest.param(
            [[crashed(BOUND)], [crashed(BOUND), crashed(BUSY)]],
            {"still": [f"bound/same {CRASH} crash>crash", f"busy/same {CRASH} None>crash"]}, 0,
            id="an old finding in a cell that nobody had judged",
        ),
        pytest.param(
            [[crashed(BOUND)], [judged(BOUND, Verdict.HOST, causes=())]],
            {"not_run": [f"bound/same {CRASH} crash>host"]}, 3, id="undecided",
        ),
        pytest.param(
            [[crashed(BOUND), judged(BUSY)], [judged(BUSY)]],
            {"not_run": [f"bound/same {CRASH} crash>None"]}, 0, id="not planned",
        ),
        pytest.param(
            [[judged(BOUND)], [crashed(BOUND)], [judged(BUSY)], [crashed(BOUND)]],
            {"still": [f"bound/same {CRASH} crash>crash"], "not_run": ["busy/same  ok>None"]}, 0,
            id="the night between did not look",
        ),
        pytest.param(
            [[crashed(BOUND)], [judged(BUSY)], [judged(BOUND), judged(BUSY)]],
            {"unseen": [f"bound/same {CRASH} crash>ok"]}, 0, id="gone while nobody looked",
        ),
        pytest.param(
            [[judged(DRIFT)], [drifted()], [judged(DRIFT)], [drifted()], [judged(DRIFT)], [drifted()]],
            {"flaky": ["bound/drift drift:-:-:x:q35 ok>drift"]}, 0, id="flaky",
        ),
        pytest.param(
            [[judged(DRIFT)]] * 5 + [[drifted()]],
            {"new": ["bound/drift drift:-:-:x:q35 ok>drift"]}, 1, id="one flip is not flaky",
        ),
        pytest.param(
            [[judged(BOUND)], [crashed(BOUND)]] * 3,
            {"back": [f"bound/same {CRASH} ok>crash"]}, 1, id="a crash is never flaky",
        ),
    ],
)  # fmt: skip
def test_a_night_against_the_one_before(
    engine: sa.Engine, history: History, nights: Sequence[list[Cell]], expected: dict[str, list[str]], code: int
) -> None:
    write_nights(engine, nights)
    doc = told(history)
    assert lists(doc) == expected
    assert doc.exit_code == code


def test_what_came_between_two_runs_is_new_against_the_earlier_one(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)], [crashed(BOUND)], [judged(BOUND)], [crashed(BOUND)]])
    assert lists(told(history, "last~3")) == {"new": [f"bound/same {CRASH} ok>crash"]}
    assert lists(told(history, "last~2")) == {"still": [f"bound/same {CRASH} crash>crash"]}


def test_a_point_release_is_held_against_the_one_before(engine: sa.Engine, history: History) -> None:
    moved = changed(crashed(BOUND), load_qemu=NEWER, record_qemu=NEWER)
    write_nights(engine, [[crashed(BOUND)], [moved]])
    (change,) = told(history).still
    assert (change.cell, change.line) == (f"7.2.23/{BOUND}", f"7.2/{BOUND}")


def test_what_broke_in_a_further_look_is_the_same_cell(engine: sa.Engine, history: History) -> None:
    rest = crashed(BOUND, "other", rest=1)
    write_nights(engine, [[crashed(BOUND), rest], [crashed(BOUND, "other")]])
    assert lists(told(history)) == {
        "unseen": [f"bound/same {CRASH} crash>crash"],
        "still": [f"bound/same {OTHER} crash>crash"],
    }


def test_planned_cells_that_nobody_judged_are_told(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND), judged(BUSY)]])
    write_run(engine, started(1), events([judged(BOUND)], planned=[f"7.2.22/{BUSY}"]))
    doc = told(history)
    assert [(change.look, change.was, change.now) for change in doc.not_run] == [(Look.UNJUDGED, Verdict.OK, None)]
    assert doc.exit_code == 3


def test_a_run_that_did_not_end_is_no_green_night(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)]])
    write_run(engine, started(1), events([judged(BOUND)], complete=False))
    assert told(history).exit_code == 3


def test_an_empty_run_is_no_green_night(engine: sa.Engine, history: History) -> None:
    write_run(engine, started(0), events([]))
    write_run(engine, started(1), events([]))
    assert told(history).exit_code == 3


def test_a_known_issue_is_not_new(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)]])
    issue = {"signature": CRASH, "affected": ["7.2"], "link": "https://example.org/1"}
    write_run(engine, started(1, known=[issue]), events([crashed(BOUND)]))
    doc = told(history)
    assert [(change.signature, change.known) for change in doc.still] == [(CRASH, "https://example.org/1")]
    assert doc.exit_code == 0


@pytest.mark.parametrize(
    ("answer", "build", "name"),
    [
        (Reproduced.GONE, QEMU, "fixed"),
        (Reproduced.STILL, QEMU, "still"),
        (Reproduced.UNDECIDED, QEMU, "unseen"),
        (Reproduced.GONE, NEWER, "unseen"),  # another build says nothing of this one
    ],
)
def test_a_finding_is_fixed_when_its_reproducer_says_so(
    engine: sa.Engine, history: History, answer: Reproduced, build: Qemu, name: str
) -> None:
    write_nights(engine, [[crashed(BOUND)], [judged(BOUND)]])
    put_reproduction(engine, signature=CRASH, qemu=build, answer=answer, run=history.run("last"))
    assert list(lists(told(history))) == [name]


def test_the_newest_answer_counts(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[crashed(BOUND)], [judged(BOUND)]])
    for day, answer in enumerate((Reproduced.GONE, Reproduced.STILL)):
        put_reproduction(engine, signature=CRASH, qemu=QEMU, answer=answer, at=night(day))
    assert list(lists(told(history))) == ["still"]


def test_the_answer_for_a_finding_that_nobody_saw_is_told(engine: sa.Engine) -> None:
    with pytest.raises(UsageError, match="crash:none"):
        put_reproduction(engine, signature="crash:none", qemu=QEMU, answer=Reproduced.GONE)


def test_a_signature_is_open_fixed_and_back_on_its_own_qemu(engine: sa.Engine, history: History) -> None:
    mine = Qemu(version="11.1.3", build="", path="/m", sha256="cd" * 32, label="mine")
    elsewhere = changed(crashed(BOUND), load_qemu=mine, record_qemu=mine)
    write_nights(engine, [[crashed(BOUND), elsewhere], [judged(BOUND), elsewhere]])
    put_reproduction(engine, signature=CRASH, qemu=NEWER, answer=Reproduced.GONE, at=night(1))

    def states() -> dict[str, tuple[str, tuple[str, ...], int]]:
        return {each.qemu: (str(each.state), each.fixed_in, each.rate.failed) for each in signatures_on(history, RULES)}

    assert states() == {"7.2": ("fixed-in", ("7.2.23",), 1), "mine": ("open", (), 2)}
    write_run(engine, started(2), events([crashed(BOUND)]))
    assert states()["7.2"] == ("back", ("7.2.23",), 2)


def test_that_a_finding_is_gone_counts_for_nothing_of_a_build_that_shows_it(
    engine: sa.Engine, history: History
) -> None:
    write_nights(engine, [[crashed(BOUND)], [judged(BOUND), crashed(BUSY)]])
    put_reproduction(engine, signature=CRASH, qemu=QEMU, answer=Reproduced.GONE, at=night(0))
    assert [(str(each.state), each.fixed_in) for each in signatures_on(history, RULES)] == [("open", ())]


def test_a_rate_stands_with_what_can_be_flaky(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(DRIFT), judged(BOUND)]] * 3 + [[drifted(), crashed(BOUND)]])
    rates = {change.signature.partition(":")[0]: change.rate for change in told(history).new}
    assert rates["crash"] is None
    assert rates["drift"] is not None
    assert (rates["drift"].failed, rates["drift"].judged) == (1, 4)


def test_two_hosts_of_one_run_are_told_as_one_cell(engine: sa.Engine, history: History) -> None:
    write_nights(engine, [[judged(BOUND)], [judged(BOUND)]])
    other = started(1, host={"name": "beta", "kernel": "6.12"})
    write_run(engine, other, events([crashed(BOUND)]))
    assert lists(told(history)) == {"new": [f"bound/same {CRASH} ok>crash"]}
    assert {row.host for row in history.cells(history.run("last"))} == {"alpha", "beta"}


def run(store: str, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["compare", *words, "--store", store], standalone_mode=False, catch_exceptions=False)
    return done.return_value, done.output


def test_the_command_ends_with_what_it_found(engine: sa.Engine, history: History, store: str) -> None:
    write_nights(engine, [[judged(BOUND)], [crashed(BOUND)], [crashed(BOUND)]])
    assert run(store, "last~1", "last")[0] == 0
    code, text = run(store, "last~2", "last~1")
    assert code == 1
    assert text.splitlines()[:2] == [
        "night-1 (2026-01-02 22:00 UTC) against night-0 (2026-01-01 22:00 UTC)",
        "  1 new, 0 back, 0 fixed, 0 unseen, 0 flaky, 0 still, 0 not run",
    ]
    assert f"new:\n  {CRASH}: 1 cell\n    7.2.22/{BOUND}  was ok, is crash" in text
    with pytest.raises(UsageError, match="baseline"):
        run(store, "baseline", "last")
    set_mark(engine, history.run("last~2"))
    assert run(store, "baseline", "last")[0] == 1


def test_the_document_follows_its_schema(engine: sa.Engine, store: str) -> None:
    write_nights(engine, [[judged(BOUND), crashed(BUSY), drifted()], [crashed(BOUND)], [crashed(BOUND), judged(BUSY)]])
    assert shipped("compare-1.schema.json") == json.loads(json.dumps(compare_schema()))
    code, text = run(store, "last~2", "last", "--json")
    found = json.loads(text)
    jsonschema.Draft202012Validator(shipped("compare-1.schema.json")).validate(found)
    assert code == 1
    assert {"cell", "signature", "was", "is"} <= found["new"][0].keys()
    assert (found["new"][0]["was"], found["new"][0]["is"]) == ("ok", "crash")
    assert found["not_run"][0]["is"] is None


def test_a_long_list_is_cut_and_says_so(engine: sa.Engine, history: History, store: str) -> None:
    places = [f"pc-q35-7.2/ahci/{phase}/{lane}" for phase in ("bound", "busy", "kernel") for lane in ("same", "walk")]
    write_nights(engine, [[judged(place) for place in places], [crashed(place) for place in places]])
    write_run(engine, started(2), events([], planned=[f"7.2.22/{place}" for place in places]))
    assert "    and 3 more" in run(store, "last~2", "last~1")[1]
    assert run(store, "last~2", "last~1", "--all")[1].count("was ok, is crash") == 6
    assert replace(told(history), not_run=()).exit_code == 3


def test_what_a_night_did_not_count_stands_apart(store: str, engine: sa.Engine, history: History) -> None:
    line = "7.2/pc-q35-7.2/ahci/bound/same"
    write_nights(engine, [[judged(BOUND), judged(BUSY)], [crashed(BOUND), crashed(BUSY)]])
    mine = [
        Excuse(kind=ExcuseKind.QUARANTINED, line=line, signature=CRASH, link=LINK, until=date(2026, 2, 1)),
        Excuse(kind=ExcuseKind.ONCE, line=line, signature=OTHER),
    ]
    for _ in range(2):  # a night that is told again
        put_excuses(engine, history.run("last"), mine)
    doc = told(history)
    assert lists(doc) == {"new": [f"busy/same {CRASH} ok>crash"]}
    assert [(change.line, change.excuse) for change in doc.excused] == [(line, mine[0])]
    plain = compare(history, history.run("last~1"), history.run("last"), RULES, excusing=False)
    assert (len(plain.new), plain.excused) == (2, ())
    put_excuses(
        engine, history.run("last"), [*mine, replace(mine[1], line=line.replace("bound", "busy"), signature=CRASH)]
    )
    done = CliRunner().invoke(cli, ["compare", "--store", store, "last~1", "last"], standalone_mode=False)
    assert done.return_value == 0
    assert "0 not run, 2 excused" in done.output
    assert f"{CRASH}  quarantined until 2026-02-01: {LINK}" in done.output
    assert "came once, and not when it was tried again" in done.output
    doc = told(history)
    jsonschema.validate(doc.to_json(), compare_schema())


def test_a_known_issue_is_told_with_its_last_day(store: str, engine: sa.Engine, history: History) -> None:
    issue = {"signature": CRASH, "affected": ["7.2"], "link": LINK, "until": "2026-03-01"}
    for number, cell in enumerate((judged(BOUND), crashed(BOUND))):
        write_run(engine, started(number, known=[issue, {**issue, "signature": OTHER}]), events([cell]))
    (change,) = told(history).still
    assert (change.known, change.excuse and change.excuse.until) == (LINK, date(2026, 3, 1))
    done = CliRunner().invoke(cli, ["compare", "--store", store, "last~1", "last"], standalone_mode=False)
    assert f"(known: {LINK}, until 2026-03-01)" in done.output
    done = CliRunner().invoke(cli, ["history", "--store", store, CRASH], standalone_mode=False)
    assert f"known: {LINK}, until 2026-03-01\n" in done.output
    write_run(engine, started(2, known=[{**issue, "until": None}]), events([crashed(BOUND)]))
    (change,) = told(history).still
    assert (change.known, change.excuse) == (LINK, None)
    assert [(each.known, each.known_until) for each in history.signatures()] == [(LINK, None)]
