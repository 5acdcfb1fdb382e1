# SPDX-License-Identifier: GPL-2.0-or-later
"""A deadline counts the time in which work could be done, and no other.

A host that was suspended, a program that was stopped, a QEMU that waited for a CPU: time goes on, and nobody could
have answered. :class:`Deadline` leaves that time out. What it leaves out is told by a :class:`Clock`, such as
:class:`harness.qemu.hosttime.HostClock` for one QEMU; without a clock it is an ordinary deadline.

No wait is endless: a QEMU that did not run at all for :data:`PATIENCE_S`, or that was kept from running for
:data:`LONGEST_S` within one wait, is given up, by an error that nobody takes for a hang. One that merely gets little
CPU gets on all the same, and needs many times as long.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from harness.errors import HinderedError

T = TypeVar("T")

#: How long one wait bears that a process does not run at all, while this program can. Longer than what a debugger, a
#: backup or a frozen container usually take.
PATIENCE_S = 45.0
#: How long it bears in all that a process could have run and did not.
LONGEST_S = 900.0
#: The longest that a blocking call may take before its deadline is looked at again.
SLICE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Time that does not count, since a clock began.

    :param total_s: all of it
    :param held_s: of that, the time in which this program itself could run, and waited
    :param in_a_row_s: of that, since the process ran last
    """

    total_s: float = 0.0
    held_s: float = 0.0
    in_a_row_s: float = 0.0


class Clock(Protocol):
    """Knows the time that does not count."""

    def lost(self) -> Lost:
        """All of it up to now."""


class Deadline:
    """One wait.

    :param timeout_s: seconds that count
    :param clocks: of those who are waited for; time that any of them lost does not count
    """

    def __init__(self, timeout_s: float, *clocks: Clock) -> None:
        self._timeout_s = timeout_s
        self._clocks = clocks
        self._before = [clock.lost() for clock in clocks]
        self._begun = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 when none are.

        :raises HinderedError: whoever is waited for was kept from running for too long
        """
        lost_s = held_s = in_a_row_s = 0.0
        for clock, before in zip(self._clocks, self._before, strict=True):
            now = clock.lost()
            lost_s += now.total_s - before.total_s
            held_s += now.held_s - before.held_s
            in_a_row_s = max(in_a_row_s, min(now.in_a_row_s, now.held_s - before.held_s))
        passed_s = time.monotonic() - self._begun
        left_s = max(0.0, self._timeout_s - max(0.0, passed_s - lost_s))
        if left_s and (in_a_row_s > PATIENCE_S or held_s > LONGEST_S):
            raise HinderedError(f"QEMU was kept from running for {held_s:.0f} s of {passed_s:.0f} s")
        return left_s

    @property
    def over(self) -> bool:
        """Whether no time is left.

        :raises HinderedError: see :attr:`left_s`
        """
        return self.left_s <= 0.0

    @property
    def slice_s(self) -> float:
        """How long a blocking call may take before it looks here again; never 0.

        :raises HinderedError: see :attr:`left_s`
        """
        return min(SLICE_S, max(self.left_s, 0.01))


def in_time(sock: socket.socket, deadline: Deadline, call: Callable[[], T]) -> T:
    """Repeat a call that blocks in a socket until it is done.

    :raises TimeoutError: the deadline is over
    :raises HinderedError: see :attr:`Deadline.left_s`
    """
    while True:
        sock.settimeout(deadline.slice_s)
        try:
            return call()
        except TimeoutError:
            if deadline.over:
                raise


def send_in_time(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Send all of it.

    :raises TimeoutError: it was not taken in time
    :raises OSError: the other side hung up
    """
    left = memoryview(data)
    while left:
        left = left[in_time(sock, deadline, partial(sock.send, left)) :]
