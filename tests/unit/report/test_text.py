# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts as people read them, and the answers and pages that are made of them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from made_cells import QEMU, made_cell
from rich.console import Console

from harness.report.html import render_html
from harness.report.terminal import print_matrix
from harness.report.text import plural, were
from harness.report.view import blocks, finding_groups
from harness.results.document import Cell, Colo, MachineResult, MatrixDoc
from harness.results.verdict import Verdict


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "load", "0 loads"),
        (1, "cell", "1 cell"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (310840, "load", "310,840 loads"),
    ],
)
def test_a_count_agrees_with_its_noun(count: int, noun: str, said: str) -> None:
    assert plural(count, noun) == said


def test_a_count_agrees_with_its_verb() -> None:
    assert [were(1, "cell"), were(2, "cell")] == ["1 cell was", "2 cells were"]


def safe(*cells: Cell) -> MatrixDoc:
    """A document of cells of one machine, which is safe."""
    result = MachineResult(machine="pc-q35-7.2", qemu=QEMU, colo=Colo.SAFE)
    return MatrixDoc(
        machines=(result,),
        cells=cells,
        command=("postload", "matrix"),
        started="2026-01-02T03:04:05Z",
        seconds=1.0,
        complete=True,
        host={},
    )


def test_loads_that_look_for_leaks_are_told_apart() -> None:
    """They are many times those at a checkpoint, and would pass for them."""
    loads = made_cell("pc-q35-7.2/ahci/bound/same", loads_asked=600, loads_acked=600)
    leaks = made_cell("pc-q35-7.2/ahci/bound/leak", loads_asked=29000, loads_acked=29000)
    assert blocks(safe(loads, leaks))[0].answer.endswith(
        "because all 600 loads of ahci passed, and 29,000 more that looked for leaks."
    )
    assert blocks(safe(loads))[0].answer.endswith("because all 600 loads of ahci passed.")
    assert blocks(safe(leaks))[0].answer.endswith("because all 29,000 loads of ahci passed.")


def test_no_page_counts_what_a_cell_has_not() -> None:
    leaks = made_cell("pc-q35-7.2/ahci/bound/leak", loads_asked=29000, loads_acked=29000)
    page = render_html(safe(leaks))
    assert "29,000 acknowledged of 29,000 asked; 0.0 s in all" in page
    assert "0 a second" not in page


def test_a_finding_comes_with_the_line_to_type_next() -> None:
    bad = made_cell("pc-q35-7.2/ahci/bound/same", Verdict.CRASH)
    assert f'<dd class="mono">postload explain {bad.id}</dd>' in render_html(safe(bad))
    for run, more in (("", ""), ("my run", " --run 'my run'")):
        file = io.StringIO()
        print_matrix(safe(bad), Console(file=file, width=100), run)
        assert f"\n  next: postload explain {bad.id}{more}\n" in file.getvalue()


def test_unusual_cpus_stand_in_headings_and_answers() -> None:
    two = made_cell("pc-q35-7.2+cpus=2/ahci/bound/same", Verdict.CRASH)
    (block,) = blocks(safe(two))
    assert block.title == "pc-q35-7.2+cpus=2 on QEMU 7.2.22"
    assert block.answer.startswith("pc-q35-7.2+cpus=2 on QEMU 7.2.22: ")
    assert finding_groups([two])[0].blocks == (block.title,)
    assert blocks(safe(made_cell("pc-q35-7.2/ahci/bound/same")))[0].title == "pc-q35-7.2 on QEMU 7.2.22"


def test_a_cell_on_the_page_is_filtered_with_its_machine() -> None:
    """The filter compares titles: of a cell of another recorder it has to be that of its block."""
    moved = made_cell("pc-q35-7.2/ahci/bound/same", record_qemu=replace(QEMU, version="5.2.0", sha256="ff" * 32))
    page = render_html(safe(moved))
    assert page.count('data-machine="pc-q35-7.2 on QEMU 5.2.0 -&gt; 7.2.22"') == 3
