# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU under gdb that the host does not let run is not interrupted as one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.qemu.hosttime import look_at
from harness.triage.backtrace import _GdbWatch

TIMEOUT_S = 30.0
ANSWER_S = 0.3


class Launcher:
    """Of a gdb that does not come to an end by itself."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.sent: list[signal.Signals] = []

    def processes(self) -> tuple[int, ...]:
        return (self._pid,)

    def stopped(self) -> bool:
        return False

    def signal(self, number: signal.Signals) -> bool:
        self.sent.append(number)
        return True


@pytest.fixture
def process() -> Iterator[int]:
    """A process that is stopped."""
    with subprocess.Popen(["sleep", "60"]) as child:
        os.kill(child.pid, signal.SIGSTOP)
        end = time.monotonic() + TIMEOUT_S
        while (seen := look_at(child.pid)) is None or seen.state != "T":
            assert time.monotonic() < end
            time.sleep(0.01)
        yield child.pid
        child.kill()


@pytest.fixture
def watched(process: int) -> Iterator[Callable[..., Launcher]]:
    """Watches it with a deadline."""
    ends: list[tuple[_GdbWatch, threading.Thread]] = []

    def watch(timeout_s: float) -> Launcher:
        launcher: Any = Launcher(process)
        found = _GdbWatch(launcher, ANSWER_S, timeout_s)
        thread = threading.Thread(target=found.loop)
        thread.start()
        ends.append((found, thread))
        return launcher  # type: ignore[no-any-return]

    yield watch
    for found, thread in ends:
        found.done.set()
        thread.join(TIMEOUT_S)


def test_time_in_which_it_is_stopped_is_no_silence(process: int, watched: Callable[..., Launcher]) -> None:
    launcher = watched(TIMEOUT_S)
    time.sleep(5 * ANSWER_S)
    assert launcher.sent == []
    os.kill(process, signal.SIGCONT)
    end = time.monotonic() + TIMEOUT_S
    while not launcher.sent and time.monotonic() < end:
        time.sleep(0.01)
    assert launcher.sent == [signal.SIGINT]


def test_time_in_which_it_is_stopped_does_not_end_it(watched: Callable[..., Launcher]) -> None:
    launcher = watched(2 * ANSWER_S)
    time.sleep(5 * ANSWER_S)
    assert launcher.sent == []
