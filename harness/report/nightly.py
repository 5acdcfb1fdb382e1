# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night came to, for a terminal or a mail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.nights.document import AbsentQemu, NightDoc, ReproducerAnswer
from harness.report.history import compare_text
from harness.report.text import duration, number, plural
from harness.results.key import CellKey
from harness.store.states import Reproduced

_MAX_ROWS = 8
_ANSWERS = {
    Reproduced.STILL: "is still there",
    Reproduced.GONE: "is gone",
    Reproduced.UNDECIDED: "could not be tried",
    Reproduced.NONE: "was not asked",
}


def begun_text(folder: Path, *, goes_on: bool, absent: Sequence[AbsentQemu]) -> str:
    """Where a night lies, and the QEMUs that it has to do without."""
    first = f"night {folder}" + (", which was cut off, goes on" if goes_on else "")
    return "\n".join([first, *(f"postload: {_absent(each)}" for each in absent)])


def answer_text(answer: ReproducerAnswer) -> str:
    """What a reproducer said."""
    return f"reproducer of {answer.signature}: on {answer.qemu.label} it {_ANSWERS[answer.answer]}"


def bundle_text(signature: str, place: Path, why: str) -> str:
    """A finding that has no reproducer."""
    return f"{signature}: no reproducer in {place}: {why}"


def night_headline(doc: NightDoc) -> str:
    """What a night came to, in a line: the subject of a mail."""
    lists = (("new", doc.compared.new), ("back", doc.compared.back), ("overdue", doc.overdue))
    told = [f"{number(len(found))} {name}" for name, found in lists if found]
    told += [] if doc.counts else ["it does not count"]
    told += ["it is not whole"] if doc.counts and not doc.whole else []
    return f"postload night: {', '.join(told) or 'nothing new'}; {plural(doc.planned - len(doc.missing), 'cell')}"


def night_text(doc: NightDoc) -> str:
    """Lines for the terminal, without colours."""
    return "\n".join(_lines(doc))


def _lines(doc: NightDoc) -> Iterator[str]:
    lines = compare_text(doc.compared).splitlines()
    if doc.first:
        lines[0] = f"{doc.compared.after.name}, the first night: all that fails is new"
    yield from lines
    for title, lines in _parts(doc):
        if lines:
            yield ""
            yield title
            yield from (f"  {line}" for line in lines)
    yield ""
    yield from _last(doc)


def _parts(doc: NightDoc) -> Iterator[tuple[str, list[str]]]:
    yield (
        "excused no longer, and counted until the entry is taken out:",
        [f"{each.what}: until {each.until}, {plural(len(each.cells), 'cell')}: {each.link}" for each in doc.overdue],
    )
    yield (
        "came once, and not when it was tried again; it counts when it comes back:",
        [f"{each.cell}  {each.signature}" for each in doc.once],
    )
    yield (
        "quarantined:",
        [f"{e.change.cell}  {e.change.signature}  until {e.until}: {e.link}" for e in doc.excused],
    )
    yield "reproducers:", [answer_text(each) for each in doc.reproduced]
    yield (
        "bug reports, with a script that shows the finding:",
        [f"{each.signature}: {each.script}" for each in doc.made],
    )
    yield "QEMUs that were not there:", [_absent(each) for each in doc.absent]
    yield f"left out, because {_why(doc)}: {plural(len(doc.missing), 'cell')}", _rows(doc.missing)


def _why(doc: NightDoc) -> str:
    if doc.budget_over and doc.budget_s is not None:
        return f"the budget of {duration(doc.budget_s)} was over"
    return "nothing came of them"


def _rows(cells: Sequence[str]) -> list[str]:
    rows = Counter(CellKey.parse(cell).row for cell in cells)
    lines = [f"{row}: {plural(count, 'cell')}" for row, count in list(rows.items())[:_MAX_ROWS]]
    return lines + ([f"and {plural(len(rows) - _MAX_ROWS, 'device')} more"] if len(rows) > _MAX_ROWS else [])


def _last(doc: NightDoc) -> Iterator[str]:
    red = [canary for canary in doc.canaries if canary.red]
    judged, took = doc.planned - len(doc.missing), duration(doc.compared.after.seconds)
    yield f"{number(judged)} of {plural(doc.planned, 'cell')} judged in {took}; reports: {doc.folder}"
    yield f"canary: {number(len(red))} of {plural(len(doc.canaries), 'machine')} told of the planted fault"
    yield from (
        f"  {canary.qemu} {canary.machine}: {canary.verdict}: nothing was judged there"
        for canary in doc.canaries
        if not canary.red
    )
    if not doc.counts:
        yield f"this night does not count: {_no_count(doc)}"
    elif not doc.whole:
        yield "this night is not whole"


def _no_count(doc: NightDoc) -> str:
    if doc.is_empty:
        return "nothing was judged"
    return "no machine was asked for a planted fault" if not doc.canaries else "a planted fault was not told"


def _absent(each: AbsentQemu) -> str:
    return f"{each.name}: {each.said}"
