# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cells of a night come first: those that are likely to tell something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from harness.results.key import CellKey
from harness.store.compare import by_line
from harness.store.read import Glance, History
from harness.work.order import Order

#: How many runs are looked through for the last time that a cell was judged.
LOOKED_THROUGH = 30


class Urgency(IntEnum):
    """Why a cell comes when it does; what was judged by the same build waits from ``SEEN`` on, the oldest first."""

    FAILED = 0
    CHANGED = 1
    SEEN = 2


def order_of(history: History, cells: Sequence[CellKey], builds: Mapping[str, str]) -> Order:
    """What failed last time first, then what this build was never asked, then what was not judged for long.

    :param builds: hash of each QEMU of the night, by the label that cells have for it
    :raises HostError: the history cannot be read
    """
    last = _last_judged(history, {key.line for key in cells})
    return Order({str(key): _rank(last.get(key.line), builds.get(key.route.loader, "")) for key in cells})


def _rank(last: tuple[int, Sequence[Glance]] | None, build: str) -> int:
    if last is None:
        return Urgency.CHANGED
    ago, cells = last
    if any(cell.is_finding for cell in cells):
        return Urgency.FAILED
    if all(cell.loader != build for cell in cells):
        return Urgency.CHANGED
    return Urgency.SEEN + LOOKED_THROUGH - 1 - ago


def _last_judged(history: History, lines: set[str]) -> dict[str, tuple[int, Sequence[Glance]]]:
    """What each line came to when it was judged last, and how many runs ago that was; 0 is the last one."""
    found: dict[str, tuple[int, Sequence[Glance]]] = {}
    for ago, number in enumerate(history.numbers_before(None, LOOKED_THROUGH)):
        if len(found) == len(lines):
            break
        for line, cells in by_line(cell for cell in history.glances(number) if cell.is_judged).items():
            if line in lines:
                found.setdefault(line, (ago, cells))
    return found
