# SPDX-License-Identifier: GPL-2.0-or-later
"""Which verdicts stand though the host disturbed what they rest on."""

from __future__ import annotations

import pytest
from made_cells import made_cell, symptom

from harness.colo.messages import Step
from harness.qemu.disturbance import Disturbance, Hindered
from harness.results.cause import Broke, Undecided, Why
from harness.results.verdict import Verdict
from harness.results.voided import is_void, is_void_cell, voided

ENDED = Hindered(how=Disturbance.ENDED, signal="SIGTERM")
MEMORY = Hindered(how=Disturbance.OUT_OF_MEMORY)
STOPPED = Hindered(how=Disturbance.STOPPED, seconds=20.0)
STILL = Hindered(how=Disturbance.STOOD_STILL, seconds=25.0)
STARVED = Hindered(how=Disturbance.STARVED, seconds=9.0, share=0.8)

#: Which of them make a verdict void.
VOID = {
    Verdict.OK: (),
    Verdict.UNSUPPORTED: (),
    Verdict.CRASH: (ENDED, MEMORY),
    Verdict.REJECT: (ENDED, MEMORY),
    Verdict.HANG: (ENDED, MEMORY, STOPPED, STILL),
    **dict.fromkeys(
        (
            Verdict.GUEST_FAULT, Verdict.DRIFT, Verdict.LEAK, Verdict.FLAKY, Verdict.HOST, Verdict.HARNESS_ERROR
        ),
        (ENDED, MEMORY, STOPPED, STILL, STARVED),
    ),
}  # fmt: skip


@pytest.mark.parametrize("verdict", Verdict)
def test_what_a_disturbance_makes_void(verdict: Verdict) -> None:
    assert not is_void(verdict, ())
    for each in (ENDED, MEMORY, STOPPED, STILL, STARVED):
        assert is_void(verdict, (each,)) is (each in VOID[verdict]), each
    assert is_void(verdict, (STARVED, ENDED)) is (ENDED in VOID[verdict])


def test_a_void_cell_blames_nobody() -> None:
    cause = Broke(step=Step.LOAD, load=3, phase="bound", how="late", symptom=symptom("no answer"))
    cell = made_cell(verdict=Verdict.HANG, causes=(cause,), blamed=("s",), log="words")
    found = voided(cell, (STOPPED, STARVED))
    assert (found.key, found.verdict, found.blamed, found.failure_class) == (cell.key, Verdict.HOST, (), None)
    assert found.outcome.causes == (STOPPED, STARVED)
    assert (found.outcome.log, found.loads_asked) == ("words", cell.loads_asked)


def test_what_broke_beside_what_was_left_out_is_not_tried_again_for_want_of_a_cpu() -> None:
    left_out = Undecided(why=Why.LEFT_OUT, sections=("nvme",))
    error = Undecided(why=Why.ERROR, said="no")
    for cause, void in ((left_out, False), (error, True)):
        cell = made_cell(verdict=Verdict.HARNESS_ERROR, causes=(cause,))
        assert is_void_cell(cell, (STARVED,)) is void
        assert is_void_cell(cell, (ENDED,))
