# SPDX-License-Identifier: GPL-2.0-or-later
"""Shards put together: one run, and what is missing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell

from harness.errors import UsageError
from harness.results.document import Cell, LostGuest, MachineResult
from harness.results.events import (
    CellsPlanned,
    Event,
    EventLog,
    Fold,
    GuestLost,
    Judged,
    MachineSeen,
    RunEnded,
    ShardOf,
    Started,
)
from harness.results.merged import Merged, merge

CELLS = [made_cell(f"pc-q35-7.2/ahci/{phase}/same", phases=(phase,)) for phase in ("kernel", "bound", "busy")]
LOST = LostGuest(machine="pc-q35-7.2", recorder="7.2.22", devices=("ahci", "edu"), by="edu", said="it died")


def shard(folder: Path, number: int, cells: list[Cell], *more: Event, of: int = 3, **changes: Any) -> Path:
    out = folder / f"shard{number}"
    qemu = CELLS[0].load_qemu
    machine = MachineResult(machine="pc-q35-7.2", qemu=qemu, dialect="enable-colo" if cells else None)
    started = Started(
        command=("postload", "matrix", "--shard", f"{number}/{of}", "--quick", f"--shard={number}/{of}"),
        host={"host": number},
        started=f"2026-01-0{number}T00:00:00+00:00",
        shard=ShardOf(number=number, of=of, plan="asked"),
    )
    events: list[Event] = [
        replace(started, **changes),
        MachineSeen(machine=machine),
        CellsPlanned(row=CELLS[0].key.row, cells=tuple(cell.id for cell in CELLS)),
        *(Judged(planned=cell.id, cell=cell, at_s=float(number)) for cell in cells),
        *more,
        RunEnded(complete=True, at_s=9.0),
    ]
    with EventLog(out) as log:
        for event in events:
            log.write(event)
    return out


def fold(merged: Merged) -> Fold:
    first, *rest = merged.events
    assert isinstance(first, Started)
    fold = Fold(first)
    for event in rest:
        fold.add(event)
    return fold


def test_shards_become_one_run_in_the_order_of_the_plan(tmp_path: Path) -> None:
    shards = [shard(tmp_path, number, [CELLS[-number]]) for number in (3, 1, 2)]
    merged = merge(shards)
    doc = fold(merged).document()
    assert [cell.id for cell in doc.cells] == [cell.id for cell in CELLS]
    assert merged.complete
    assert doc.complete
    assert doc.command == ("postload", "matrix", "--quick")
    assert (doc.started, doc.seconds) == ("2026-01-01T00:00:00+00:00", 9.0)
    assert fold(merged).started.shard is None


def test_what_a_shard_did_not_probe_another_did(tmp_path: Path) -> None:
    merged = merge([shard(tmp_path, 1, CELLS), shard(tmp_path, 2, []), shard(tmp_path, 3, [])])
    assert [machine.dialect for machine in fold(merged).document().machines] == ["enable-colo"]


def test_a_guest_that_several_lost_is_told_once(tmp_path: Path) -> None:
    lost = GuestLost(guest=LOST)
    merged = merge([shard(tmp_path, number, CELLS[number - 1 : number], lost) for number in (1, 2, 3)])
    assert fold(merged).document().lost == (LOST,)


def test_a_shard_that_is_missing_is_named_with_its_cells(tmp_path: Path) -> None:
    merged = merge([shard(tmp_path, 1, CELLS[:1]), shard(tmp_path, 3, CELLS[2:])])
    assert (merged.absent, merged.missing, merged.cut) == ((2,), (CELLS[1].id,), ())
    assert not merged.complete
    assert not fold(merged).document().complete


def test_a_cell_that_nobody_judged_is_named(tmp_path: Path) -> None:
    merged = merge([shard(tmp_path, 1, CELLS[:1], of=2), shard(tmp_path, 2, CELLS[2:], of=2)])
    assert (merged.absent, merged.missing) == ((), (CELLS[1].id,))


def test_a_shard_that_was_killed_is_named(tmp_path: Path) -> None:
    whole, killed = shard(tmp_path, 1, CELLS[:2], of=2), shard(tmp_path, 2, CELLS[2:], of=2)
    events = killed / "cells.jsonl"
    events.write_text(events.read_text().rpartition('{"event":"ended"')[0])
    merged = merge([whole, killed])
    assert (merged.cut, merged.missing) == ((killed,), ())
    assert not merged.complete


@pytest.mark.parametrize("changes", [{"plan": "another"}, {"of": 4}])
def test_a_shard_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    other = replace(ShardOf(number=2, of=3, plan="asked"), **changes)
    with pytest.raises(UsageError, match="shards of different runs"):
        merge([shard(tmp_path, 1, CELLS), shard(tmp_path, 2, [], shard=other)])


def test_the_same_shard_twice_is_refused(tmp_path: Path) -> None:
    first = shard(tmp_path, 1, CELLS)
    with pytest.raises(UsageError, match="both shard 1 of 3"):
        merge([first, first])


def test_a_run_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no shard of a run"):
        merge([shard(tmp_path, 1, CELLS, shard=None)])
