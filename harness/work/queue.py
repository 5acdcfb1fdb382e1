# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a run is done next, and how much of it at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Queue(Generic[T]):
    """Gives out so many things at a time, the urgent ones first, else in the order in which they came.

    What waits most of its time takes no core: it is given out beside the others, as many at a time as these.

    :param jobs: how many at a time
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._number = count()
        self._due: dict[bool, list[tuple[tuple[int, ...], int, T]]] = {False: [], True: []}
        self._out = {False: 0, True: 0}

    def __bool__(self) -> bool:
        """Whether anything is left to be given out, or out."""
        return any(self._due.values()) or any(self._out.values())

    def add(self, thing: T, rank: tuple[int, ...], *, waits: bool = False) -> None:
        """One more thing to be done; the lowest rank goes first."""
        heapq.heappush(self._due[waits], (rank, next(self._number), thing))

    def take(self) -> Iterator[tuple[T, bool]]:
        """What may begin now, and whether it waits; each has to be given back by :meth:`done`."""
        for waits, due in self._due.items():
            while due and self._out[waits] < self._jobs:
                self._out[waits] += 1
                yield heapq.heappop(due)[-1], waits

    def done(self, *, waits: bool) -> None:
        """One that was taken is over."""
        self._out[waits] -= 1
