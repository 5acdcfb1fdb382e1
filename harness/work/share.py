# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a run's cells that is judged in one place, while others judge the rest.

Which cells there are is known before anything is started, but for a few: a device that does not get to a phase has its
leaks looked for in another one. Such a cell stands for one that was foreseen, and so is some part's in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from harness.results.key import CellKey


class Share:
    """Some of the cells that a run was foreseen to have.

    :param mine: the cells of this part
    :param every: the cells of all parts, in one order for all of them
    """

    def __init__(self, mine: Iterable[CellKey], every: Iterable[CellKey]) -> None:
        self._mine = {str(key) for key in mine}
        self._rows = {CellKey.parse(name).row for name in self._mine}
        self._every: set[str] = set()
        self._first: dict[tuple[str, ...], str] = {}
        for key in every:
            name = str(key)
            self._every.add(name)
            self._first.setdefault((key.row, key.lane, key.guest_mode), name)
            self._first.setdefault((key.row,), name)

    def __len__(self) -> int:
        return len(self._mine)

    def has(self, cell: str) -> bool:
        """Whether a cell is judged here."""
        return self.foreseen(cell) in self._mine

    def has_row(self, key: CellKey, devices: Collection[str]) -> bool:
        """Whether some devices of a machine have a cell that is judged here.

        :param key: of any cell of the machine
        """
        return any(replace(key, device=device).row in self._rows for device in devices)

    def foreseen(self, cell: str) -> str:
        """The cell that was foreseen where this one came: itself, or one of its device and lane, or of its device."""
        if cell in self._every:
            return cell
        key = replace(CellKey.parse(cell), rest=0)
        by_lane = self._first.get((key.row, key.lane, key.guest_mode)) if str(key) not in self._every else str(key)
        return by_lane or self._first.get((key.row,), cell)
