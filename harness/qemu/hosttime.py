# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the time that passed a process could use, and so could whoever waits for it.

Some ten times a second a thread of its own looks at a process, and at the clock:

=========================  ===========================================================================================
what is seen               what it means
=========================  ===========================================================================================
it looks too late          this program stood still: it was stopped, or the host was suspended or starved
state ``T`` or ``t``       somebody stopped the process, or a debugger holds it (``/proc/PID/stat``)
state ``D``                the kernel holds it, for a disk of the host's
run delay has grown        its threads were ready and got no CPU (second figure of ``/proc/PID/task/*/schedstat``)
run time has grown         it got on (first figure)
=========================  ===========================================================================================

Only the thread that waited longest counts: a QEMU is as slow as that one.
"""

from __future__ import annotations

import random
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from harness.deadline import Deadline, Lost

TICK_S = 0.1
#: A look that comes later than this shows that this program stood still; less is the scheduler's ordinary noise.
LATE_S = 0.5
_HELD = frozenset("TtD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A process at one moment.

    :param state: as ``/proc/PID/stat`` has it
    :param waited_s: thread to the seconds in which it was ready and had no CPU, since it began
    :param ran_s: seconds of CPU that its threads had
    """

    state: str
    waited_s: Mapping[int, float]
    ran_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """What became of the time of one process.

    :param passed_s: since it began
    :param stopped_s: it was stopped, or held by the kernel
    :param starved_s: it was ready and got no CPU
    :param stood_still_s: the longest time in which this program did not run
    :param pressure: share of the time in which something on this host waited for a CPU, where the kernel counts that
    """

    passed_s: float
    stopped_s: float
    starved_s: float
    stood_still_s: float
    pressure: float | None = None


def look_at(pid: int) -> Sight | None:
    """The process as it is now; None when it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        tasks = list((folder / "task").iterdir())
    except (OSError, IndexError):
        return None
    waited_s, ran_s = {}, 0.0
    for task in tasks:
        with suppress(OSError, IndexError, ValueError):  # a thread that ended, or a kernel that does not count
            ran_ns, waited_ns, _ = (task / "schedstat").read_text().split()
            waited_s[int(task.name)] = int(waited_ns) / 1e9
            ran_s += int(ran_ns) / 1e9
    return Sight(state=state, waited_s=waited_s, ran_s=ran_s)


def ran_s(pid: int) -> float:
    """Seconds of processor time that a process had; 0 when it is gone, or the kernel does not count."""
    sight = look_at(pid)
    return 0.0 if sight is None else sight.ran_s


#: What :func:`yardstick_s` packs, in bytes, and how often.
_YARD_BYTES, _YARD_TRIES = 200_000, 5


def yardstick_s() -> float:
    """How quick this host is now: seconds of processor time for a fixed piece of work, the least of some tries.

    No QEMU has a part in it, so that a QEMU that became slower is told from a host that did.
    """
    data = _yard()

    def once() -> float:
        began = time.thread_time()
        zlib.compress(data, 6)
        return time.thread_time() - began

    return min(once() for _ in range(_YARD_TRIES))


@cache
def _yard() -> bytes:
    """The same bytes everywhere, neither quite regular nor quite random."""
    return bytes(random.Random(1).choices(b"the state of a device", k=_YARD_BYTES))


def cpu_pressure_s() -> float | None:
    """Seconds in which something on this host waited for a CPU, since it booted (``/proc/pressure/cpu``)."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


class HostClock:
    """Follows one process from now on.

    A look is due every :data:`TICK_S`; whoever asks makes it when it is overdue, so that time in which this program
    stood still is known before anybody concludes something from it.

    :param look: sees the process
    :param clock: monotonic seconds
    :param pressure: see :func:`cpu_pressure_s`
    """

    def __init__(
        self,
        look: Callable[[], Sight | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        pressure: Callable[[], float | None] = cpu_pressure_s,
    ) -> None:
        self._look = look
        self._clock = clock
        self._pressure = pressure
        self._lock = Lock()
        self._over = Event()
        self._begun = self._last = clock()
        self._pressed = pressure()
        # what a process waited before it was followed was lost for nobody here
        seen = look()
        self._before: Mapping[int, float] = seen.waited_s if seen is not None else {}
        self._ran_s = seen.ran_s if seen is not None else 0.0
        self._total_s = self._held_s = self._in_a_row_s = 0.0
        self._stopped_s = self._starved_s = self._stood_still_s = 0.0
        self._end: HostTimes | None = None

    @classmethod
    def of(cls, pid: int) -> HostClock:
        """Follow a process, with a thread of its own, until :meth:`close`."""
        clock = cls(lambda: look_at(pid))
        Thread(target=clock._follow, name=f"postload-clock-{pid}", daemon=True).start()
        return clock

    def lost(self) -> Lost:
        """See :class:`harness.deadline.Clock`."""
        with self._lock:
            self._sample()
            return Lost(total_s=self._total_s, held_s=self._held_s, in_a_row_s=self._in_a_row_s)

    @property
    def times(self) -> HostTimes:
        """What became of the time, up to now or to the end."""
        with self._lock:
            self._sample()
            return self._end or self._times()

    def close(self) -> None:
        """The process is over, and its time with it."""
        self._over.set()
        with self._lock:
            self._sample()
            self._end = self._end or self._times()

    def _follow(self) -> None:
        while not self._over.wait(TICK_S):
            self.lost()

    def _times(self) -> HostTimes:
        passed_s = self._last - self._begun
        now = self._pressure()
        share = None if now is None or self._pressed is None or not passed_s else (now - self._pressed) / passed_s
        return HostTimes(
            passed_s=passed_s,
            stopped_s=self._stopped_s,
            starved_s=self._starved_s,
            stood_still_s=self._stood_still_s,
            pressure=share,
        )

    def _sample(self) -> None:
        now = self._clock()
        passed_s = now - self._last
        if self._end is not None or passed_s < TICK_S / 2:
            return
        seen = self._look()
        self._last = now
        still_s = passed_s - TICK_S if passed_s > LATE_S else 0.0
        self._stood_still_s = max(self._stood_still_s, still_s)
        held_s = 0.0
        if seen is not None and seen.state in _HELD:
            held_s = passed_s - still_s
            self._stopped_s += held_s
        elif seen is not None:
            starved_s = self._starved(seen)
            self._starved_s += starved_s
            held_s = max(0.0, starved_s - still_s)
        self._total_s += still_s + held_s
        self._held_s += held_s
        ran = seen is not None and seen.ran_s != self._ran_s
        self._ran_s = seen.ran_s if seen is not None else 0.0
        self._in_a_row_s = 0.0 if ran or not held_s else self._in_a_row_s + held_s

    def _starved(self, seen: Sight) -> float:
        """How long the thread that waited longest did since the last look."""
        waited_s = [after - self._before.get(thread, 0.0) for thread, after in seen.waited_s.items()]
        self._before = seen.waited_s
        return max(waited_s, default=0.0)


def run_watched(argv: Sequence[str], *, timeout_s: float, **how: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as ``subprocess.run`` does; time in which it could not run does not count.

    :param how: what ``subprocess.Popen`` takes
    :raises subprocess.TimeoutExpired: it did not end in time, and is killed
    :raises HinderedError: the host kept it from running for too long, and it is killed
    :raises OSError: it cannot be started
    """
    with subprocess.Popen(argv, **how) as child:
        clock = HostClock.of(child.pid)
        deadline = Deadline(timeout_s, clock)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    out, err = child.communicate(timeout=deadline.slice_s)
                    return subprocess.CompletedProcess(argv, child.returncode, out, err)
                if deadline.over:
                    raise subprocess.TimeoutExpired(argv, timeout_s)
        except BaseException:
            child.kill()
            raise
        finally:
            clock.close()
