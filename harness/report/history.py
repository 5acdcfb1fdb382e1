# SPDX-License-Identifier: GPL-2.0-or-later
"""What a history knows, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.report.text import columns, duration, number, plural
from harness.results.verdict import Verdict
from harness.store.document import HistoryDoc
from harness.store.read import OutcomeRow, RunRow, SignatureRow
from harness.store.write import RunState

_STATES = {
    RunState.RUNNING: "goes on",
    RunState.ENDED: "",
    RunState.STOPPED: "was stopped",
    RunState.KILLED: "was killed",
}


def history_text(doc: HistoryDoc) -> str:
    """Lines for the terminal, without colours."""
    if not doc.runs:
        return "the history has no runs yet"
    return "\n".join(_lines(doc))


def _lines(doc: HistoryDoc) -> Iterator[str]:
    if not doc.asked:
        yield from runs_lines(doc.runs)
        return
    yield f"{doc.asked}, in the last {plural(len(doc.runs), 'run')}:"
    yield from (_indented(outcomes_lines(doc.outcomes)) if doc.outcomes else ["  nothing"])
    for each in doc.signatures:
        yield ""
        yield from signature_lines(each)


def runs_lines(runs: Sequence[RunRow]) -> list[str]:
    """A table of runs."""
    head = ("run", "started", "took", "host", "cells", "findings", "")
    return columns([head, *(_run(run) for run in runs)])


def _run(run: RunRow) -> tuple[str, ...]:
    cells = number(run.judged) if run.judged == run.planned else f"{number(run.judged)} of {number(run.planned)}"
    remarks = ", ".join(part for part in (_STATES[run.state], *run.marks) if part)
    took = duration(run.seconds)
    return run.name, run.started[:16].replace("T", " "), took, run.host, cells, number(run.findings), remarks


def outcomes_lines(outcomes: Sequence[OutcomeRow]) -> list[str]:
    """A table of outcomes."""
    head = ("run", "cell", "verdict", "signature")
    return columns([head, *((o.run, o.cell, verdict_text(o.verdict), o.signature) for o in outcomes)])


def verdict_text(verdict: Verdict | None) -> str:
    """A verdict, or that there is none."""
    return "not judged" if verdict is None else str(verdict)


def signature_lines(found: SignatureRow) -> Iterator[str]:
    """A signature with when and where it was seen."""
    yield found.name
    yield f"  seen first in {found.first_run}, last in {found.last_run}, in {plural(found.runs, 'run')}"
    hosts = f"; hosts: {', '.join(found.hosts)}" if found.hosts else ""
    yield f"  QEMUs: {', '.join(found.qemus)}; cells: {number(len(found.cells))}{hosts}"
    if found.known:
        yield f"  known: {found.known}"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
