# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of many devices: a line for each, worst first, its verdicts on demand, and what a COLO guest may have."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from made_cells import QEMU, made_cell
from rich.console import Console

from harness.report.html import render_html
from harness.report.markdown import render_markdown
from harness.report.overview import FEW, colo_rows, grid_of, overview
from harness.report.terminal import print_matrix
from harness.report.view import blocks
from harness.results.answer import machine_result
from harness.results.document import Cell, Colo, DescribedState, DeviceCoverage, MachineResult, MatrixDoc
from harness.results.key import CellKey
from harness.results.verdict import Verdict

ODD = "device-3"


def cells_of(devices: int, phases: tuple[str, ...] = ("kernel", "bound")) -> list[Cell]:
    return [
        made_cell(
            f"pc-q35-7.2/{name}/{phase}/same",
            Verdict.CRASH if name == ODD and phase == "bound" else Verdict.OK,
            loads_asked=10,
            loads_acked=10,
            sections=(name,),
        )
        for name in ("platform", *(f"device-{number}" for number in range(1, devices)))
        for phase in phases
    ]


def doc_of(cells: list[Cell]) -> MatrixDoc:
    machine = MachineResult(machine="pc-q35-7.2", alias="q35", qemu=QEMU, resets_before_load=False)
    return MatrixDoc(
        command=("postload", "matrix"), started="2026-01-05T09:30:12Z", seconds=1, complete=True, host={},
        machines=(machine_result(machine, cells),), cells=tuple(cells),
    )  # fmt: skip


@pytest.fixture
def many() -> MatrixDoc:
    return doc_of(cells_of(2 * FEW))


def test_few_devices_are_told_phase_by_phase() -> None:
    assert not overview(doc_of(cells_of(FEW))).is_long
    assert overview(doc_of(cells_of(FEW + 1))).is_long


def test_the_worst_stands_first_with_what_to_look_at(many: MatrixDoc) -> None:
    seen = overview(many)
    (odd,) = seen.odd
    assert (odd, odd.device, odd.cell) == (seen.rows[0], ODD, "7.2.22/pc-q35-7.2/device-3/bound/same")
    answer = odd.answers[0]
    assert answer is not None
    assert (answer.verdict, answer.colo) == (Verdict.CRASH, Colo.UNSAFE)
    assert len(seen.rows) == 2 * FEW
    (fine,) = seen.fine
    assert fine.startswith("q35: platform, device-1, device-2, device-4,")


def test_a_device_is_answered_by_its_own_cells(many: MatrixDoc) -> None:
    (unsafe, safe) = colo_rows(blocks(many))
    assert (unsafe.colo, unsafe.devices) == (Colo.UNSAFE, (ODD,))
    assert (safe.colo, len(safe.devices)) == (Colo.SAFE, 2 * FEW - 1)
    stopped = machine_result(many.machines[0], many.cells, complete=False)
    assert {each.colo for each in stopped.devices} == {Colo.UNSAFE, Colo.UNDECIDED}


def test_how_much_of_its_state_was_loaded_stands_beside_a_device(many: MatrixDoc) -> None:
    states = (DescribedState(name="a", loaded=("bound",)), DescribedState(name="a/b", part_of="a"))
    row = replace(CellKey.parse("7.2.22/pc-q35-7.2/x/bound/same"), device=ODD).row
    seen = overview(replace(many, coverage=(DeviceCoverage(row=row, machine="pc-q35-7.2", device=ODD, states=states),)))
    assert [row.state for row in seen.rows[:2]] == ["1 of 2", ""]


def test_the_grid_has_every_verdict(many: MatrixDoc) -> None:
    grid = json.loads(json.dumps(grid_of(many)))
    assert grid["columns"] == [["same", "kernel"], ["same", "bound"]]
    ((qemu, loads, letters),) = grid["rows"][f"q35/{ODD}"]
    assert (qemu, loads) == ("7.2.22", 20)
    assert [grid["verdicts"][ord(letter) - ord("a")] for letter in letters] == ["ok", "crash"]


def test_the_page_is_small_however_many_cells_there_are() -> None:
    phases = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
    page = render_html(doc_of(cells_of(400, phases)))
    assert len(page) < 400_000
    assert page.count("<tr data-ok=") == 400
    data = re.search(r'id="grid">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert len(json.loads(data[1])["rows"]) == 400


def test_terminal_and_markdown_name_what_is_not_ok(many: MatrixDoc) -> None:
    out = io.StringIO()
    print_matrix(many, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert lines[1].split() == ["q35", ODD, "crash", "unsafe"]
    assert lines[2].strip() == "postload explain 7.2.22/pc-q35-7.2/device-3/bound/same"
    assert any(line.startswith("ok: q35: platform,") for line in lines)
    assert "48 devices passed" not in out.getvalue()
    text = render_markdown(many)
    assert "| q35 | device-3 | crash, COLO: unsafe |" in text
    assert "device-40 |" not in text
