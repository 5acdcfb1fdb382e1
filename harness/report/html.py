# SPDX-License-Identifier: GPL-2.0-or-later
"""matrix.html: one file to send around. It loads nothing, reads without script, and prints."""

from __future__ import annotations

import json
import shlex
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.names import LANES
from harness.report.coverage import NOTE as COVERAGE_NOTE
from harness.report.coverage import coverage_rows
from harness.report.lost import LOST_NOTE, lost_text
from harness.report.onhosts import hosts_lines
from harness.report.overview import colo_rows, grid_of, overview
from harness.report.reset import HEAD as RESET_HEAD
from harness.report.reset import NOTE as RESET_NOTE
from harness.report.reset import reset_tables
from harness.report.sentences import class_meaning, verdict_meaning, warning_text
from harness.report.text import duration, number, plural, size
from harness.report.view import (
    PHASE_MEANING,
    SCHEDULE_MEANING,
    anchors,
    block_title,
    blocks,
    by_version,
    explain_cell,
    explain_line,
    finding_groups,
    finding_of,
    loads_text,
    pair_text,
    rate,
    rate_text,
    sessions,
    verdict_counts,
)
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.verdict import FailureClass, Verdict
from harness.text import printable

#: Cells that a finding of a long page names; the others are counted.
_MANY_CELLS = 40


def _safe(value: object) -> object:
    """Every value that a template prints goes through here, before it is escaped for HTML."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment() -> Environment:
    """The templates of this package with what all of them use; every value is escaped."""
    made = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, duration=duration, pair=pair_text, loads=loads_text)
    made.filters.update(
        rate=rate, rate_text=rate_text, sessions=sessions, explain_line=explain_line, block_title=block_title
    )
    made.filters.update(class_meaning=class_meaning, verdict_meaning=verdict_meaning)
    made.globals.update(
        explain_cell=explain_cell,
        finding_of=finding_of,
        warning=warning_text,
        verdict_counts=verdict_counts,
        plural=plural,
    )
    return made


def render_html(doc: MatrixDoc, claims: str = "", first: str = "") -> str:
    """The document as one self-contained page.

    :param claims: a section of HTML to be put in as it is, see :func:`harness.report.studies.claims_html`
    :param first: another one, above the tables, see :func:`harness.report.qualify.qualify_html`
    """
    found = blocks(doc)
    seen = overview(doc)
    return (
        environment()
        .get_template("matrix.html.j2")
        .render(
            doc=doc,
            claims=Markup(claims),
            first=Markup(first),
            blocks=found,
            versions=by_version(doc),
            seen=seen,
            grid=grid_of(doc) if seen.is_long else {},
            colo=colo_rows(found),
            many_cells=_MANY_CELLS if seen.is_long else len(doc.cells),
            groups=finding_groups(doc.cells),
            anchors=anchors(doc.cells),
            devices=list(dict.fromkeys(cell.device for cell in doc.cells)),
            hosts=hosts_lines(doc),
            lost=[lost_text(guest) for guest in doc.lost],
            lost_note=LOST_NOTE,
            resets=reset_tables(doc),
            reset_head=RESET_HEAD,
            reset_note=RESET_NOTE,
            coverage=coverage_rows(doc),
            coverage_note=COVERAGE_NOTE,
            host=_host(doc.host),
            qemus=_qemus(doc),
            command=shlex.join(doc.command),
            verdicts=list(Verdict),
            classes=list(FailureClass),
            schedules={name: SCHEDULE_MEANING[name] for name in LANES},
            phases={p: PHASE_MEANING.get(p, "") for p in _phases(doc.cells)},
        )
    )


def _phases(cells: tuple[Cell, ...]) -> list[str]:
    used = {phase for cell in cells for phase in cell.phases}
    return [p for p in PHASE_MEANING if p in used] + sorted(used - set(PHASE_MEANING))


def _qemus(doc: MatrixDoc) -> list[Qemu]:
    every = [m.qemu for m in doc.machines] + [q for c in doc.cells for q in (c.record_qemu, c.load_qemu)]
    return list(dict.fromkeys(every))


def _host(host: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the host table: known keys in words, the free-form rest as it is."""
    rows = []
    for key, value in host.items():
        if key == "memory_bytes" and isinstance(value, int | float):
            rows.append(("memory", size(value)))
        elif key == "accel" and isinstance(value, dict):
            rows += [(f"accelerator {name}", _accel(state)) for name, state in value.items()]
        else:
            rows.append((key.replace("_", " "), value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def _accel(state: object) -> str:
    if not isinstance(state, dict):
        return str(state)
    reason = f": {state['reason']}" if state.get("reason") else ""
    return ("usable" if state.get("usable") else "not usable") + reason
