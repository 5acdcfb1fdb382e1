# SPDX-License-Identifier: GPL-2.0-or-later
"""Is every planned cell accounted for? A night that lost some must not look like one that found them well.

Cells are foreseen before anything is started (:func:`harness.work.shards.foresee`), so that those of a guest that was
never recorded are counted too. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.results.events import CellsPlanned, Event, Judged
from harness.results.key import CellKey
from harness.results.verdict import Verdict
from harness.work.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class NightAccount:
    """Cells of a night.

    :param planned: all that were foreseen, or planned later
    :param judged: those of them that came to something
    :param missing: the others, in the order of the plan
    """

    planned: int
    judged: int
    missing: tuple[str, ...]


def account_of(foreseen: Sequence[CellKey], events: Iterable[Event], *, complete: bool) -> NightAccount:
    """What became of each cell.

    Of a run that came to its end, a lane that was foreseen and never planned is no loss where its device says why: a
    cell of it is unsupported, or could not be decided, which is told by itself.

    :param complete: the run came to its end
    """
    share = Share((), foreseen)
    told = list(events)
    came = dict.fromkeys(
        share.foreseen(name) for event in told if isinstance(event, CellsPlanned) for name in event.cells
    )
    planned = dict.fromkeys(map(str, foreseen)) | came
    judged = {share.foreseen(event.planned) for event in told if isinstance(event, Judged)}
    missing = [name for name in planned if name not in judged]
    if complete:
        excused = _unable(event for event in told if isinstance(event, Judged))
        missing = [name for name in missing if name in came or CellKey.parse(name).row not in excused]
    return NightAccount(planned=len(judged) + len(missing), judged=len(judged), missing=tuple(missing))


def unfinished(foreseen: Sequence[CellKey], events: Iterable[Event]) -> list[CellKey]:
    """The cells that a run which was cut off has still to judge.

    A cell whose last look has a finding may have a further one before it; what was told of it is not told again.
    """
    share = Share((), foreseen)
    last = {share.foreseen(event.planned): event.cell.verdict for event in events if isinstance(event, Judged)}
    return [key for key in foreseen if str(key) not in last or last[str(key)].is_finding]


def _unable(judged: Iterable[Judged]) -> set[str]:
    """Rows with a cell that says why others never came."""
    return {
        CellKey.parse(event.planned).row
        for event in judged
        if event.cell.verdict is Verdict.UNSUPPORTED or event.cell.verdict.is_undecided
    }
