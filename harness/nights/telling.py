# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a comparison is told in the morning: what is excused, what may have come by chance, what is overdue. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import date

from harness.nights.config import Quarantine, holding, past
from harness.nights.document import Excused, NightDoc, Overdue
from harness.results.known import News, NewsKind
from harness.store.document import ChangedCell, CompareDoc
from harness.store.states import Excuse, ExcuseKind

#: Kinds of findings that may come by chance: they are tried again before they are told. All others count at once.
BY_CHANCE = ("hang", "drift", "leak", "guest-fault", "flaky")

#: A finding in a cell: line and signature.
FindingAt = tuple[str, str]


def place_of(change: ChangedCell) -> FindingAt:
    """Which finding in which cell changed."""
    return change.line, change.signature


def without(compared: CompareDoc, taken: Collection[FindingAt]) -> CompareDoc:
    """A comparison without what is told elsewhere."""

    def left(changes: tuple[ChangedCell, ...]) -> tuple[ChangedCell, ...]:
        return tuple(change for change in changes if place_of(change) not in taken)

    return replace(
        compared,
        new=left(compared.new),
        back=left(compared.back),
        still=left(compared.still),
        flaky=left(compared.flaky),
    )


def _there(compared: CompareDoc) -> tuple[ChangedCell, ...]:
    """What fails now."""
    return (*compared.new, *compared.back, *compared.still, *compared.flaky)


def to_try_again(compared: CompareDoc, once: Collection[FindingAt]) -> list[ChangedCell]:
    """Findings that are tried again before they are told.

    :param once: what came in the night before, and did not come again when it was tried
    """
    fresh = (*compared.new, *compared.back, *(change for change in compared.still if place_of(change) in once))
    return [change for change in fresh if change.signature.partition(":")[0] in BY_CHANCE]


def seen_twice(
    compared: CompareDoc, suspects: Sequence[ChangedCell], came: Collection[FindingAt]
) -> tuple[CompareDoc, list[ChangedCell]]:
    """A comparison without those suspects that did not come again, and these.

    What came again counts, also where it is no news to the history because it came once in the night before.
    """
    once = [change for change in suspects if place_of(change) not in came]
    again = [change for change in suspects if change in compared.still and change not in once]
    left = without(compared, {place_of(change) for change in (*once, *again)})
    return replace(left, new=(*left.new, *again)), once


def excused_of(compared: CompareDoc, entries: Sequence[Quarantine], day: date) -> list[Excused]:
    """Findings in quarantined cells: those that would count, and those that are still there."""
    found = []
    for change in _there(compared):
        entry = holding(entries, change.cell, day)
        if entry is not None:
            found.append(Excused(change=change, link=entry.link, until=entry.until))
    return found


def excuses_of(doc: NightDoc) -> list[Excuse]:
    """What a night did not count, as its history keeps it."""
    found = [
        Excuse(
            kind=ExcuseKind.QUARANTINED,
            line=each.change.line,
            signature=each.change.signature,
            link=each.link,
            until=each.until,
        )
        for each in doc.excused
    ]
    once = (Excuse(kind=ExcuseKind.ONCE, line=each.line, signature=each.signature) for each in doc.once)
    return [*found, *once]


def overdue_of(compared: CompareDoc, entries: Sequence[Quarantine], news: Iterable[News], day: date) -> list[Overdue]:
    """What is excused no longer and still has findings: it counts until somebody has looked at it.

    :param news: of the known issues
    """
    failing = [change.cell for change in _there(compared)]
    found = []
    for entry in past(entries, day):
        cells = tuple(cell for cell in failing if entry.has(cell))
        if cells:
            found.append(Overdue(what=entry.cell, link=entry.link, until=entry.until, cells=cells))
    for each in news:
        issue = each.issue
        if each.kind is NewsKind.PAST and issue.until is not None:
            found.append(Overdue(what=issue.signature, link=issue.link, until=issue.until, cells=each.cells))
    return found
