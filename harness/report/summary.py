# SPDX-License-Identifier: GPL-2.0-or-later
"""summary.md: what a run came to in a few lines of Markdown, for the summary of a CI job, a mail or a chat.

What counts comes first: findings that nobody knows, then what was not decided; what is known and what is well is
counted. The whole of it stands in matrix.md and matrix.html.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.report.markdown import code_text, host_text, plain_text
from harness.report.text import duration, number, plural
from harness.report.view import FindingGroup, blocks, explain_cell, finding_groups, totals_text
from harness.results.document import Cell, MatrixDoc
from harness.results.verdict import Verdict

#: More of a kind than that are counted.
_MOST = 20


def render_summary(doc: MatrixDoc) -> str:
    """The document as a summary."""
    new = finding_groups(cell for cell in doc.cells if cell.verdict.is_finding and not cell.known)
    undecided = finding_groups(cell for cell in doc.cells if cell.verdict.is_undecided and not cell.known)
    known = finding_groups(cell for cell in doc.cells if cell.known)
    parts = [f"# {headline(doc)}", "\n".join(f"- **{b.result.colo}**: {plain_text(b.answer)}" for b in blocks(doc))]
    parts += _section("Findings", new)
    parts += _section("Not decided", undecided)
    parts += _section("Known", known)
    parts.append(_how(doc))
    return "\n\n".join(filter(None, parts)) + "\n"


def headline(doc: MatrixDoc) -> str:
    """What a run came to, in a line without Markdown: the subject of a mail."""
    counts = Counter(cell.verdict for cell in doc.cells if not cell.known)
    findings = [f"{number(counts[verdict])} {verdict}" for verdict in Verdict if verdict.is_finding and counts[verdict]]
    undecided = sum(count for verdict, count in counts.items() if verdict.is_undecided)
    told = findings + ([f"{plural(undecided, 'cell')} not decided"] if undecided else [])
    told += [] if doc.complete else ["not complete"]
    if not told and not counts[Verdict.OK]:
        told = ["nothing was judged"]
    known = sum(1 for cell in doc.cells if cell.known)
    rest = f", {number(known)} known" if known else ""
    return f"postload: {', '.join(told) or 'ok'}{rest}; {plural(len(doc.cells), 'cell')}"


def _section(title: str, groups: Sequence[FindingGroup]) -> list[str]:
    if not groups:
        return []
    lines = [_line(group) for group in groups[:_MOST]]
    if len(groups) > _MOST:
        lines.append(f"- and {number(len(groups) - _MOST)} more, in matrix.md")
    return [f"## {title}", "\n".join(lines)]


def _line(group: FindingGroup) -> str:
    """A finding: what, where, its name, and what to type next."""
    first = group.cells[0]
    lines = [f"- **{group.verdict}** {code_text(group.title)}: {plain_text(group.finding.text)}"]
    lines += [f"  - {plain_text(link)}" for link in group.known]
    lines.append(f"  - {plural(len(group.cells), 'cell')} of {plain_text(_places(group.cells))}")
    lines += [f"  - signature {code_text(name)}" for name in group.signatures]
    return "\n".join([*lines, f"  - {code_text(explain_cell(first.id))}"])


def _places(cells: Iterable[Cell]) -> str:
    return ", ".join(dict.fromkeys(f"{cell.key.route} {cell.machine} {cell.device}" for cell in cells))


def _how(doc: MatrixDoc) -> str:
    told = [totals_text(doc.cells), duration(doc.seconds), f"started {doc.started}", host_text(doc)]
    return plain_text("; ".join(filter(None, told)))
