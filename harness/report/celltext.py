# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell as test systems tell it: a line, and what stands below it."""

from __future__ import annotations

from harness.report.sentences import warning_text
from harness.report.text import number, plural
from harness.report.view import finding_of
from harness.results.document import Cell
from harness.results.verdict import Verdict
from harness.text import one_line, printable


def message_of(cell: Cell) -> str:
    """What is wrong with it, in one line; empty for one that is ok."""
    finding = finding_of(cell)
    if finding is None:
        return ""
    return one_line(f"{finding.section}: {finding.text}" if finding.section else finding.text)


def skipped_for(cell: Cell) -> str:
    """Why a cell counts for nothing, in one line; empty for one that counts."""
    if cell.verdict is Verdict.UNSUPPORTED:
        return message_of(cell)
    return f"known, {one_line(cell.known)}: {message_of(cell)}" if cell.known else ""


def body_of(cell: Cell) -> str:
    """What was seen, where, and the end of QEMU's log; empty for one that is ok."""
    finding = finding_of(cell)
    if finding is None:
        return ""
    where = [f"phase {finding.phase}"] if finding.phase else []
    where += [f"load {finding.load}"] if finding.load else []
    where += [finding.exit] if finding.exit else []
    signature = f"signature: {cell.signature}" if cell.signature else ""
    body = [finding.text, ", ".join(where), finding.isolated or "", signature, finding.log]
    return printable("\n".join(part for part in body if part))


def facts_of(cell: Cell) -> list[str]:
    """What is known of it whatever it came to, a line each."""
    lines = [cell.id, f"{number(cell.loads_acked)} of {plural(cell.loads_asked, 'load')} acknowledged"]
    if cell.excluded:
        lines.append(f"without {', '.join(cell.excluded)}")
    return lines + [f"warning: {warning_text(line)}" for line in cell.warnings]
