# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs made by hand: the events of some cells, written into a history as a run writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from made_cells import QEMU, changed, ended, made_cell

from harness.results.document import Cell, MachineResult
from harness.results.events import CellsPlanned, Event, Judged, MachineSeen, RunEnded, Started
from harness.results.signature import name_of
from harness.results.verdict import Verdict
from harness.store.write import RunWriter

HOST = {"name": "alpha", "kernel": "6.1.0", "cores": 2}


def night(number: int) -> str:
    """When a night began."""
    return f"2026-01-{1 + number:02d}T22:00:00+00:00"


def started(number: int = 0, **more: Any) -> Started:
    """The first event of a night."""
    given = {"command": ("postload", "matrix"), "host": HOST, "started": night(number), "run": f"night-{number}"}
    return Started(**{**given, **more})


def judged(place: str = "pc-q35-7.2/ahci/bound/same", verdict: Verdict = Verdict.OK, **changes: Any) -> Cell:
    """A cell as a run keeps it, with its signature."""
    cell = made_cell(place, verdict, **{"seconds": 0.5, "loads_asked": 100, **changes})
    return replace(cell, signature=name_of(cell) or None)


def events(cells: Iterable[Cell], planned: Iterable[str] = (), *, complete: bool = True) -> list[Event]:
    """What a run tells behind its first event.

    :param planned: keys of further cells, that were not judged
    """
    own = list(cells)
    qemus = {cell.load_qemu.sha256: cell.load_qemu for cell in own} or {QEMU.sha256: QEMU}
    machine = own[0].machine if own else "pc-q35-7.2"
    return [
        *(MachineSeen(machine=MachineResult(machine=machine, qemu=qemu)) for qemu in qemus.values()),
        CellsPlanned(row="row", cells=(*(cell.id for cell in own if not cell.is_rest), *planned)),
        *(Judged(at_s=1.0 + at, planned=cell.id, cell=cell) for at, cell in enumerate(own)),
        RunEnded(at_s=10.0, complete=complete),
    ]


def write_run(engine: sa.Engine, first: Started, told: Iterable[Event]) -> None:
    """Write a run into a history."""
    writer = RunWriter(engine)
    writer.begin(first)
    writer.write(list(told))


def write_nights(engine: sa.Engine, nights: Iterable[Mapping[str, Cell] | Iterable[Cell]]) -> None:
    """Write nights of some cells each, the first is the oldest."""
    for number, cells in enumerate(nights):
        write_run(engine, started(number), events(cells.values() if isinstance(cells, Mapping) else cells))


def crashed(place: str = "pc-q35-7.2/ahci/bound/same", words: str = "died", **changes: Any) -> Cell:
    """A cell that crashed; its words are its signature."""
    return judged(place, Verdict.CRASH, causes=(ended(words),), blamed=("0000:00:1f.2/ich9_ahci",), **changes)


__all__ = ["HOST", "changed", "crashed", "events", "judged", "night", "started", "write_nights", "write_run"]
