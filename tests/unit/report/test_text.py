# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts as people read them, and the answers and pages that are made of them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import QEMU, made_cell
from rich.console import Console

import harness
from harness.report.html import render_html
from harness.report.markdown import render_markdown
from harness.report.reasons import bytes_text
from harness.report.sentences import control_text, what_text
from harness.report.terminal import print_matrix
from harness.report.text import duration, plural, were, wrapped
from harness.report.view import blocks, by_version, finding_groups
from harness.results.cause import Undecided, Why
from harness.results.document import Cell, Colo, MachineResult, MatrixDoc
from harness.results.key import Route
from harness.results.outcome import ControlName, ControlResult
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


def test_every_count_of_a_text_is_made_by_one_function() -> None:
    """A text that ends its nouns itself groups no digits: "1400 loads" beside "1,400 loads"."""
    own = re.compile(r"""(''|"") if .{0,40}== ?1 else ['"]e?s['"]|['"]e?s['"] if .{0,40}!= ?1 else (''|"")""")
    files = [path for name in ("report", "commands") for path in Path(harness.__path__[0], name).rglob("*.py")]
    assert [path.name for path in files if path.name != "text.py" and own.search(path.read_text())] == []


def test_counts_are_grouped_alike_in_every_sentence() -> None:
    control = ControlResult(name=ControlName.LOADVM, verdict=Verdict.OK, decided=True, passed=1400, asked=1400)
    few = Undecided(why=Why.LOADS, acked=1399, asked=1400)
    assert control_text(control) == "loadvm: ok, 1,400 loads"
    assert what_text(few) == "1,399 of 1,400 loads acknowledged"
    assert [bytes_text(1), bytes_text(46000)] == ["1 byte", "46,000 bytes"]


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


def on_two_qemus() -> MatrixDoc:
    """Two devices on one QEMU, one of them on another too."""
    new = replace(QEMU, version="10.0.13", sha256="ff" * 32)
    cells = [
        made_cell("pc-q35-7.2/platform/bound/same", Verdict.CRASH),
        made_cell("pc-q35-7.2/platform/bound/same+rest"),
        made_cell("pc-q35-7.2/ahci/bound/same"),
        made_cell("pc-q35-10.0/platform/bound/same", record_qemu=new, load_qemu=new),
    ]
    route = Route(recorder="10.0.13", loader="10.0.13")
    return safe(*cells[:3], replace(cells[3], key=replace(cells[3].key, route=route)))


def test_of_several_qemus_the_devices_stand_by_version() -> None:
    doc = on_two_qemus()
    table = by_version(doc)
    assert table is not None
    assert table.qemus == ("7.2.22", "10.0.13")
    assert table.rows == (
        ("q35", "platform", (Verdict.CRASH, Verdict.OK)),
        ("q35", "ahci", (Verdict.OK, None)),
    )
    file = io.StringIO()
    print_matrix(doc, Console(file=file, width=100))
    assert (
        "\n machine  device    7.2.22  10.0.13\n q35      platform  crash   ok\n q35      ahci      ok\n"
        in file.getvalue()
    )
    assert "| machine | device | 7.2.22 | 10.0.13 |" in render_markdown(doc)
    assert "| q35 | ahci | ok |  |" in render_markdown(doc)
    assert '<tr><td>q35</td><td>ahci</td><td><span class="v v-ok">ok</span></td><td></td></tr>' in render_html(doc)


def test_two_architectures_are_no_versions_to_compare() -> None:
    """Each has a QEMU of its own, which cells tell apart."""
    arm = replace(QEMU, sha256="ff" * 32)
    virt = made_cell("virt-7.2/platform/bound/same", record_qemu=arm, load_qemu=arm)
    route = Route(recorder="7.2.22~2", loader="7.2.22~2")
    cells = made_cell("pc-q35-7.2/platform/bound/same"), replace(virt, key=replace(virt.key, route=route))
    assert by_version(safe(*cells)) is None


def test_of_one_qemu_there_is_no_such_table() -> None:
    assert by_version(safe(made_cell("pc-q35-7.2/ahci/bound/same"))) is None
    assert 'class="versions"' not in render_html(safe(made_cell("pc-q35-7.2/ahci/bound/same")))


@pytest.mark.parametrize("seconds", [4.2, 65, 7380])
@pytest.mark.parametrize("width", range(40, 60))
def test_a_number_stays_on_the_line_of_its_unit(seconds: float, width: int) -> None:
    said = duration(seconds)
    text = f"to QEMU 11.1: go; 3 VMs tried, 12 loads acknowledged, {said}"
    lines = wrapped(text, width, "", "")
    assert " ".join(lines) == text
    assert any(said in line for line in lines)
