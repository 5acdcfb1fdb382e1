# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracles that look at more than answers are of one kind."""

from __future__ import annotations

from harness.experiments.drift import DriftRun
from harness.experiments.guestlife import GuestLife
from harness.experiments.leak import LeakResult, LeakRun
from harness.oracles.drift import judge_drift
from harness.oracles.guestfault import judge_life
from harness.oracles.leak import judge_leaks
from harness.oracles.oracle import Opinion, Oracle
from harness.results.cause import Undecided, Why
from harness.results.verdict import Verdict

# held by mypy
DRIFT: Oracle[DriftRun] = judge_drift
LEAK: Oracle[LeakResult] = judge_leaks
GUEST: Oracle[GuestLife] = judge_life


def test_an_oracle_that_saw_nothing_has_no_opinion() -> None:
    nothing = LeakRun(framework=None, control=None, sections=())
    assert LEAK(LeakResult(first=nothing, second=None)) == {}


def test_the_first_cause_stands_for_all() -> None:
    first, second = Undecided(why=Why.NOT_ASKED), Undecided(why=Why.NO_SECTION)
    assert Opinion(verdict=Verdict.HARNESS_ERROR, causes=(first, second)).cause == first
    assert Opinion(verdict=Verdict.OK).cause is None
