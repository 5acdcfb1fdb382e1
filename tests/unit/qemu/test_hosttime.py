# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the time of a process: from made-up looks, and from real children that are stopped and starved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from harness.qemu.hosttime import HostClock, HostTimes, Sight, cpu_pressure_s, look_at, ran_s, yardstick_s

GENEROUS_S = 30.0


class World:
    """A process that is looked at, and a clock that goes on as told."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.pressed_s: float | None = 5.0
        self.sight: Sight | None = Sight(state="S", waited_s={1: 2.0, 2: 9.0})
        self.clock = HostClock(lambda: self.sight, clock=lambda: self.now_s, pressure=lambda: self.pressed_s)
        self.before = self.clock.times

    def passes(self, seconds: float, state: str = "S", **waited_s: float) -> None:
        """Some time, at whose end the process is seen; ``t1`` is how long thread 1 waited in it."""
        assert self.sight is not None
        grown = {thread: was + waited_s.get(f"t{thread}", 0.0) for thread, was in self.sight.waited_s.items()}
        self.now_s += seconds
        self.sight = Sight(state=state, waited_s=grown, ran_s=self.sight.ran_s + waited_s.get("ran", 0.0))
        self.clock.lost()

    @property
    def lost(self) -> tuple[float, float]:
        now = self.clock.lost()
        return round(now.total_s - self.begun[0], 3), round(now.held_s - self.begun[1], 3)

    begun = (0.0, 0.0)

    def begin(self) -> World:
        now = self.clock.lost()
        self.begun = now.total_s, now.held_s
        return self


@pytest.fixture
def world() -> World:
    return World().begin()


def test_a_process_that_sleeps_or_runs_loses_nothing(world: World) -> None:
    for state in "SRSR":
        world.passes(0.1, state)
    assert world.lost == (0.0, 0.0)


@pytest.mark.parametrize("state", ["T", "t", "D"])
def test_one_that_is_stopped_loses_the_time(world: World, state: str) -> None:
    for _ in range(30):
        world.passes(0.1, state)
    world.passes(0.1)
    assert world.lost == (3.0, 3.0)
    assert world.clock.times.stopped_s == pytest.approx(3.0)


def test_a_look_that_comes_late_shows_that_this_program_stood_still(world: World) -> None:
    world.passes(0.4)
    assert world.lost == (0.0, 0.0)
    world.passes(25.1)
    world.passes(6.1)
    assert world.lost == (31.0, 0.0)
    assert world.clock.times.stood_still_s == pytest.approx(25.0)


def test_both_at_once_count_once(world: World) -> None:
    world.passes(10.1, "T")
    assert world.lost == (10.1, 0.1)
    world.passes(10.1, t1=9.5)
    assert world.lost == (20.1, 0.1)


def test_what_it_waited_before_it_was_followed_is_not_lost() -> None:
    world = World()
    world.passes(0.1)
    assert world.lost == (0.0, 0.0)


def test_the_thread_that_waited_longest_counts(world: World) -> None:
    world.passes(0.1, t1=0.05, t2=0.08)
    world.passes(0.1, t1=0.09, t2=0.02)
    assert world.lost == (0.17, 0.17)
    assert world.clock.times.starved_s - world.before.starved_s == pytest.approx(0.17)


def test_one_that_runs_now_and_then_is_not_held_in_a_row(world: World) -> None:
    for _ in range(3):
        world.passes(0.1, t1=0.1)
    assert world.clock.lost().in_a_row_s == pytest.approx(0.3)
    world.passes(0.1, t1=0.09, ran=0.01)
    assert world.clock.lost().in_a_row_s == 0.0
    world.passes(0.1, "T")
    assert world.clock.lost().in_a_row_s == pytest.approx(0.1)
    world.passes(0.1)
    assert world.clock.lost().in_a_row_s == 0.0


def test_one_that_is_gone_or_not_counted_loses_nothing_more(world: World) -> None:
    world.sight = None
    world.now_s += 0.1
    assert world.lost == (0.0, 0.0)
    world.sight = Sight(state="S", waited_s={})
    world.now_s += 0.1
    assert world.lost == (0.0, 0.0)


def test_its_time_ends_with_it(world: World) -> None:
    world.pressed_s = 5.05
    world.passes(0.1)
    world.clock.close()
    ended = world.clock.times
    assert ended.pressure == pytest.approx(0.5)
    assert ended.passed_s == pytest.approx(0.1)
    world.passes(60.0, "T")
    world.clock.close()
    assert world.clock.times == ended


def test_a_kernel_that_counts_no_pressure_has_none() -> None:
    world = World()
    world.pressed_s = None
    assert world.clock.times.pressure is None


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that works and no more: one that still starts is held by the kernel while its files are read."""
    program = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def until(clock: HostClock, done: Callable[[HostTimes], bool]) -> HostTimes:
    end = time.monotonic() + GENEROUS_S
    while not done(clock.times):
        assert time.monotonic() < end, clock.times
        time.sleep(0.05)
    return clock.times


def test_a_real_process_that_is_stopped(child: subprocess.Popen[bytes]) -> None:
    clock = HostClock.of(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    seen = until(clock, lambda times: times.stopped_s >= 0.5)
    assert seen.stopped_s <= seen.passed_s
    os.kill(child.pid, signal.SIGCONT)
    clock.close()


@pytest.mark.skipif(look_at(os.getpid()) is None, reason="no /proc")
def test_a_real_process_that_gets_no_cpu(child: subprocess.Popen[bytes]) -> None:
    one = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(child.pid, one)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    clock = HostClock.of(child.pid)
    try:
        for other in others:
            os.sched_setaffinity(other.pid, one)
        seen = until(clock, lambda times: times.starved_s >= 0.5)
    finally:
        clock.close()
        for other in others:
            other.kill()
            other.wait()
    assert seen.stopped_s == 0.0


def test_what_is_gone_is_not_seen(child: subprocess.Popen[bytes]) -> None:
    seen = look_at(child.pid)
    assert seen is not None
    assert seen.state in "RS"
    assert child.pid in seen.waited_s
    child.kill()
    child.wait()
    assert look_at(child.pid) is None


def test_pressure_is_counted_in_seconds() -> None:
    before, after = cpu_pressure_s(), cpu_pressure_s()
    assert (before is None) == (after is None)
    assert before is None or after is None or 0.0 <= before <= after


def test_the_processor_time_of_a_process_grows_while_it_works() -> None:
    before = ran_s(os.getpid())
    taken = yardstick_s()
    assert ran_s(os.getpid()) - before >= taken > 0


def test_a_process_that_is_gone_had_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert ran_s(child.pid) == 0
