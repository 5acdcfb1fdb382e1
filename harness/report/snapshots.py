# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of a run that still goes on: written now and then, never at more than a small share of its time and bytes.

They are for who looks at the folder meanwhile. Nothing is lost with them: the cells are in ``cells.jsonl``, and
``postload report`` makes reports of it at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.report.writer import write_reports
from harness.results.document import MatrixDoc
from harness.results.events import Event, Judged

INTERVAL_S = 10.0
#: A writing is followed by at least so many times its own length without one: 5 % of the time at most.
REST = 19
#: All of them together write at most so many times what the events take, and what a small run may write anyway.
SHARE_OF_EVENTS = 0.5
FREE_BYTES = 4_000_000


class Snapshots:
    """Writes all reports after the first cell, and later whenever time and bytes allow.

    :param document: the run so far
    :param events_bytes: size of the run's events so far
    :param clock: seconds that only go up, for tests
    """

    def __init__(
        self,
        out: Path,
        document: Callable[[], MatrixDoc],
        events_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._document = document
        self._events_bytes = events_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._cells = 0
        self._last_cells = 1
        self._last_bytes = 0
        self._due_s = clock()
        self.written_bytes = 0

    def take(self, event: Event) -> None:
        """Write if it is time to; one thread at a time, the others go on.

        :raises HostError: the reports cannot be written; earlier ones are still whole
        """
        if not isinstance(event, Judged):
            return
        self._cells += 1
        if self._clock() < self._due_s or not self._lock.acquire(blocking=False):
            return
        try:
            if self._affordable():
                self._write()
        finally:
            self._lock.release()

    def _affordable(self) -> bool:
        expected = self._last_bytes * self._cells / self._last_cells
        return self.written_bytes + expected <= FREE_BYTES + SHARE_OF_EVENTS * self._events_bytes()

    def _write(self) -> None:
        began_s, cells = self._clock(), self._cells
        paths = write_reports(self._document(), self._out)
        ended_s = self._clock()
        self._due_s = ended_s + max(INTERVAL_S, REST * (ended_s - began_s))
        self._last_cells, self._last_bytes = cells, sum(path.stat().st_size for path in paths)
        self.written_bytes += self._last_bytes
