# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a run is done next, and how much of it at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from enum import Enum
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Takes(Enum):
    """What something takes of the processor while it is out."""

    #: A core: loads.
    CORE = "core"
    #: Half of one: a guest that is recorded waits for its devices.
    HALF = "half"
    #: Next to nothing: it waits most of its time.
    NOTHING = "nothing"


def most_out(jobs: int) -> int:
    """How many things can be out at a time."""
    return 2 * jobs + 1


class Queue(Generic[T]):
    """Gives out so many things at a time, the urgent ones first, else in the order in which they came.

    Of those that take half a core one is given out beside the others, where there are two cores or more: with one it
    would take from the other what both need. What takes none is given out beside all, as many at a time as there are
    cores.

    :param jobs: how many cores are to be used
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._number = count()
        self._due: dict[Takes, list[tuple[tuple[int, ...], int, T]]] = {takes: [] for takes in Takes}
        self._out = dict.fromkeys(Takes, 0)

    def __bool__(self) -> bool:
        """Whether anything is left to be given out, or out."""
        return any(self._due.values()) or any(self._out.values())

    def add(self, thing: T, rank: tuple[int, ...], takes: Takes = Takes.CORE) -> None:
        """One more thing to be done; the lowest rank goes first."""
        heapq.heappush(self._due[takes], (rank, next(self._number), thing))

    def take(self, *, hold: bool = False) -> Iterator[tuple[T, Takes]]:
        """What may begin now, and what it takes; each has to be given back by :meth:`done`.

        :param hold: nothing that takes half a core begins
        """
        for takes, due in self._due.items():
            while due and self._has_room(takes) and not (hold and takes is Takes.HALF):
                self._out[takes] += 1
                yield heapq.heappop(due)[-1], takes

    def done(self, takes: Takes) -> None:
        """One that was taken is over."""
        self._out[takes] -= 1

    def _has_room(self, takes: Takes) -> bool:
        if takes is Takes.NOTHING:
            return self._out[takes] < self._jobs
        together = self._out[Takes.CORE] + self._out[Takes.HALF]
        beside = self._jobs > 1 and (takes is Takes.HALF or self._out[Takes.HALF] > 0)
        return together < self._jobs + beside
