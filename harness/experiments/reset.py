# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reset before a load costs, in a secondary with a parked guest.

QEMU's processor time is measured, not the clock on the wall, so that what else runs on the host counts for nothing.

== =========== ============================================================================================
no figure      is measured as
== =========== ============================================================================================
1  ``reset``   the main thread's time from ``system_reset`` of a loaded machine that stands still to its event
               RESET, less what a query takes
2  ``load``    a checkpoint behind a checkpoint. Where the build resets before each: what a checkpoint takes
               longer whose buffer has the state twice
3  ``added``   ``reset`` and a checkpoint behind it, less ``load``. Where the build resets before each
               checkpoint: a checkpoint, less ``load``
4  ``parts``   of each device: 1 with the whole state loaded, less 1 without the device's sections, which are then
               as the reset before has left them
== =========== ============================================================================================

What 3 has too: translations that the reset throws away (TCG), memory that it writes and the checkpoint takes back,
and, where this program resets, the few instructions that the firmware runs before the checkpoint stops it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.colo.messages import Step
from harness.engines.evidence import ANSWER_TIMEOUT_S
from harness.engines.incoming import attempt
from harness.engines.reset import reset_stopped
from harness.engines.secondary import Secondary
from harness.engines.setting import Setting
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, label_of, sections_for, without

#: Pairs of measurements; a reset takes 5 to 20 ms, and so does a load behind it.
SAMPLES = 40
WARM_UP = 3
#: The interval holds the median with this probability.
CONFIDENCE = 0.99
#: ``CPUCLOCK_SCHED`` of ``linux/posix-timers_types.h``: the clock of all threads of a process, in nanoseconds.
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A median in milliseconds, with its 99 % interval."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetTimes:
    """What was measured in one secondary; see the table of this module.

    :param parts: device to its part of ``reset``
    :param samples: of each figure
    """

    phase: str
    samples: int
    reset: Span
    load: Span
    added: Span
    parts: Mapping[str, Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetCost(Setting):
    """Measures one phase.

    :param devices: device to the labels of its sections
    """

    devices: Mapping[str, Iterable[str]] = field(default_factory=dict)
    samples: int = SAMPLES

    def run(self) -> ResetTimes:
        """Measure all figures.

        :raises ChannelBroken: the secondary broke
        :raises QemuError: the secondary did not start
        :raises Stopped: the run was told to stop
        """
        with self.secondary(replace(self.buffers.machine, resettable=True)) as secondary:
            self.begin(secondary, GuestMode.PARKED)
            return _Stopwatch(self, secondary).times()


def span_of(values: Iterable[float]) -> Span:
    """The median of some values with its interval, which takes no shape of their distribution for granted.

    :raises ValueError: there are none
    """
    ordered = sorted(values)
    low, high = _ranks(len(ordered))
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return Span(low=round(ordered[low], 4), median=round(middle, 4), high=round(ordered[high], 4))


def _ranks(count: int) -> tuple[int, int]:
    """Of the values between which the median lies: as many are left out at each end as the binomial law allows."""
    if not count:
        raise ValueError("no values")
    below, left_out = 0.0, -1
    while left_out + 1 < count // 2:
        below += math.comb(count, left_out + 1) / 2**count
        if 2 * below > 1 - CONFIDENCE:
            break
        left_out += 1
    left_out = max(0, left_out)
    return left_out, count - 1 - left_out


class _Stopwatch:
    """The measurements in one secondary, whose guest is parked and has its phase."""

    def __init__(self, owner: ResetCost, secondary: Secondary) -> None:
        self._owner = owner
        self._secondary = secondary
        self._vm = secondary.vm
        self._sections = without(sections_for(owner.recording, GuestMode.PARKED), owner.excluded)
        self._whole = encode(self._sections)

    def times(self) -> ResetTimes:
        for _ in range(WARM_UP):
            self._checkpoint(self._whole)
            self._reset()
        rounds = [self._round() for _ in range(self._owner.samples)]
        own = {label_of(section) for section in self._sections}
        return ResetTimes(
            phase=self._owner.phase,
            samples=self._owner.samples,
            reset=span_of(each[0] for each in rounds),
            load=span_of(each[1] for each in rounds),
            added=span_of(each[2] for each in rounds),
            parts={
                device: self._part(frozenset(labels))
                for device, labels in self._owner.devices.items()
                if own & frozenset(labels)
            },
        )

    def _round(self) -> tuple[float, float, float]:
        """Reset, load and what the reset adds, in milliseconds."""
        self._checkpoint(self._whole)
        one = self._checkpoint(self._whole)
        if self._owner.resets:
            load = self._checkpoint(self._whole * 2) - one
            return self._reset(), load, one - load
        reset = self._reset()
        return reset, one, reset + self._checkpoint(self._whole) - one

    def _part(self, labels: frozenset[str]) -> Span:
        """Of a device: what its use adds to a reset."""
        rest = encode(without(self._sections, labels))
        values = []
        for _ in range(self._owner.samples):
            self._checkpoint(self._whole)
            used = self._reset()
            self._checkpoint(rest)
            values.append(used - self._reset())
        return span_of(values)

    def _checkpoint(self, devices: bytes) -> float:
        self._owner.scope.check()
        before = process_ms(self._vm)
        self._secondary.primary.checkpoint(devices)
        return process_ms(self._vm) - before

    def _reset(self) -> float:
        attempt(Step.REQUEST, self._vm, "stop", ANSWER_TIMEOUT_S)
        start = main_thread_ms(self._vm)
        attempt(Step.REQUEST, self._vm, "query-status", ANSWER_TIMEOUT_S)
        begun = main_thread_ms(self._vm)
        reset_stopped(self._vm, ANSWER_TIMEOUT_S)
        over = main_thread_ms(self._vm)
        attempt(Step.REQUEST, self._vm, "cont", ANSWER_TIMEOUT_S)
        return (over - begun) - (begun - start)


def process_ms(vm: Vm) -> float:
    """Processor time of all threads of a QEMU so far, in milliseconds."""
    return time.clock_gettime_ns((~vm.process.pid) << 3 | _CPUCLOCK_SCHED) / 1e6


def main_thread_ms(vm: Vm) -> float:
    """Processor time of a QEMU's main thread so far, in milliseconds; it makes the resets."""
    text = Path(f"/proc/{vm.process.pid}/task/{vm.process.pid}/schedstat").read_text()
    return int(text.split()[0]) / 1e6
