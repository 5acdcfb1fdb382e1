# SPDX-License-Identifier: GPL-2.0-or-later
"""junit.xml for CI: a suite for each machine and QEMU, a test case for each cell."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.report.sentences import warning_text
from harness.report.text import number, plural
from harness.report.view import Block, blocks, finding_of, pair_text
from harness.results.document import Cell, MatrixDoc
from harness.results.verdict import Verdict
from harness.text import one_line, printable


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
    case.system_out = printable("\n".join(_facts(cell)))
    return case


def _facts(cell: Cell) -> list[str]:
    lines = [cell.id, f"{number(cell.loads_acked)} of {plural(cell.loads_asked, 'load')} acknowledged"]
    if cell.excluded:
        lines.append(f"without {', '.join(cell.excluded)}")
    return lines + [f"warning: {warning_text(line)}" for line in cell.warnings]


def _result(cell: Cell) -> Failure | Error | Skipped | None:
    finding = finding_of(cell)
    if cell.verdict is Verdict.OK or finding is None:
        return None
    message = one_line(f"{finding.section}: {finding.text}" if finding.section else finding.text)
    if cell.verdict is Verdict.UNSUPPORTED:
        return Skipped(message, cell.verdict.value)
    if cell.known:
        return Skipped(f"known, {one_line(cell.known)}: {message}", cell.verdict.value)
    kind = Error if cell.verdict.is_undecided else Failure
    result = kind(message, cell.verdict.value)
    where = [f"phase {finding.phase}"] if finding.phase else []
    where += [f"load {finding.load}"] if finding.load else []
    where += [finding.exit] if finding.exit else []
    body = [finding.text, ", ".join(where), finding.isolated or "", finding.log]
    result.text = printable("\n".join(part for part in body if part))
    return result
