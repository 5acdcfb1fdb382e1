# SPDX-License-Identifier: GPL-2.0-or-later
"""Which verdicts say nothing, because the host disturbed what they rest on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.qemu.disturbance import Disturbance, Hindered
from harness.results.document import Cell
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

#: Nothing that only takes time brings these about.
_BEYOND_TIME = frozenset({Verdict.OK, Verdict.UNSUPPORTED, Verdict.CRASH, Verdict.REJECT})


def is_void(verdict: Verdict, hindered: Sequence[Hindered]) -> bool:
    """Whether a verdict says nothing of a device.

    Where a QEMU was ended, only what passed all the same stands. One that was kept from running may be late in
    whatever has to do with time, and so may its guest. A hang is counted in time in which QEMU could run: a QEMU that
    was merely slow for want of a CPU does not come to it.
    """
    if verdict in (Verdict.OK, Verdict.UNSUPPORTED):
        return False
    if any(each.fatal for each in hindered):
        return True
    if verdict in _BEYOND_TIME:
        return False
    return any(each.how is not Disturbance.STARVED or verdict is not Verdict.HANG for each in hindered)


def is_void_cell(cell: Cell, hindered: Sequence[Hindered]) -> bool:
    """Whether a cell is to be tried again. What broke beside sections that were left out would do so again: it is
    judged without their devices, or said to be undecided for that reason."""
    return any(each.fatal for each in hindered) if cell.outcome.hidden_by else is_void(cell.verdict, hindered)


def voided(cell: Cell, hindered: Sequence[Hindered]) -> Cell:
    """The cell as one that the host kept from being judged."""
    before = cell.outcome
    outcome = Outcome(
        verdict=Verdict.HOST,
        causes=tuple(hindered),
        log=before.log,
        loads_asked=before.loads_asked,
        loads_acked=before.loads_acked,
        checkpoints_acked=before.checkpoints_acked,
        hindered=before.hindered,
    )
    return replace(cell, outcome=outcome)
