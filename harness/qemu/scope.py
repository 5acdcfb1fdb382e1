# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of one run: who starts a QEMU is given the scope that it belongs to.

Several runs live in one process. Each has a :class:`ProcessScope`; to stop one run is to stop its scope, and the
processes of the others are not even known there. There is no list of all processes on purpose.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from types import TracebackType

from harness.errors import Stopped


class ProcessScope:
    """Owns the processes of a run, and says whether the run shall go on. Safe to use from several threads.

    A scope ends in one of two ways: :meth:`stop` asks, so that whoever looks at it by :meth:`check` or :meth:`wait`
    ends in an orderly way; :meth:`close` asks, kills every process, and lets no other one be started. It is a
    context manager that closes it.

    :param parent: closing that one closes this one
    """

    def __init__(self, parent: ProcessScope | None = None) -> None:
        self._lock = threading.Lock()
        self._told = threading.Event()
        self._closed = False
        self._live: set[subprocess.Popen[bytes]] = set()
        self._parts: set[ProcessScope] = set()
        self._parent = parent
        if parent is not None:
            parent._join(self)

    @property
    def stopped(self) -> bool:
        """Whether the run was told to stop."""
        return self._told.is_set()

    @property
    def processes(self) -> int:
        """How many of its processes are not reaped yet."""
        with self._lock:
            return len(self._live)

    def check(self) -> None:
        """Do nothing while the run goes on.

        :raises Stopped: it was told to stop
        """
        if self.stopped:
            raise Stopped("stopped")

    def wait(self, timeout_s: float) -> bool:
        """Sleep, at most until the run is told to stop; whether it was."""
        return self._told.wait(timeout_s)

    def stop(self) -> None:
        """Ask the run, and the runs within it, to end; no process is touched."""
        self._told.set()
        with self._lock:
            parts = list(self._parts)
        for part in parts:
            part.stop()

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process over that was just started.

        :raises Stopped: the scope is closed; the process was killed
        """
        with self._lock:
            if not self._closed:
                self._live.add(process)
                return
        process.kill()
        process.wait()
        raise Stopped("stopped")

    def discard(self, process: subprocess.Popen[bytes]) -> None:
        """Forget a process that was reaped."""
        with self._lock:
            self._live.discard(process)

    def close(self) -> None:
        """Stop the run and kill its processes; none can be started afterwards. Again is as good as once."""
        self.stop()
        with self._lock:
            self._closed = True
            live, parts = list(self._live), list(self._parts)
            self._parts.clear()
        for process in live:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for part in parts:
            part.close()
        if self._parent is not None:
            self._parent._leave(self)

    def _join(self, part: ProcessScope) -> None:
        with self._lock:
            closed = self._closed
            if not closed:
                self._parts.add(part)
        if closed:
            part.close()

    def _leave(self, part: ProcessScope) -> None:
        with self._lock:
            self._parts.discard(part)

    def __enter__(self) -> ProcessScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
