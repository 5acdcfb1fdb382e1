# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix in the terminal: a table for each machine, the findings, and last the answers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from harness.report.console import print_wrapped
from harness.report.coverage import coverage_text
from harness.report.lost import lost_text
from harness.report.onhosts import hosts_lines
from harness.report.overview import Overview, overview
from harness.report.progress import VERDICT_STYLE, LiveProgress
from harness.report.reset import HEAD, ResetTable, reset_tables
from harness.report.sentences import disturbed_text
from harness.report.text import columns, duration, plural
from harness.report.view import (
    MANY_FINDINGS,
    Block,
    Column,
    FindingGroup,
    Row,
    blocks,
    by_version,
    cells_text,
    explain_cell,
    explain_line,
    finding_groups,
    loads_text,
    phases_of,
    rate_text,
    totals_text,
)
from harness.results.document import Colo, MatrixDoc
from harness.results.verdict import Verdict
from harness.text import one_line, printable

__all__ = ["LiveProgress", "print_matrix"]

SHORT = {Verdict.GUEST_FAULT: "gfault", Verdict.UNSUPPORTED: "unsupp", Verdict.HARNESS_ERROR: "h-error"}
MAX_LOG_LINES = 8
_MARGIN = 1
_COLO_STYLE = {
    Colo.SAFE: "bold green",
    Colo.REMARKS: "bold yellow",
    Colo.UNSAFE: "bold red",
    Colo.REFUSED: "bold red",
    Colo.UNDECIDED: "bold yellow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How much room a table may take; each next one is tighter."""

    gap: int
    with_rate: bool
    short: bool

    def word(self, verdict: Verdict) -> str:
        return SHORT.get(verdict, verdict.value) if self.short else verdict.value


_STYLES = (
    _Style(gap=2, with_rate=True, short=False),
    _Style(gap=1, with_rate=True, short=False),
    _Style(gap=1, with_rate=True, short=True),
    _Style(gap=1, with_rate=False, short=True),
)


def print_matrix(doc: MatrixDoc, console: Console, run: str = "") -> None:
    """Print the document. Fits 100 columns, and 80 by leaving out the rate; plain when piped.

    :param run: folder of the run, for the lines to type next, where it is not the usual one
    """
    found = blocks(doc)
    seen = overview(doc)
    if seen.is_long:
        _print_overview(seen, console, run)
    else:
        for block in found:
            _print_block(block, console)
    groups, phases = finding_groups(doc.cells), phases_of(doc.cells)
    for group in groups[:MANY_FINDINGS]:
        _print_finding(group, phases, console)
        _line(console, Text(f"  next: {explain_line(group, run)}", style="dim"))
        _line(console)
    if len(groups) > MANY_FINDINGS:
        _line(console, f"and {plural(len(groups) - MANY_FINDINGS, 'more finding')}, in matrix.html")
        _line(console)
    if not seen.is_long:
        _print_versions(doc, console)
    for table in reset_tables(doc):
        _print_resets(table, console)
    for guest in doc.lost:
        print_wrapped(console, f"lost  {lost_text(guest)}", hang=2)
        _line(console)
    for number, line in enumerate(hosts_lines(doc)):
        print_wrapped(console, line, indent=2 if number else 0, hang=2)
    _print_totals(doc, console)
    for block in found:
        _print_answer(block, console)


def _line(console: Console, text: Text | str = "") -> None:
    """One line, as it is: logs hold what looks like rich's markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_block(block: Block, console: Console) -> None:
    head = Text(block.title, style="bold")
    note = ", ".join(part for part in (block.result.alias, block.result.qemu.build) if part)
    _line(console, head.append(f"  {printable(note)}", style="not bold dim"))
    if not block.rows:
        _line(console, "  no cells")
    else:
        tables = (_Table(block, style) for style in _STYLES)
        fitting = (table for table in tables if table.width <= console.width)
        for line in next(fitting, None) or _Table(block, _STYLES[-1]):
            _line(console, line)
        if block.left_out:
            _line(console, Text(" " * _MARGIN + block.left_out, style="dim"))
    _line(console)


class _Table:
    """A block as lines of one width. Own code since rich's tables cannot let a cell span columns."""

    def __init__(self, block: Block, style: _Style) -> None:
        self._block = block
        self._style = style
        self._phases = block.phases
        self._devices = max([len("device"), *(len(row.device) for row in block.rows)])
        self._schedules = max([len("schedule"), *map(len, block.schedules)])
        self._widths = [self._phase_width(phase) for phase in self._phases]
        self._spans = self._span_width()
        cells = [row.of_schedule(schedule) for row in block.rows for schedule in block.schedules]
        self._loads = max([len("loads"), *(len(loads_text(found)) for found in cells)])
        self._rate = max([len("loads/s"), *(len(rate_text(found)) for found in cells)])

    @property
    def width(self) -> int:
        left = _MARGIN + self._devices + self._schedules + self._style.gap
        right = self._loads + self._style.gap + (self._rate + self._style.gap if self._style.with_rate else 0)
        return left + self._style.gap + self._spans + right

    def _phase_width(self, phase: str) -> int:
        columns = [Column(schedule=schedule, phase=phase) for schedule in self._block.schedules]
        entries = (row.entries.get(column) for row in self._block.rows for column in columns)
        return max([len(phase), *(len(self._style.word(entry.verdict)) for entry in entries if entry)])

    def _span_width(self) -> int:
        spans = [len(_span_text(row, s, self._style)) for row in self._block.rows for s in self._block.schedules]
        return max(sum(self._widths) + self._style.gap * max(0, len(self._widths) - 1), *spans, len("phases"))

    def __iter__(self) -> Iterator[Text]:
        return iter(self._lines())

    def _lines(self) -> list[Text]:
        gap = " " * self._style.gap
        phases = gap.join(f"{phase:<{width}}" for phase, width in zip(self._phases, self._widths, strict=True))
        head = Text(style="dim")
        head.append(" " * _MARGIN + f"{'device':<{self._devices}}{gap}{'schedule':<{self._schedules}}{gap}")
        head.append(f"{phases:<{self._spans}}").append(self._numbers("loads", "loads/s"))
        lines = [head]
        for row in self._block.told_rows:
            lines += self._row(row)
        return lines

    def _numbers(self, loads: str, per_second: str) -> str:
        gap = " " * self._style.gap
        last = f"{gap}{per_second:>{self._rate}}" if self._style.with_rate else ""
        return f"{gap}{loads:>{self._loads}}{last}"

    def _row(self, row: Row) -> list[Text]:
        notes = [f"without {', '.join(row.without)}"] if row.without else []
        notes += [f"recorded -> loaded: {row.pair}"] if self._block.has_pairs else []
        notes += [row.variant] if row.variant else []
        label, lines = f"{row.device:<{self._devices}}", []
        if notes:
            note = Text(" " * _MARGIN + label + " ").append(printable("; ".join(notes)), style="dim italic")
            lines, label = [note], " " * self._devices
        for schedule in self._block.schedules:
            if row.of_schedule(schedule):
                lines.append(self._schedule(row, schedule, label))
                label = " " * self._devices
        return lines

    def _schedule(self, row: Row, schedule: str, label: str) -> Text:
        gap = " " * self._style.gap
        line = Text(" " * _MARGIN + label + gap).append(f"{schedule:<{self._schedules}}{gap}", style="dim")
        start = len(line)
        for phase, width in zip(self._phases, self._widths, strict=True):
            entry = row.entries.get(Column(schedule=schedule, phase=phase))
            word = self._style.word(entry.verdict) if entry else ""
            line.append(word, style=VERDICT_STYLE[entry.verdict] if entry else "").append(
                " " * (width - len(word)) + gap
            )
        spanning = row.entries.get(Column(schedule=schedule, phase=None))
        if spanning:
            line.right_crop(len(line) - start - _used(row, schedule, self._phases, self._widths, self._style))
            text = _span_text(row, schedule, self._style)
            word = self._style.word(spanning.verdict)
            line.append(word, style=VERDICT_STYLE[spanning.verdict]).append(text[len(word) :], style="dim")
        line.truncate(start + self._spans, pad=True)
        cells = row.of_schedule(schedule)
        return line.append(self._numbers(loads_text(cells), rate_text(cells)))


def _used(row: Row, schedule: str, phases: Sequence[str], widths: Sequence[int], style: _Style) -> int:
    """Columns taken by cells of one phase, when a cell over several phases stands in the same line."""
    used = [i for i, phase in enumerate(phases) if Column(schedule=schedule, phase=phase) in row.entries]
    return sum(widths[: used[-1] + 1]) + style.gap * (used[-1] + 1) if used else 0


def _span_text(row: Row, schedule: str, style: _Style) -> str:
    entry = row.entries.get(Column(schedule=schedule, phase=None))
    if entry is None:
        return ""
    phases = {phase for cell in entry.cells for phase in cell.phases}
    count = len(phases)
    return f"{style.word(entry.verdict)}  over {plural(count, 'phase')}"


def _print_finding(group: FindingGroup, phases: Set[str], console: Console) -> None:
    finding = group.finding
    head = Text().append(group.verdict.value, style=VERDICT_STYLE[group.verdict])
    head.append(f"  {one_line(group.title)}", style="bold")
    if group.classes:
        head.append(f"  {', '.join(group.classes)}")
    _line(console, head)
    print_wrapped(console, finding.text, indent=2)
    ends = f" ({finding.exit})" if finding.exit else ""
    print_wrapped(console, f"first seen: {group.first}{ends}", style="dim", indent=2, hang=2)
    if finding.isolated:
        print_wrapped(console, finding.isolated, style="dim", indent=2, hang=2)
    for signature in group.signatures:
        print_wrapped(console, f"signature: {signature}", style="dim", indent=2, hang=2)
    for link in group.known:
        print_wrapped(console, f"known: {link}", style="cyan", indent=2, hang=2)
    for controls in group.controls:
        print_wrapped(console, f"controls: {controls}", style="dim", indent=2, hang=2)
    for line in cells_text(group.cells, phases):
        print_wrapped(console, f"in {line}", style="dim", indent=2, hang=2)
    _print_log(finding.log, finding.text, console)


def _print_log(log: str, text: str, console: Console) -> None:
    """The end of the log; nothing when it says no more than the finding's own line."""
    lines = [line.rstrip() for line in printable(log).splitlines() if line.strip()]
    if not lines or (len(lines) == 1 and lines[0].strip() in one_line(text)):
        return
    if len(lines) > MAX_LOG_LINES:
        _line(console, Text(f"  | ... {len(lines) - MAX_LOG_LINES} lines before", style="dim"))
    width = max(console.width - 5, 20)
    for line in lines[-MAX_LOG_LINES:]:
        for part in textwrap.wrap(line, width, break_on_hyphens=False):
            _line(console, Text("  | ", style="dim").append(part, style="not dim"))


def _print_overview(seen: Overview, console: Console, run: str) -> None:
    """A line for each device that is not ok, the names of those that are, and who may be in a COLO guest."""
    lines = [("machine", "device", *seen.qemus, "state")]
    for row in seen.odd:
        words = (f"{answer.verdict} {answer.colo}" if answer else "" for answer in row.answers)
        lines.append((row.family, row.device, *words, row.state))
    for text, cell in zip(columns(lines), (None, *(row.cell for row in seen.odd)), strict=True):
        _line(console, " " + printable(text))
        if cell:
            _line(console, Text(f"   {explain_cell(cell, run)}", style="dim"))
    for text in seen.fine:
        print_wrapped(console, f"ok: {text}", style="green", hang=4)
    _line(console)


def _print_versions(doc: MatrixDoc, console: Console) -> None:
    """Device by QEMU, where there are several."""
    table = by_version(doc)
    if table is None:
        return
    lines = [("machine", "device", *table.qemus)]
    lines += [(family, device, *(str(v) if v else "" for v in verdicts)) for family, device, verdicts in table.rows]
    for text in columns(lines):
        _line(console, " " + text)
    _line(console)


def _print_resets(table: ResetTable, console: Console) -> None:
    """Which devices need a reset before a load, and what it costs."""
    print_wrapped(console, f"reset: {table.title}: {table.about}", style="bold", hang=2)
    for text in columns([HEAD, *(line.words for line in table.told)]):
        _line(console, " " + printable(text))
    for text in (table.left_out, *table.costs):
        if text:
            print_wrapped(console, text, style="dim", indent=1, hang=2)
    _line(console)


def _print_totals(doc: MatrixDoc, console: Console) -> None:
    early = "" if doc.complete else "stopped early: "
    text = f"{early}{plural(len(doc.cells), 'cell')}, {totals_text(doc.cells)}, {duration(doc.seconds)} in all"
    print_wrapped(console, text, style="dim" if doc.complete else "yellow")
    state = coverage_text(doc.coverage)
    if state:
        print_wrapped(console, state, style="dim")
    disturbed = disturbed_text(doc.cells)
    if disturbed:
        print_wrapped(console, disturbed, style="yellow")


def _print_answer(block: Block, console: Console) -> None:
    style = _COLO_STYLE[block.result.colo]
    print_wrapped(console, block.answer, style=style, hang=2)
