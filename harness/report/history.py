# SPDX-License-Identifier: GPL-2.0-or-later
"""What a history knows, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.report.text import columns, duration, number, plural
from harness.results.verdict import Verdict
from harness.store.document import ChangedCell, CompareDoc, HistoryDoc
from harness.store.read import OutcomeRow, RunRow, SignatureRow
from harness.store.states import CellState, Excuse, ExcuseKind, Look
from harness.store.write import RunState

RUN_STATE_WORDS = {
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
    remarks = ", ".join(part for part in (RUN_STATE_WORDS[run.state], *run.marks) if part)
    took = duration(run.seconds)
    return run.name, _when(run), took, run.host, cells, number(run.findings), remarks


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
        until = f", until {found.known_until}" if found.known_until else ""
        yield f"  known: {found.known}{until}"


_TITLES = {
    "new": "new",
    "back": "back: seen before, and not in the earlier run",
    "fixed": "fixed: not seen, and its reproducer says that it is gone",
    "unseen": "unseen: not seen any more, and no reproducer was asked",
    "flaky": "flaky: comes and goes",
    "still": "still there",
}
#: What is told in full only when it is asked for: it is not what a morning is about.
_QUIET = ("still",)
_MAX_CELLS = 3
_MAX_NOT_RUN = 6


def compare_text(doc: CompareDoc, *, everything: bool = False) -> str:
    """Lines for the terminal, without colours.

    :param everything: each cell is named
    """
    return "\n".join(_compared(doc, everything))


def _compared(doc: CompareDoc, everything: bool) -> Iterator[str]:
    yield f"{_named(doc.after)} against {_named(doc.before)}"
    counts = [(name, len(getattr(doc, name))) for name in (*_TITLES, "not_run")]
    counts += [("excused", len(doc.excused))] if doc.excused else []
    yield "  " + ", ".join(f"{number(count)} {name.replace('_', ' ')}" for name, count in counts)
    for name, title in _TITLES.items():
        changes: Sequence[ChangedCell] = getattr(doc, name)
        if changes:
            yield ""
            yield f"{title}:"
            yield from _signatures(changes, doc, most=None if everything else 0 if name in _QUIET else _MAX_CELLS)
    if doc.excused:
        yield ""
        yield "excused: does not count in that night:"
        yield from (f"  {line}" for line in columns([_excused(change) for change in doc.excused]))
    if doc.not_run:
        yield ""
        yield from _not_run(doc.not_run, everything)
    if doc.after.state is not RunState.ENDED:
        yield ""
        yield f"{doc.after.name} {RUN_STATE_WORDS[doc.after.state]}"


def _named(run: RunRow) -> str:
    marks = f", {', '.join(run.marks)}" if run.marks else ""
    return f"{run.name} ({_when(run)} UTC{marks})"


def _when(run: RunRow) -> str:
    return run.started[:16].replace("T", " ")


def _signatures(changes: Sequence[ChangedCell], doc: CompareDoc, most: int | None) -> Iterator[str]:
    """Each signature once, with its cells.

    :param most: cells to be named; None for all
    """
    groups: dict[str, list[ChangedCell]] = {}
    for change in changes:
        groups.setdefault(change.signature, []).append(change)
    for signature, mine in groups.items():
        known = next((f" (known: {_known(each)})" for each in mine if each.known), "")
        yield f"  {signature}{known}: {plural(len(mine), 'cell')}"
        shown = mine[:most]
        yield from (f"    {line}" for line in columns([_change(change) for change in shown]) if shown)
        if most and len(mine) > most:
            yield f"    and {number(len(mine) - most)} more"
        if mine[0].state in (CellState.NEW, CellState.BACK) and doc.after.folder:
            yield f"    next: postload explain {mine[0].cell} --run {doc.after.folder}"


def _known(change: ChangedCell) -> str:
    """Where a known issue is described, and until when it excuses."""
    return change.known + (f", {excuse_text(change.excuse)}" if change.excuse else "")


def excuse_text(excuse: Excuse) -> str:
    """Why a finding does not count, or until when; its link stands by itself."""
    until = f"until {excuse.until}" if excuse.until else ""
    return f"{_EXCUSES[excuse.kind]} {until}".strip()


_EXCUSES = {
    ExcuseKind.KNOWN: "",
    ExcuseKind.QUARANTINED: "quarantined",
    ExcuseKind.ONCE: "came once, and not when it was tried again",
}


def _excused(change: ChangedCell) -> tuple[str, ...]:
    assert change.excuse is not None
    link = f": {change.excuse.link}" if change.excuse.link else ""
    return change.cell, change.signature, excuse_text(change.excuse) + link


def _change(change: ChangedCell) -> tuple[str, ...]:
    rate = change.rate
    often = f"{rate.failed} of the last {rate.judged} failed" if rate and rate.changes > 1 else ""
    return change.cell, f"was {_was(change)}, is {verdict_text(change.now)}", often


def _was(change: ChangedCell) -> str:
    return "never judged" if change.was is None else str(change.was)


NOT_RUN_WORDS = {
    Look.UNJUDGED: "was planned, and nobody came to it",
    Look.UNDECIDED: "could not be decided",
    Look.ABSENT: "not planned",
}


def _not_run(changes: Sequence[ChangedCell], everything: bool) -> Iterator[str]:
    for look, why in NOT_RUN_WORDS.items():
        mine = [change for change in changes if change.look is look]
        if mine:
            yield f"not run, {why}: {plural(len(mine), 'cell')}"
            shown = mine if everything else mine[:_MAX_NOT_RUN]
            yield from (f"  {line}" for line in columns([_change(change) for change in shown]))
            if len(mine) > len(shown):
                yield f"  and {number(len(mine) - len(shown))} more: --all names them"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
