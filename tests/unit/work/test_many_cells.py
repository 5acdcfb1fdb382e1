# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark of many cells, with few: it works, and nothing that it measures looks at all cells for each cell."""

from __future__ import annotations

import cProfile
import importlib.util
import pstats
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.results.events import fold_file
from harness.results.folder import read_matrix

#: 10, 20 and 40 devices of one machine, with 23 cells each.
FEW, MORE, MANY = 230, 460, 920


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "bench/cells.py"
    spec = importlib.util.spec_from_file_location("bench_cells", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_run_and_its_events_come_to_one_document(bench: ModuleType, tmp_path: Path) -> None:
    written = bench.run_cells(FEW, tmp_path)
    doc = read_matrix(tmp_path)
    assert written >= sum(path.stat().st_size for path in tmp_path.iterdir())
    reports = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert bench.report_cells(FEW, tmp_path) > 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == reports
    assert fold_file(tmp_path / "cells.jsonl").document() == doc
    assert {str(cell.verdict) for cell in doc.cells} == {"ok", "crash", "reject", "drift", "leak", "unsupported"}


def test_work_grows_in_a_line(bench: ModuleType, tmp_path: Path) -> None:
    """Calls are counted, not seconds: those are the same on a busy host."""

    def calls(count: int) -> int:
        out = tmp_path / str(count)
        bench.run_cells(count, out)
        profile = cProfile.Profile()
        profile.runcall(bench.report_cells, count, out)
        stats: Any = pstats.Stats(profile)
        total: int = stats.total_calls
        return total

    calls(FEW)  # templates and the like are compiled once
    few, more, many = (calls(count) for count in (FEW, MORE, MANY))
    # what is done once for all falls out; devices differ in what they come to, hence the margin
    assert (many - more) / (MANY - MORE) < (more - few) / (MORE - FEW) * 1.15
