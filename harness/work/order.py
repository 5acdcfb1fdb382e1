# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cells of a run come first, where not all of them may have their turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.results.key import CellKey


class Order:
    """Ranks of cells: the lowest goes first. What has none is judged among the first.

    :param ranks: by key as text
    """

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self._ranks = ranks

    def of(self, cells: Iterable[CellKey]) -> int:
        """That of what brings some cells: of the most urgent of them."""
        return min((self._ranks.get(str(key), 0) for key in cells), default=0)
