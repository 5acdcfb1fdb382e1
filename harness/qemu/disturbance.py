# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host did while something was tried, and whether that makes the try worthless.

A device is judged by what a QEMU does with its state. Where the host stopped that QEMU, ended it, gave it no CPU or no
memory, or did not let this program run, nothing was judged. So whoever tries something does it within an
:func:`attempt`; each process that is started there tells its :class:`Account` how it fared. A try that the account
has :class:`Hindered` against, and that came to nothing good, is made again: by :func:`undisturbed`, or where cells are
judged by :class:`harness.work.worker.LocalWorker`. What is found in spite of a disturbance is never blamed on a device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from harness.errors import HarnessError, HinderedError, Stopped
from harness.qemu.hosttime import HostClock, HostTimes

T = TypeVar("T")

#: How often something is tried that the host disturbs.
TRIES = 3
#: Less is no reason to doubt a finding: a deadline does not count it, and a guest does not notice.
STOPPED_S = 1.0
STOOD_STILL_S = 5.0
STARVED_S = 1.0
#: Share of its time in which a QEMU got no CPU though it was ready.
STARVED_SHARE = 0.5
#: A device that asks for more than this did not run into the host's limits, but was told nonsense.
_SANE_BYTES = 1 << 30
_KMSG_BYTES = 8192


class Disturbance(StrEnum):
    """What the host did. The last three do not end a QEMU, they keep it from working."""

    ENDED = "ended"
    OUT_OF_MEMORY = "out-of-memory"
    STOPPED = "stopped"
    STOOD_STILL = "stood-still"
    STARVED = "starved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindered:
    """One thing that the host did.

    :param seconds: how long, where it took time
    :param signal: that ended QEMU
    :param said: by QEMU or the kernel: who sent the signal, what memory was not to be had
    :param share: of QEMU's time, for ``starved``
    :param pressure: share of that time in which something on this host waited for a CPU
    """

    how: Disturbance
    seconds: float | None = None
    signal: str | None = None
    said: str = ""
    share: float | None = None
    pressure: float | None = None
    kind: Literal["hindered"] = "hindered"

    @property
    def fatal(self) -> bool:
        """Whether a QEMU ended by it: then nothing at all can be said."""
        return self.how in (Disturbance.ENDED, Disturbance.OUT_OF_MEMORY)


class Disturbed(HinderedError):
    """Tried often enough, and disturbed each time.

    :param hindered: what the host did
    """

    def __init__(self, text: str, hindered: tuple[Hindered, ...]) -> None:
        super().__init__(text)
        self.hindered = hindered


def hindered_by(times: HostTimes) -> list[Hindered]:
    """What kept a process from working, as far as it matters."""
    found = []
    if times.stopped_s >= STOPPED_S:
        found.append(Hindered(how=Disturbance.STOPPED, seconds=round(times.stopped_s, 1)))
    if times.stood_still_s >= STOOD_STILL_S:
        found.append(Hindered(how=Disturbance.STOOD_STILL, seconds=round(times.stood_still_s, 1)))
    awake_s = times.passed_s - times.stopped_s
    if times.starved_s >= max(STARVED_S, STARVED_SHARE * awake_s):
        share, pressure = times.starved_s / max(awake_s, times.starved_s), times.pressure
        found.append(
            Hindered(
                how=Disturbance.STARVED,
                seconds=round(times.starved_s, 1),
                share=round(share, 2),
                pressure=None if pressure is None else round(min(1.0, pressure), 2),
            )
        )
    return found


#: ``qemu_kill_report`` in ``softmmu/runstate.c``.
_TOLD_TO_END = re.compile(r"terminating on signal (?P<number>\d+)(?: (?P<by>from pid \d+(?: \([^)\n]*\))?))?")
_NO_MEMORY = re.compile(
    r"cannot set up guest memory .*Cannot allocate memory|[Ff]ailed to allocate (?P<bytes>\d+) bytes|"
    r"Failed to allocate memory: Cannot allocate memory|qemu_thread_create: Resource temporarily unavailable"
)


def signal_told(stderr: str) -> tuple[int, str] | None:
    """The signal by which somebody told a QEMU to end, and who did; None where it ended by itself."""
    match = _TOLD_TO_END.search(stderr)
    return None if match is None else (int(match["number"]), match["by"] or "")


