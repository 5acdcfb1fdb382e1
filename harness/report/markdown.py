# SPDX-License-Identifier: GPL-2.0-or-later
"""matrix.md: the answers, the tables and the findings in GitHub's markdown, small enough for a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set

from harness.report.coverage import coverage_text
from harness.report.lost import LOST_NOTE, lost_text
from harness.report.onhosts import hosts_lines
from harness.report.overview import Overview, overview
from harness.report.reset import HEAD, ResetTable, reset_tables
from harness.report.sentences import class_meaning
from harness.report.text import duration, number, plural
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
    finding_groups,
    loads_text,
    phases_of,
    rate_text,
    totals_text,
)
from harness.results.document import Colo, MatrixDoc, Qemu
from harness.results.verdict import Verdict
from harness.text import one_line, printable

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~@])")


def plain_text(text: str) -> str:
    """Text as text: no markup, links, mentions or cell ends come out of it."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of words that are markdown already."""
    return "\n".join(map(_line, [head, ["---"] * len(head), *rows]))


def code_text(text: str) -> str:
    """Inline code that holds back quotes of its own and may stand in a table."""
    text = one_line(text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block_code(text: str) -> str:
    text = printable(text).rstrip("\n")
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}text\n{text}\n{fence}"


def render_markdown(doc: MatrixDoc) -> str:
    """The document as markdown."""
    parts = ["# postload matrix"]
    if not doc.complete:
        parts.append(f"**Partial:** the run has not come to its end; {plural(len(doc.cells), 'cell')} judged.")
    found = blocks(doc)
    parts.append("\n".join(f"- {_answer(block)}" for block in found) or "Nothing was run.")
    seen = overview(doc)
    if seen.is_long:
        parts += ["## Devices", _overview(seen), *(f"ok: {plain_text(text)}" for text in seen.fine)]
    else:
        parts += _versions(doc)
        parts += [part for block in found for part in (f"## {plain_text(block.title)}", _table(block)) if part]
    groups, phases = finding_groups(doc.cells), phases_of(doc.cells)
    if groups:
        parts += ["## Findings", *(_finding(group, phases) for group in groups[:MANY_FINDINGS])]
    if len(groups) > MANY_FINDINGS:
        parts.append(f"And {number(len(groups) - MANY_FINDINGS)} more findings, in matrix.html.")
    for table in reset_tables(doc):
        parts += [
            f"## Reset: {plain_text(table.title)}",
            _resets(table),
            *map(plain_text, filter(None, [table.left_out])),
        ]
        parts += ["\n".join(f"- {plain_text(text)}" for text in (table.about, *table.costs))]
    hosts = hosts_lines(doc)
    if hosts:
        parts += ["## Each host", plain_text(hosts[0]), "\n".join(f"- {plain_text(text)}" for text in hosts[1:])]
    if doc.lost:
        parts += [
            "## Guests that were lost",
            LOST_NOTE,
            "\n".join(f"- {plain_text(lost_text(guest))}" for guest in doc.lost),
        ]
    parts += ["## How it was run", _how(doc)]
    return "\n\n".join(parts) + "\n"


def _overview(seen: Overview) -> str:
    """A line for each device that is not ok."""
    lines = [["machine", "device", *map(plain_text, seen.qemus), "state loaded", "next"]]
    lines.append(["---"] * len(lines[0]))
    for row in seen.odd:
        words = (f"{answer.verdict}, COLO: {answer.colo}" if answer else "" for answer in row.answers)
        asked = code_text(explain_cell(row.cell)) if row.cell else ""
        lines.append([plain_text(row.family), plain_text(row.device), *words, row.state, asked])
    return "\n".join(map(_line, lines))


def _versions(doc: MatrixDoc) -> list[str]:
    """Device by QEMU, where there are several."""
    table = by_version(doc)
    if table is None:
        return []
    head = ["machine", "device", *map(plain_text, table.qemus)]
    rows = ([plain_text(f), plain_text(d), *(str(v) if v else "" for v in verdicts)] for f, d, verdicts in table.rows)
    return [markdown_table(head, rows)]


def _resets(table: ResetTable) -> str:
    """Which devices need a reset before a load."""
    return markdown_table(HEAD, (list(map(plain_text, line.words)) for line in table.told))


