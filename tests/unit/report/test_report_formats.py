# SPDX-License-Identifier: GPL-2.0-or-later
"""HTML, JUnit and markdown: what stands in them, and what must never come out of them."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_cells import changed, ended, symptom
from rich.console import Console

from harness.colo.messages import Step
from harness.report.html import render_html
from harness.report.junit import render_junit
from harness.report.markdown import render_markdown
from harness.report.studies import write_claims
from harness.report.terminal import print_matrix
from harness.report.text import duration, number
from harness.report.view import anchors, blocks, finding_groups, loads_text, rate_text, totals_text
from harness.report.writer import write_reports
from harness.results.cause import Broke
from harness.results.document import Cell, MatrixDoc, Qemu, Warned
from harness.results.verdict import Verdict
from harness.studies.findings import IntervalCase, IntervalFigures, IntervalFinding
from harness.studies.model import ClaimsDoc, MachineFinding, StudyAnswer
from harness.text import printable

LPC = "0000:00:1f.0/ICH9LPC"
NOT_SAFE = f"not safe for COLO, because {LPC}: crash (see the findings)."
HOSTILE = "\x1b[31m\x00<script>alert(1)</script> ]]> \u202e `|` \udc80"


class Page(HTMLParser):
    """Collects tags, ids, links and text, and the visible words of table entries."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name))]


def test_printable_escapes_what_xml_and_terminals_cannot_have() -> None:
    assert printable("a\x1b[0m\r\nb\tc\x00\ud800\u202e\r") == "a\\x1b[0m\nb\tc\\x00\\ud800\\u202e\\x0d"
    assert printable("Grüße, 日本語 🙂") == "Grüße, 日本語 🙂"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3.25, "3.2"), (812.5, "812"), (12345, "12,345")])
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (81.4, "1 min 21 s"), (7385, "2 h 03 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_html_loads_nothing_and_links_inside_itself(doc: MatrixDoc) -> None:
    page = Page(render_html(doc))
    assert not page.values("src")
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object")]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = page.values("href")
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_html_answers_first(doc: MatrixDoc) -> None:
    text = Page(render_html(doc)).text
    assert NOT_SAFE in text
    assert text.index(NOT_SAFE) < text.index("loads/s") < text.index("Findings") < text.index("How it was run")


def test_html_has_an_entry_for_each_cell_with_its_word(doc: MatrixDoc) -> None:
    html = render_html(doc)
    entries = re.findall(r'<a class="e v-([a-z-]+)"[^>]*><b>([a-z-]+)</b> <small>([^<]*)</small></a>', html)
    assert len(entries) == len(doc.cells) == 126
    assert all(colour == word for colour, word, _ in entries)
    assert entries.count(("crash", "crash", "0/100")) == 12
    assert html.count('<details class="cell"') == len(doc.cells)


def test_html_shows_the_row_without_the_culprit(doc: MatrixDoc) -> None:
    assert f"platform<small>without {LPC}</small>" in render_html(doc)


def test_html_groups_a_finding_once(doc: MatrixDoc) -> None:
    html = render_html(doc)
    assert html.count('<article class="finding"') == 1
    assert f"isolated: loading section {LPC} alone, once, as the first load behind the incoming stream" in html


def test_html_of_a_partial_run_says_so(doc: MatrixDoc) -> None:
    assert "Partial:" not in render_html(doc)
    assert "Partial:" in render_html(replace(doc, complete=False))


def test_html_shows_pairs_only_when_there_are_some(doc: MatrixDoc, newer_qemu: Qemu) -> None:
    assert "recorded →" not in render_html(doc)
    cells = tuple(changed(cell, load_qemu=newer_qemu) for cell in doc.cells)
    machines = tuple(replace(result, qemu=newer_qemu) for result in doc.machines)
    html = render_html(replace(doc, cells=cells, machines=machines))
    assert "recorded → loaded" in html
    assert "7.2.22 → 10.0.13" in html


def hostile_cell(one_cell: Callable[..., Cell], verdict: Verdict = Verdict.CRASH) -> Cell:
    causes = (ended(f"died: {HOSTILE}"),)
    warned = (Warned(text=HOSTILE, load=0),)
    return one_cell(verdict=verdict, causes=causes, blamed=(HOSTILE,), log=f"log {HOSTILE}\n```\n", warnings=warned)


@pytest.mark.parametrize("render", [render_html, render_junit, render_markdown])
def test_hostile_text_is_defused(
    render: Callable[[MatrixDoc], str], one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]
) -> None:
    text = render(with_cells(hostile_cell(one_cell)))
    text.encode()
    assert "\\x1b[31m" in text.replace("\\[", "[").replace("\\\\", "\\")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


def test_html_escapes_markup(one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]) -> None:
    assert "<script>alert" not in render_html(with_cells(hostile_cell(one_cell)))


def test_empty_documents_render(doc: MatrixDoc) -> None:
    for empty in (replace(doc, cells=()), replace(doc, cells=(), machines=())):
        assert "<h1>" in render_html(empty)
        assert ET.fromstring(render_junit(empty)).tag == "testsuites"
        assert render_markdown(empty).startswith("# postload matrix")


