# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cell says of its failure. Pure."""

from __future__ import annotations

import re

from harness.results.document import MIGRATIONS, Cell

#: An ordinary migration goes over all phases; its text says in which one it failed.
_PHASE = re.compile(r"(?:^|; )phase (?P<phase>[\w-]+): ")


def phase_of(cell: Cell) -> str:
    """Where it failed; the last phase where nobody says."""
    finding = cell.finding
    if finding is None:
        return cell.phases[-1]
    told = [finding.phase or "", *(match["phase"] for match in _PHASE.finditer(finding.text))]
    return next((phase for phase in told if phase in cell.phases), cell.phases[-1])


def at_start(cell: Cell) -> bool:
    """It failed in an incoming stream, before any checkpoint: it takes no COLO."""
    return cell.oracle in MIGRATIONS or (cell.finding is not None and cell.finding.load == 0)
