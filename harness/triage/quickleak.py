# SPDX-License-Identifier: GPL-2.0-or-later
"""Does it still leak? A second for each answer, where the oracle takes ten: for the many tries of a reduction.

The section is loaded in equal batches; it leaks when the heap grows by enough in each of them. There is no framework,
no control and no interval: what a reduction ends with is measured by the oracle itself.
"""

from __future__ import annotations

import math
import time
from typing import Final

from harness.colo.primary import ChannelBroken
from harness.experiments.leak import LeakBench, _alive, _Item, _Kind, _Meter, tuned_secondary
from harness.experiments.memory import look_at_memory
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode

#: Loads of a batch, and how many batches are compared after a first one that is not counted.
BATCH_LOADS: Final = 1000
#: With one load a checkpoint: as few as leave so much behind that it cannot be noise.
ONCE_LOADS: Final = (20, 200)
ONCE_BYTES: Final = 4096
BATCHES: Final = 3
#: Looks after each batch: memory that waits for the RCU thread is still counted, so the smallest is taken.
_LOOKS = 2


def still_leaks(bench: LeakBench, label: str, wanted_bytes: float, *, once: bool) -> tuple[bool | None, int]:
    """Load one section and look whether the heap grows.

    :param wanted_bytes: growth for each load that counts
    :param once: one load in each checkpoint, as COLO does; else back to back
    :return: whether it leaks, None when the secondary broke or cannot be looked into, and the loads that were done
    :raises QemuError: the secondary did not start
    :raises Stopped: the bench was told to stop
    """
    if label not in bench.labels:
        return None, 0
    meter = _Meter(bench)
    devices, repeat = meter._buffer(_Item(_Kind.ONCE if once else _Kind.SECTION, label))
    least, most = ONCE_LOADS
    once_loads = max(least, min(most, math.ceil(ONCE_BYTES / wanted_bytes)))
    checkpoints = once_loads if once else math.ceil(BATCH_LOADS / repeat)
    growths: list[float] = []
    before: float | None = None
    try:
        with tuned_secondary(bench) as secondary:
            bench.begin(secondary, GuestMode.PARKED)
            for _ in range(BATCHES + 1):
                for _ in range(checkpoints):
                    meter.checkpoint(secondary, devices, repeat)
                now = _heap_bytes(secondary.vm, bench, meter._ram)
                if now is None:
                    return None, meter.acked
                if before is not None:
                    growths.append((now - before) / (checkpoints * repeat))
                    if growths[-1] < wanted_bytes:
                        break
                before = now
    except ChannelBroken:
        return None, meter.acked
    return min(growths) >= wanted_bytes, meter.acked


def _heap_bytes(vm: Vm, bench: LeakBench, ram: frozenset[int]) -> int | None:
    """The heap's size, None when it cannot be walked."""
    vm.monitor.drain_events().clear()
    seen: list[int] = []
    with _alive():
        for _ in range(_LOOKS):
            bench.scope.check()
            time.sleep(bench.budget.settle_s)
            look = look_at_memory(vm.process.pid, ram, walk=True)
            if look.heap_bytes is not None:
                seen.append(look.heap_bytes)
    return min(seen, default=None)
