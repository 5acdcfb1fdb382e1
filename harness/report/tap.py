# SPDX-License-Identifier: GPL-2.0-or-later
"""matrix.tap: the Test Anything Protocol, version 13, for Meson, prove, Jenkins and other readers of it.

A line for each cell. A known finding is a TODO, which fails without counting; an unsupported cell is skipped. A run
that did not come to its end bails out, so that no reader takes for passed what was not judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness.report.celltext import body_of, message_of, skipped_for
from harness.report.view import blocks
from harness.results.document import Cell, MatrixDoc
from harness.results.verdict import Verdict
from harness.text import one_line


def render_tap(doc: MatrixDoc) -> str:
    """The document as TAP."""
    return "\n".join(_lines(doc)) + "\n"


def _lines(doc: MatrixDoc) -> Iterator[str]:
    yield "TAP version 13"
    yield f"1..{len(doc.cells)}" + ("" if doc.cells else " # SKIP no cells")
    for block in blocks(doc):
        yield f"# {one_line(block.answer)}"
    for number, cell in enumerate(doc.cells, 1):
        yield _test(number, cell)
        yield from _diagnosis(cell)
    if not doc.complete:
        yield "Bail out! the run has not come to its end"


def _test(number: int, cell: Cell) -> str:
    passed = cell.verdict in (Verdict.OK, Verdict.UNSUPPORTED)
    line = f"{'ok' if passed else 'not ok'} {number} - {_plain(cell.id)}"
    if cell.verdict is Verdict.UNSUPPORTED:
        return f"{line} # SKIP {_plain(skipped_for(cell))}"
    return f"{line} # TODO {_plain(skipped_for(cell))}" if cell.known else line


def _plain(text: str) -> str:
    """A hash begins a directive."""
    return one_line(text).replace("\\", "\\\\").replace("#", "\\#")


def _diagnosis(cell: Cell) -> Iterator[str]:
    """YAML below a test, as little of it as Perl reads too; a JSON string is a YAML string."""
    yield "  ---"
    yield f"  duration_ms: {cell.seconds * 1000:.0f}"
    if cell.verdict is not Verdict.OK:
        yield f"  verdict: {cell.verdict}"
        yield f"  message: {json.dumps(message_of(cell), ensure_ascii=False)}"
    if cell.failure_class is not None:
        yield f"  class: {cell.failure_class}"
    if cell.signature:
        yield f"  signature: {json.dumps(cell.signature, ensure_ascii=False)}"
    if cell.verdict.is_finding:
        yield "  seen: |"
        yield from (f"    {line}" for line in body_of(cell).lstrip().splitlines() if line.strip())
    yield "  ..."
