# SPDX-License-Identifier: GPL-2.0-or-later
"""Every planned cell is accounted for, also those of guests that nobody came to."""

from __future__ import annotations

from made_runs import events, judged

from harness.nights.account import account_of, unfinished
from harness.results.events import CellsPlanned, Event, Judged
from harness.results.key import CellKey
from harness.results.verdict import Verdict

ROW = "7.2.22/pc-q35-7.2/ahci"
NAMES = [f"{ROW}/bound/same", f"{ROW}/busy/same", f"{ROW}/bound/drift", "7.2.22/pc-q35-7.2/e1000e/bound/same"]
FORESEEN = [CellKey.parse(name) for name in NAMES]


def told(*tails: str, verdict: Verdict = Verdict.OK) -> list[Event]:
    return list(events([judged(f"pc-q35-7.2/{tail}", verdict) for tail in tails]))


def test_a_cell_that_was_foreseen_and_never_planned_is_missing() -> None:
    account = account_of(FORESEEN, told("ahci/bound/same", "ahci/busy/same", "ahci/bound/drift"), complete=False)
    assert account.missing == (NAMES[3],)
    assert (account.planned, account.judged) == (4, 3)


def test_a_night_of_nothing_misses_all() -> None:
    assert account_of(FORESEEN, [], complete=True).missing == tuple(NAMES)


def test_a_planned_cell_that_was_not_judged_is_missing_though_the_run_says_that_it_is_complete() -> None:
    happened = told("ahci/bound/same", "ahci/bound/drift", "e1000e/bound/same")
    assert account_of(FORESEEN, happened, complete=True).missing == (NAMES[1],)
    planned = [*happened, CellsPlanned(row=ROW, cells=(NAMES[1],))]
    assert account_of(FORESEEN, planned, complete=True).missing == (NAMES[1],)


def test_a_lane_that_never_came_is_no_loss_where_its_device_says_why() -> None:
    happened = [
        *told("ahci/bound/same", "ahci/busy/same", verdict=Verdict.UNSUPPORTED),
        *told("e1000e/bound/same"),
    ]
    assert account_of(FORESEEN, happened, complete=True).missing == ()
    assert account_of(FORESEEN, happened, complete=False).missing == (NAMES[2],)
    planned = [*happened, CellsPlanned(row=ROW, cells=(NAMES[2],))]
    assert account_of(FORESEEN, planned, complete=True).missing == (NAMES[2],)


def test_a_cell_in_place_of_one_that_was_foreseen_counts_for_it() -> None:
    happened = told("ahci/bound/same", "ahci/busy/same", "ahci/kernel/drift", "e1000e/bound/same")
    account = account_of(FORESEEN, happened, complete=True)
    assert (account.planned, account.judged, account.missing) == (4, 4, ())


def test_what_is_left_of_a_night_that_was_cut_off() -> None:
    failed = told("ahci/busy/same", verdict=Verdict.CRASH)
    left = unfinished(FORESEEN, [*told("ahci/bound/same"), *failed])
    # one that failed may have a further look before it
    assert [str(key) for key in left] == [NAMES[1], NAMES[2], NAMES[3]]
    rest = judged("pc-q35-7.2/ahci/busy/same", rest=1)
    left = unfinished(FORESEEN, [*failed, Judged(planned=NAMES[1], cell=rest)])
    assert NAMES[1] not in map(str, left)
