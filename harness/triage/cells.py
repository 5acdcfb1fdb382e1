# SPDX-License-Identifier: GPL-2.0-or-later
"""A cell as a user names it, and what its document says of its failure. Pure."""

from __future__ import annotations

import re

from harness.matrix import model
from harness.matrix.model import MIGRATIONS, Cell, MatrixDoc

#: An ordinary migration goes over all phases; its text says in which one it failed.
_PHASE = re.compile(r"(?:^|; )phase (?P<phase>[\w-]+): ")


def find_cell(doc: MatrixDoc, text: str) -> Cell:
    """The cell of this id, or the only one, else the only failing one, whose id holds the text.

    Whole parts of an id go first: ``bound/same`` is not meant to be ``unbound/same`` as well.

    :raises UsageError: there is none, or several; names some
    """
    wanted = f"/{text.strip('/')}/"
    whole = [cell for cell in doc.cells if wanted in f"/{cell.id}/"]
    for found in (whole, [cell for cell in whole if cell.verdict.is_finding]):
        if len(found) == 1:
            return found[0]
    return model.find_cell(doc, text)


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