def test_junit_counts(doc: MatrixDoc) -> None:
    suites = ET.fromstring(render_junit(doc)).findall("testsuite")
    counts = [(s.get("name"), s.get("tests"), s.get("failures"), s.get("errors")) for s in suites]
    assert counts == [
        ("pc-i440fx-7.2 on QEMU 7.2.22", "56", "0", "0"),
        ("pc-q35-7.2 on QEMU 7.2.22", "70", "14", "0"),
    ]
    cases = [(case.get("classname"), case.get("name")) for suite in suites for case in suite.iter("testcase")]
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize(
    ("verdict", "tag"),
    [
        (Verdict.OK, None),
        (Verdict.CRASH, "failure"),
        (Verdict.FLAKY, "failure"),
        (Verdict.HOST, "error"),
        (Verdict.HARNESS_ERROR, "error"),
        (Verdict.UNSUPPORTED, "skipped"),
    ],
)
def test_junit_result(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc], verdict: Verdict, tag: str | None
) -> None:
    xml = ET.fromstring(render_junit(with_cells(one_cell(verdict=verdict, guest_mode="running"))))
    case = xml.find(".//testcase")
    assert case is not None
    assert (case.get("classname"), case.get("name")) == ("pc-q35-7.2.ahci", "same/bound")
    found = [child.tag for child in case if child.tag != "system-out"]
    assert found == ([tag] if tag else [])


def test_junit_failure_holds_text_and_log(doc: MatrixDoc) -> None:
    failure = ET.fromstring(render_junit(doc)).find(".//failure")
    assert failure is not None
    assert failure.get("type") == "crash"
    assert (failure.get("message") or "").startswith(f"{LPC}: load 1: SIGABRT: ")
    assert "memory.c:2545" in (failure.text or "")


def test_markdown(doc: MatrixDoc) -> None:
    text = render_markdown(doc)
    assert "safe for COLO as far as tested" in text
    assert "| ahci | same | ok | ok | ok | ok | ok | ok | 600 | 612 |" in text
    assert "| platform | same |" + " **crash** |" * 6 + " 0/600 | 0 |" in text
    assert f"| platform without `{LPC}` | same |" + " ok |" * 6 in text
    assert "14 cells: pc-q35-7.2 platform: same (all phases), alternate, walk, back-to-back (all phases)" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [len({line.count("|") for line in table.splitlines()}) for table in tables] == [1, 1]


@pytest.fixture
def catalogue(one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]) -> MatrixDoc:
    """201 devices, of which every third crashes in a way of its own."""
    cells = []
    for which in range(201):
        cell = one_cell(device=f"device-{which}")
        broken = {"causes": (ended(f"{which} died"),), "blamed": (f"section-{which}",)}
        cells.append(cell if which % 3 else changed(cell, verdict=Verdict.CRASH, **broken))
    return with_cells(*cells)


@pytest.mark.parametrize("words", ["of the terminal", "of the markdown"])
def test_of_very_many_devices_the_text_tells_those_that_are_not_ok(catalogue: MatrixDoc, words: str) -> None:
    text = render_markdown(catalogue) if words == "of the markdown" else in_terminal(catalogue)
    table = text[: text.index("134 more rows with 134 cells are ok")]
    for which in range(201):
        assert (re.search(rf"\bdevice-{which}\b", table) is not None) is (which % 3 == 0)
    # 67 findings
    assert "section-147" in text
    assert "section-150" not in text
    assert "nd 17 more findings, in matrix.html" in text


def test_the_page_and_junit_have_all_of_very_many_devices(catalogue: MatrixDoc) -> None:
    page, suite = render_html(catalogue), render_junit(catalogue)
    for which in range(201):
        assert page.count(f'data-device="device-{which}"') == 2
        assert suite.count(f'classname="pc-q35-7.2.device-{which}"') == 1
    assert page.count('<article class="finding"') == 67


def in_terminal(doc: MatrixDoc) -> str:
    file = io.StringIO()
    print_matrix(doc, Console(file=file, width=100))
    return file.getvalue()


def test_all_of_a_few_devices_is_told(one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]) -> None:
    doc = with_cells(*(one_cell(device=f"device-{which}") for which in range(40)))
    for text in (render_markdown(doc), in_terminal(doc)):
        assert "more rows" not in text
        assert all(f"device-{which} " in text for which in range(40))


def test_findings_are_grouped_but_not_across_causes(one_cell: Callable[..., Cell]) -> None:
    def cell(phase: str, load: int, said: str = "no answer", **more: Any) -> Cell:
        late = Broke(step=Step.LOAD, load=load, phase=phase, how="late", symptom=symptom(said))
        return one_cell(phases=(phase,), verdict=Verdict.HANG, causes=(late,), **more)

    groups = finding_groups(
        [
            cell("kernel", 3),
            cell("bound", 71),
            cell("busy", 3, blamed=("ahci",)),
            cell("unbound", 3, "something else"),
            one_cell(),
            one_cell(lane="walk", verdict=Verdict.CRASH, causes=(ended("assertion"),)),
        ]
    )
    found = [[(cell.lane, *cell.phases) for cell in group.cells] for group in groups]
    assert found == [
        [("walk", "bound")], [("same", "kernel"), ("same", "bound")], [("same", "busy")], [("same", "unbound")],
    ]  # fmt: skip


