# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of a run that still goes on: at once, then now and then, and never at much of its time and disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.report import snapshots as module
from harness.report.snapshots import FREE_BYTES, INTERVAL_S, REST, SHARE_OF_EVENTS, Snapshots
from harness.results.document import Cell, MatrixDoc
from harness.results.events import CellsPlanned, Judged

KB = 1000


class Bench:
    """A run on paper: its clock, the size of its events and how long and large its reports are."""

    def __init__(self, doc: MatrixDoc, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.events_bytes = 0
        self.length_s = 0.0
        self.size_bytes = 10 * KB
        self.written_at_s: list[float] = []
        self.cells = 0
        self._doc = doc
        self._out = out
        monkeypatch.setattr(module, "write_reports", self._write)
        self.snapshots = Snapshots(out, lambda: doc, lambda: self.events_bytes, lambda: self.now_s)

    def _write(self, doc: MatrixDoc, out: Path) -> list[Path]:
        assert (doc, out) == (self._doc, self._out)
        self.written_at_s.append(self.now_s)
        self.now_s += self.length_s
        for name, size_bytes in (("one", self.size_bytes * 3 // 4), ("two", self.size_bytes // 4)):
            (out / name).touch()
            os.truncate(out / name, size_bytes)
        return [out / "one", out / "two"]

    def judge(self, cell: Cell) -> None:
        self.cells += 1
        self.snapshots.take(Judged(planned=cell.id, cell=cell))


@pytest.fixture
def bench(doc: MatrixDoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(doc, tmp_path, monkeypatch)


def test_the_first_cell_is_shown_at_once_and_later_ones_together(bench: Bench, one_cell: Callable[..., Cell]) -> None:
    bench.snapshots.take(CellsPlanned(row="r", cells=("a",)))
    assert bench.written_at_s == []
    for _ in range(100):
        bench.judge(one_cell())
        bench.now_s += 1.0
    assert bench.written_at_s == [100.0 + INTERVAL_S * n for n in range(10)]


def test_what_takes_long_is_written_less_often(bench: Bench, one_cell: Callable[..., Cell]) -> None:
    bench.length_s, bench.size_bytes = 2.0, 1
    for _ in range(4000):
        bench.judge(one_cell())
        bench.now_s += 0.25
    spent_s = bench.length_s * len(bench.written_at_s)
    assert len(bench.written_at_s) > 20
    assert spent_s <= (bench.now_s - 100.0) / (1 + REST) + bench.length_s


def test_what_is_large_is_written_less_often(bench: Bench, one_cell: Callable[..., Cell]) -> None:
    """With each ten seconds' cells in reports of 3 kB a cell, 40,000 cells would come to 240 GB."""
    for _ in range(40_000):
        bench.events_bytes += 2 * KB
        bench.size_bytes = bench.cells * 3 * KB
        bench.judge(one_cell())
        bench.now_s += 1.0
    assert bench.snapshots.written_bytes <= FREE_BYTES + SHARE_OF_EVENTS * bench.events_bytes
    assert 10 < len(bench.written_at_s) < 100


def test_reports_in_between_are_whole_and_partial(
    doc: MatrixDoc, tmp_path: Path, one_cell: Callable[..., Cell]
) -> None:
    partial = replace(doc, complete=False)
    snapshots = Snapshots(tmp_path, lambda: partial, lambda: 0)
    snapshots.take(Judged(planned="a", cell=one_cell()))
    names = ["junit.xml", "matrix.html", "matrix.json", "matrix.md", "matrix.tap", "summary.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert '"complete": false' in (tmp_path / "matrix.json").read_text()
    assert snapshots.written_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
