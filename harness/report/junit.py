# SPDX-License-Identifier: GPL-2.0-or-later
"""junit.xml for CI: a suite for each machine and QEMU, a test case for each cell."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.report.celltext import body_of, facts_of, message_of, skipped_for
from harness.report.view import Block, blocks, pair_text
from harness.results.document import Cell, MatrixDoc
from harness.results.verdict import Verdict
from harness.text import printable


def render_junit(doc: MatrixDoc) -> str:
    """The document as JUnit XML: findings are failures, undecided cells errors, unsupported ones skipped."""
    xml = JUnitXml("postload matrix")
    for block in blocks(doc):
        xml.add_testsuite(_suite(block, doc))
    text: bytes = xml.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _suite(block: Block, doc: MatrixDoc) -> TestSuite:
    suite = TestSuite(printable(block.title))
    suite.timestamp = printable(doc.started)
    qemu = block.result.qemu
    facts = {"qemu.build": qemu.build, "qemu.path": qemu.path, "qemu.sha256": qemu.sha256}
    for name, value in {**facts, "colo": str(block.result.colo), "answer": block.answer}.items():
        suite.add_property(name, printable(value))
    suite.add_testcases([_case(cell) for cell in block.cells])
    return suite


def _name(cell: Cell) -> str:
    """Stable from run to run: CI keeps history by class name and name."""
    name = f"{cell.lane}/{'+'.join(cell.phases)}"
    if cell.is_rest:
        name += "/rest"
    if (cell.engine, cell.guest_mode) != ("colo", "running"):
        name += f" [{cell.engine}, {cell.guest_mode}]"
    return name if cell.record_qemu.sha256 == cell.load_qemu.sha256 else f"{name} [{pair_text(cell)}]"


def _case(cell: Cell) -> TestCase:
    case = TestCase(printable(_name(cell)), printable(f"{cell.machine}.{cell.device}"), cell.seconds)
    result = _result(cell)
    if result is not None:
        case.result = [result]
    case.system_out = printable("\n".join(facts_of(cell)))
    return case


def _result(cell: Cell) -> Failure | Error | Skipped | None:
    if cell.verdict is Verdict.OK:
        return None
    skipped = skipped_for(cell)
    if skipped:
        return Skipped(skipped, cell.verdict.value)
    kind = Error if cell.verdict.is_undecided else Failure
    result = kind(message_of(cell), cell.verdict.value)
    result.text = body_of(cell)
    return result