def test_cells_of_one_signature_are_one_finding(one_cell: Callable[..., Cell]) -> None:
    cells = [
        one_cell(lane=lane, verdict=Verdict.CRASH, causes=(ended(lane),), signature="s") for lane in ("same", "walk")
    ]
    assert [len(group.cells) for group in finding_groups(cells)] == [2]


def test_anchors_never_collide(one_cell: Callable[..., Cell]) -> None:
    cells = [one_cell(device="a"), one_cell(device="a", rest=1), one_cell(device="a b"), one_cell(device="a-b")]
    assert len(set(anchors(cells).values())) == 4


def test_guest_modes_share_a_row_unless_they_meet(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]
) -> None:
    other = one_cell(guest_mode="running", lane="back-to-back")
    assert len(blocks(with_cells(one_cell(), other))[0].rows) == 1
    meeting = one_cell(guest_mode="running")
    rows = blocks(with_cells(one_cell(), meeting))[0].rows
    assert sorted(row.variant for row in rows) == ["colo, parked, tcg", "colo, running, tcg"]


def test_cells_of_an_unknown_machine_are_not_lost(doc: MatrixDoc) -> None:
    found = blocks(replace(doc, machines=()))
    assert [len(block.cells) for block in found] == [56, 70]
    assert found[0].answer == "pc-i440fx-7.2 on QEMU 7.2.22: not decided."


def test_the_answers_of_the_claims_in_the_same_folder_are_in_the_page(doc: MatrixDoc, tmp_path: Path) -> None:
    figures = IntervalFigures(asked=9, survived=8)
    case = IntervalCase(
        interval_ms=5.0, asked=9, survived=8, seconds=1.0, mean_ms=4.0, p95_ms=4.0, load_mean_ms=2.0,
        stopped_share=0.4, loading_share=0.2,
    )  # fmt: skip
    found = MachineFinding(machine="pc & co", found=IntervalFinding(figures=figures, cases=(case,)))
    claims = ClaimsDoc(
        qemu=doc.machines[0].qemu, created="", command=(), seconds=1.0, complete=True,
        questions=(StudyAnswer(number=4, machines=(found,)),),
    )  # fmt: skip
    write_claims(claims, tmp_path)
    write_reports(doc, tmp_path)
    assert "pc &amp; co: 8 of 9 checkpoints survived" in (tmp_path / "matrix.html").read_text()
    for damaged in ("{", '{"schema": "postload.claims/1"}'):
        (tmp_path / "claims.json").write_text(damaged)
        write_reports(doc, tmp_path)
        assert "checkpoints survived" not in (tmp_path / "matrix.html").read_text()


# --- Sessions that several devices share --------------------------------------------------------------------


def test_a_shared_session_has_its_rate_in_each_row_and_counts_once_over_several(
    with_cells: Callable[..., MatrixDoc], one_cell: Callable[..., Cell]
) -> None:
    told = one_cell(device="platform", loads_acked=100, loads_asked=100, loads_per_second=200.0)
    shared = one_cell(device="ahci", loads_acked=100, loads_asked=100, loads_per_second=200.0, shared_with=told.id)
    alone = one_cell(device="virtio-blk", loads_acked=50, loads_asked=50, loads_per_second=100.0)
    # a row of the table: the loads are this device's as well, and so is the speed
    assert (loads_text([shared]), rate_text([shared])) == ("100", "200")
    # 100 loads in half a second and 50 in half a second
    assert (loads_text([told, shared, alone]), rate_text([told, shared, alone])) == ("150", "150")
    page = render_html(with_cells(told, shared, alone))
    assert "150 acknowledged of 150 asked" in page
    assert "150 loads acknowledged" in page
    assert "250 " not in page


def test_a_speed_that_was_not_measured_and_checkpoints_that_were_not_are_not_told(
    one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]
) -> None:
    cell = changed(
        one_cell(lane="leak", loads_per_second=0.0), loads_asked=2240, loads_acked=2240, checkpoints_acked=56
    )
    text = Page(render_html(with_cells(cell))).text
    assert "2,240 acknowledged of 2,240 asked, in 56 checkpoints" in text
    migrated = changed(cell, checkpoints_acked=0)
    assert "2,240 acknowledged of 2,240 asked; " in Page(render_html(with_cells(migrated))).text
    for reported in (text, render_markdown(with_cells(cell)), totals_text([cell])):
        assert "0 a second" not in reported
        assert "loads/s while" not in reported
    assert totals_text([cell]) == "2,240 loads acknowledged"
    assert totals_text([replace(cell, loads_per_second=80.0)]) == "2,240 loads acknowledged, 80 loads/s while loading"