def ended_by_host(pid: int, signal: str | None, crashed: bool, stderr: str) -> Hindered | None:
    """Whether the host ended a process that this program did not end.

    :param signal: that it died of, or was told to end by
    :param crashed: by a signal that a process brings upon itself
    """
    memory = _NO_MEMORY.search(stderr)
    if memory is not None and int(memory["bytes"] or 0) <= _SANE_BYTES:
        return Hindered(how=Disturbance.OUT_OF_MEMORY, signal=signal, said=memory[0])
    if signal is None or crashed:
        return None
    if signal == "SIGKILL":
        oom = _kernel_says(f"Killed process {pid} ")
        return Hindered(how=Disturbance.OUT_OF_MEMORY if oom else Disturbance.ENDED, signal=signal, said=oom)
    told = signal_told(stderr)
    return Hindered(how=Disturbance.ENDED, signal=signal, said=told[1] if told else "")


def _kernel_says(text: str) -> str:
    """The last line of the kernel's log with a text in it; empty where there is none, or the log is not to be read."""
    found = ""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return found
    try:
        with suppress(BlockingIOError):
            while True:
                with suppress(BrokenPipeError):  # records were overwritten meanwhile
                    record = os.read(log, _KMSG_BYTES).decode(errors="replace")
                    found = record.partition(";")[2].partition("\n")[0] if text in record else found
    except OSError:
        return found
    finally:
        os.close(log)
    return found


class Account:
    """How the processes of one attempt fared.

    :param parent: of the attempt that this one is a part of; what happens here happened there too
    """

    def __init__(self, parent: Account | None = None) -> None:
        self._parent = parent
        self._clocks: list[HostClock] = []
        self._ends: list[Hindered] = []

    def follow(self, clock: HostClock) -> None:
        """A process was started."""
        self._clocks.append(clock)
        if self._parent is not None:
            self._parent.follow(clock)

    def ended(self, end: Hindered) -> None:
        """The host ended a process."""
        self._ends.append(end)
        if self._parent is not None:
            self._parent.ended(end)

    @property
    def hindered(self) -> tuple[Hindered, ...]:
        """What the host did: each end, and of what takes time the longest of each kind."""
        worst: dict[Disturbance, Hindered] = {}
        for each in (found for clock in self._clocks for found in hindered_by(clock.times)):
            if each.how not in worst or (each.seconds or 0.0) > (worst[each.how].seconds or 0.0):
                worst[each.how] = each
        return (*dict.fromkeys(self._ends), *(worst[how] for how in Disturbance if how in worst))


_CURRENT: ContextVar[Account | None] = ContextVar("postload_account", default=None)


@contextmanager
def attempt() -> Iterator[Account]:
    """Something is tried: what the host does to processes that this thread starts meanwhile is written down."""
    account = Account(_CURRENT.get())
    token = _CURRENT.set(account)
    try:
        yield account
    finally:
        _CURRENT.reset(token)


def current_account() -> Account:
    """The account of the attempt that goes on in this thread; one that nobody reads when there is none."""
    return _CURRENT.get() or Account()


Hindrances = tuple[Hindered, ...]


def only_slow(hindered: Hindrances) -> bool:
    """Whether nothing was done but to give a QEMU little CPU."""
    return all(each.how is Disturbance.STARVED for each in hindered)


def undisturbed(work: Callable[[], T], void: Callable[[T, Hindrances], bool] = lambda *_: False) -> T:
    """Do some work, again where the host disturbed it so that it came to nothing.

    Who merely gets little CPU is slow, and every wait counts that: what fails in each try for no other reason fails.

    :param void: whether a result says nothing after what the host did, which was something
    :raises Disturbed: it was disturbed each time; a part of it that was is not tried anew
    :raises HarnessError: what the work raises undisturbed
    """
    for left in reversed(range(TRIES)):
        with attempt() as account:
            said = ""
            try:
                result = work()
                if not account.hindered or not void(result, account.hindered):
                    return result
            except (Stopped, Disturbed):
                raise
            except HarnessError as error:
                slow = only_slow(account.hindered) and not isinstance(error, HinderedError)
                if not account.hindered or (slow and not left):
                    raise
                said = str(error)
    raise Disturbed(said or "it could not be tried undisturbed", account.hindered)