def _answer(block: Block) -> str:
    colo = block.result.colo
    mark = f"**{colo}**" if colo in (Colo.UNSAFE, Colo.REFUSED) else str(colo)
    return f"{mark}: {plain_text(block.answer)}"


def _table(block: Block) -> str:
    if not block.rows:
        return "No cells."
    phases: list[str | None] = list(block.phases) or [None]
    head = ["device", "schedule", *(phase or "phases" for phase in phases), "loads", "loads/s"]
    if block.has_pairs:
        head.insert(1, "recorded -> loaded")
    lines = [_line(head), _line(["---"] * (len(head) - 2) + ["---:"] * 2)]
    for row in block.told_rows:
        lines += [
            _line(_values(block, row, schedule, phases)) for schedule in block.schedules if row.of_schedule(schedule)
        ]
    return "\n".join(lines) + (f"\n\n{block.left_out}." if block.left_out else "")


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _values(block: Block, row: Row, schedule: str, phases: list[str | None]) -> list[str]:
    label = plain_text(row.device) + (f" without {', '.join(map(code_text, row.without))}" if row.without else "")
    values = [label + (f" ({plain_text(row.variant)})" if row.variant else "")]
    if block.has_pairs:
        values.append(plain_text(row.pair))
    values.append(schedule)
    values += _words(row, schedule, phases)
    cells = row.of_schedule(schedule)
    return [*values, loads_text(cells), rate_text(cells)]


def _words(row: Row, schedule: str, phases: list[str | None]) -> list[str]:
    """A verdict for each phase; a cell over several phases says so in the first place that is free."""
    words = []
    for phase in phases:
        entry = row.entries.get(Column(schedule=schedule, phase=phase))
        words.append(_word(entry.verdict) if entry else "")
    spanning = row.entries.get(Column(schedule=schedule, phase=None))
    if spanning and phases != [None]:
        place = words.index("") if "" in words else len(words) - 1
        words[place] = " ".join(filter(None, [words[place], f"{_word(spanning.verdict)} (several phases)"]))
    return words


def _word(verdict: Verdict) -> str:
    return f"**{verdict}**" if verdict.is_finding else verdict.value


def _finding(group: FindingGroup, phases: Set[str]) -> str:
    finding = group.finding
    lines = [f"### {group.verdict}: {code_text(group.title)}", code_text(finding.text)]
    facts = [f"first seen: {plain_text(group.first)}" + (f", {plain_text(finding.exit)}" if finding.exit else "")]
    facts += [f"class: {found} ({class_meaning(found)})" for found in group.classes]
    facts += [plain_text(finding.isolated)] if finding.isolated else []
    facts += [f"signature: {code_text(name)}" for name in group.signatures]
    facts += [f"known: {plain_text(link)}" for link in group.known]
    count = len(group.cells)
    facts.append(f"{plural(count, 'cell')}: {plain_text('; '.join(cells_text(group.cells, phases)))}")
    lines.append("\n".join(f"- {fact}" for fact in facts))
    if finding.log.strip():
        lines.append(_block_code(finding.log))
    return "\n\n".join(lines)


def host_text(doc: MatrixDoc) -> str:
    """The host, in a line."""
    return ", ".join(str(doc.host[key]) for key in ("system", "kernel", "cpu") if doc.host.get(key))


def _build(qemu: Qemu) -> str:
    build = f"QEMU {plain_text(qemu.version)} ({plain_text(qemu.build)})"
    return f"{build}, {code_text(qemu.path)}, sha256 {code_text(qemu.sha256)}"


def _how(doc: MatrixDoc) -> str:
    qemus = dict.fromkeys([m.qemu for m in doc.machines] + [q for c in doc.cells for q in (c.record_qemu, c.load_qemu)])
    lines = [
        f"{plural(len(doc.cells), 'cell')}, {totals_text(doc.cells)}, {duration(doc.seconds)} in all, "
        f"started {plain_text(doc.started)}",
        *([coverage_text(doc.coverage)] if doc.coverage else []),
        *map(_build, qemus),
        f"host: {plain_text(host_text(doc))}",
        *([f"walls around QEMU: {plain_text(str(doc.host['walls']))}"] if doc.host.get("walls") else []),
        f"command: {code_text(' '.join(doc.command))}",
        f"{plain_text(doc.program.name)} {plain_text(doc.program.version)}",
    ]
    return "\n".join(f"- {line}" for line in lines)
