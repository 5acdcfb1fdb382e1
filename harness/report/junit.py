# SPDX-License-Identifier: GPL-2.0-or-later
"""junit.xml for CI: a suite for each machine and QEMU, a test case for each cell."""

from __future__ import annotations

from collections.abc import Set

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.report.celltext import body_of, facts_of, message_of, skipped_for
from harness.report.view import Block, blocks, pair_text
from harness.results.document import Cell, MatrixDoc
from harness.results.verdict import Verdict
from harness.text import printable

#: Facts of the host that stand in each suite.
_HOST = ("system", "kernel", "cpu", "accel")


def render_junit(doc: MatrixDoc) -> str:
    """The document as JUnit XML: findings are failures, undecided cells errors, unsupported and known ones skipped."""
    xml = JUnitXml("postload matrix")
    routes: dict[str, set[str]] = {}
    for cell in doc.cells:
        routes.setdefault(cell.machine, set()).add(str(cell.key.route))
    several = {machine for machine, found in routes.items() if len(found) > 1}
    for block in blocks(doc):
        xml.add_testsuite(_suite(block, doc, several))
    text: bytes = xml.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _suite(block: Block, doc: MatrixDoc, several: Set[str]) -> TestSuite:
    suite = TestSuite(printable(block.title))
    suite.timestamp = printable(doc.started)
    qemu = block.result.qemu
    facts = {"qemu.build": qemu.build, "qemu.path": qemu.path, "qemu.sha256": qemu.sha256}
    host = {f"host.{name}": str(doc.host[name]) for name in _HOST if doc.host.get(name)}
    told = {"colo": str(block.result.colo), "answer": block.answer, "complete": str(doc.complete).lower()}
    for name, value in {**facts, **told, **host, "command": " ".join(doc.command)}.items():
        suite.add_property(name, printable(value))
    suite.add_testcases([_case(cell, several) for cell in block.cells])
    return suite


def _name(cell: Cell) -> str:
    """Stable from run to run: CI keeps history by class name and name."""
    name = f"{cell.lane}/{'+'.join(cell.phases)}"
    if cell.is_rest:
        name += "/rest"
    if (cell.engine, cell.guest_mode) != ("colo", "running"):
        name += f" [{cell.engine}, {cell.guest_mode}]"
    return name if cell.record_qemu.sha256 == cell.load_qemu.sha256 else f"{name} [{pair_text(cell)}]"


def _case(cell: Cell, several: Set[str]) -> TestCase:
    """A class name is a package and a class, the device. A CI takes two tests of one name for one, though they stand
    in two suites: a machine that several QEMUs were judged with has the QEMU in its name."""
    machine = f"{cell.key.route} {cell.machine}" if cell.machine in several else cell.machine
    case = TestCase(printable(_name(cell)), printable(f"{machine}.{cell.device}"), cell.seconds)
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
