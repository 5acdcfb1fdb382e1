# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a cell failed."""

from __future__ import annotations

import pytest
from made_cells import made_cell, refused

from harness.colo.messages import Step
from harness.results.cause import Broke, Cause
from harness.results.verdict import Verdict
from harness.triage.cells import at_start, phase_of

SPAN = "pc-q35-7.2/d/kernel+bound+busy+rebound/plain"


@pytest.mark.parametrize(
    ("causes", "phase"),
    [
        ((refused(step=Step.INCOMING, phase="bound"), refused(phase="busy")), "bound"),
        ((refused(), refused(phase="busy")), "busy"),
        ((refused(phase="nowhere"),), "rebound"),
        ((refused(),), "rebound"),
        ((), "rebound"),
    ],
)
def test_a_migration_over_all_phases_says_where_it_failed(causes: tuple[Cause, ...], phase: str) -> None:
    assert phase_of(made_cell(SPAN, Verdict.REJECT, causes=causes)) == phase


def test_what_fails_before_any_checkpoint() -> None:
    assert at_start(made_cell("pc/d/bound/plain", Verdict.REJECT))
    assert at_start(made_cell("pc/d/bound/postcopy", Verdict.REJECT))
    late = Broke(step=Step.INCOMING, load=0, how="late")
    assert at_start(made_cell("pc/d/bound/same", Verdict.HANG, causes=(late,)))
    assert not at_start(made_cell("pc/d/bound/same", Verdict.REJECT, causes=(refused(),)))
    assert not at_start(made_cell("pc/d/bound/leak", Verdict.LEAK, causes=()))
