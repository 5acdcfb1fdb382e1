# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cell says of its failure. Pure."""

from __future__ import annotations

from harness.names import MIGRATIONS
from harness.results.document import Cell


def phase_of(cell: Cell) -> str:
    """Where it failed; the last phase where nobody says."""
    phase = cell.outcome.phase
    return phase if phase in cell.phases else cell.phases[-1]


def at_start(cell: Cell) -> bool:
    """It failed in an incoming stream, before any checkpoint: it takes no COLO."""
    return cell.lane in MIGRATIONS or cell.outcome.load == 0
