# SPDX-License-Identifier: GPL-2.0-or-later
"""What test systems and people in a hurry read: TAP, JUnit's names, and the summary."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_cells import changed

from harness.report.junit import render_junit
from harness.report.summary import headline, render_summary
from harness.report.tap import render_tap
from harness.results.document import Cell, MatrixDoc
from harness.results.key import Route
from harness.results.verdict import Verdict

LINK = "https://example.org/1"


def with_known(doc: MatrixDoc) -> MatrixDoc:
    return replace(doc, cells=tuple(replace(c, known=LINK) if c.verdict.is_finding else c for c in doc.cells))


def parsed(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Each line of a test, with the YAML below it."""
    found = re.findall(r"^((?:not )?ok .*)\n  ---\n((?:  .*\n)*?)  \.\.\.\n", text, re.MULTILINE)
    return [(line, yaml.safe_load(below)) for line, below in found]


def test_tap_has_a_test_for_each_cell(doc: MatrixDoc) -> None:
    text = render_tap(doc)
    tests = parsed(text)
    assert text.splitlines()[:2] == ["TAP version 13", f"1..{len(doc.cells)}"]
    assert [line.split(" - ")[1] for line, _ in tests] == [cell.id for cell in doc.cells]
    assert [line.startswith("ok") for line, _ in tests] == [cell.verdict is Verdict.OK for cell in doc.cells]
    crash = next(below for line, below in tests if line.startswith("not ok"))
    assert crash["verdict"] == "crash"
    assert crash["signature"].startswith("crash:memory_region_add_subregion_common:")
    assert "memory.c:2545" in crash["seen"]


@pytest.mark.parametrize(
    ("verdict", "known", "line"),
    [
        (Verdict.OK, "", r"ok 1 - [^#]*$"),
        (Verdict.CRASH, "", r"not ok 1 - [^#]*$"),
        (Verdict.CRASH, LINK, r"not ok 1 - .* # TODO known, https://example.org/1: "),
        (Verdict.HOST, "", r"not ok 1 - [^#]*$"),
        (Verdict.UNSUPPORTED, "", r"ok 1 - .* # SKIP .+$"),
    ],
)
def test_tap_lines(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc], verdict: Verdict, known: str, line: str
) -> None:
    cell = replace(one_cell(verdict=verdict), known=known)
    assert re.match(line, parsed(render_tap(with_cells(cell)))[0][0])


def test_tap_bails_out_of_a_run_that_has_not_ended(doc: MatrixDoc) -> None:
    assert "Bail out!" not in render_tap(doc)
    assert render_tap(replace(doc, complete=False)).endswith("Bail out! the run has not come to its end\n")


def test_tap_keeps_a_hash_from_being_a_directive(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]
) -> None:
    cell = one_cell()
    odd = replace(cell, key=replace(cell.key, device="a # SKIP\n1..0"))
    assert r"/a \# SKIP 1..0/" in parsed(render_tap(with_cells(odd)))[0][0]


@pytest.mark.skipif(shutil.which("prove") is None, reason="no prove here")
@pytest.mark.parametrize(("known", "code"), [(True, 0), (False, 1)])
def test_prove_reads_it(doc: MatrixDoc, tmp_path: Path, known: bool, code: int) -> None:
    file = tmp_path / "matrix.tap"
    file.write_text(render_tap(with_known(doc) if known else doc))
    done = subprocess.run(["prove", "-e", "cat", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout
    assert f"Tests={len(doc.cells)}" in done.stdout
    assert "Parse errors" not in done.stdout


def test_junit_names_differ_between_qemus_of_one_machine(doc: MatrixDoc) -> None:
    other = Route(recorder="7.2.22", loader="10.0.13")
    both = replace(doc, cells=(*doc.cells, *(replace(c, key=replace(c.key, route=other)) for c in doc.cells)))
    cases = ET.fromstring(render_junit(both)).iter("testcase")
    packages = {str(case.get("classname")).rpartition(".")[0] for case in cases}
    assert packages >= {"7.2.22 pc-q35-7.2"}
    assert "pc-q35-7.2" not in packages
    alone = ET.fromstring(render_junit(doc)).iter("testcase")
    assert {str(case.get("classname")).rpartition(".")[0] for case in alone} == {"pc-i440fx-7.2", "pc-q35-7.2"}


def test_junit_suites_have_the_facts_of_their_machine(doc: MatrixDoc) -> None:
    for suite in ET.fromstring(render_junit(doc)).iter("testsuite"):
        facts = {each.get("name"): each.get("value") for each in suite.iter("property")}
        assert facts["complete"] == "true"
        assert facts["command"] == " ".join(doc.command)
        assert facts.keys() >= {"qemu.build", "qemu.sha256", "colo", "answer"}


def test_junit_skips_what_is_known_and_says_where_it_is_described(doc: MatrixDoc) -> None:
    suites = ET.fromstring(render_junit(with_known(doc)))
    assert {suite.get("failures") for suite in suites.iter("testsuite")} == {"0"}
    messages = [skipped.get("message") or "" for skipped in suites.iter("skipped")]
    assert len(messages) == 14
    assert all(message.startswith(f"known, {LINK}: ") for message in messages)


def test_the_summary_names_what_counts_first(doc: MatrixDoc) -> None:
    text = render_summary(doc)
    assert text.startswith("# postload: 14 crash; 126 cells\n")
    assert text.index("## Findings") < text.index("signature `crash:")
    assert "postload explain " in text
    assert "## Known" not in text
    assert len(text.splitlines()) < 30


def test_the_summary_of_known_findings_is_ok(doc: MatrixDoc) -> None:
    text = render_summary(with_known(doc))
    assert text.startswith("# postload: ok, 14 known; 126 cells\n")
    assert "## Findings" not in text
    assert LINK in text[text.index("## Known") :]


def test_the_headline_is_never_green_for_nothing(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]
) -> None:
    doc = with_cells(one_cell())
    assert headline(doc) == "postload: ok; 1 cell"
    assert headline(replace(doc, complete=False)) == "postload: not complete; 1 cell"
    assert headline(replace(doc, cells=())) == "postload: nothing was judged; 0 cells"
    assert headline(with_cells(one_cell(verdict=Verdict.UNSUPPORTED))) == "postload: nothing was judged; 1 cell"
    assert headline(with_cells(one_cell(verdict=Verdict.HOST))) == "postload: 1 cell not decided; 1 cell"


def test_very_many_findings_are_counted(one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]) -> None:
    cells = [changed(one_cell(verdict=Verdict.CRASH), blamed=(f"device{number}",)) for number in range(25)]
    assert "- and 5 more, in matrix.md" in render_summary(with_cells(*cells))
