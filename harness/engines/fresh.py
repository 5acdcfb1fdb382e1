# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``fresh``: a recorded state into new processes, one load each.

A new process has nothing that a load could find stale. A load that breaks here fails by itself; one that passes
here and breaks a secondary does so because of what was in the process before.

The load and the start of the guest are two commands here, so this engine can tell them apart: a break at step
INCOMING is the load, one at step RESUME the start of the guest or the short while that it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness.colo.primary import ChannelBroken
from harness.engines.evidence import ANSWER_TIMEOUT_S, Break, Count, Evidence, OnLoads, break_at, evidence_of
from harness.engines.incoming import Incoming, State
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope

#: How long the guest lives after the load.
RUN_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """One state into ``processes`` new processes.

    :param run_s: how long the guest runs after each load
    :param timeout_s: deadline for each step of a process
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    binary: QemuBinary
    state: State
    processes: int = 3
    run_s: float = RUN_S
    timeout_s: float = ANSWER_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """All processes as one piece of evidence; one that dies does not keep the others from being tried.

        :raises QemuError: a process did not even start
        :raises Stopped: the run was told to stop
        """
        seen = []
        for evidence in self.each():
            seen.append(evidence)
            on_loads(evidence.loads_acked)
        return merge(seen)

    def each(self) -> Iterator[Evidence]:
        """The evidence of each process as it comes."""
        for number in range(1, self.processes + 1):
            self.scope.check()
            yield self._one(number)

    def _one(self, number: int) -> Evidence:
        started = time.monotonic()
        with Incoming(self.binary, self.state.buffers.machine, timeout_s=self.timeout_s, scope=self.scope) as qemu:
            launched = time.monotonic()
            loaded, broken = self._load(qemu, number)
            passed = 0 if broken else 1
            count = Count(asked=1, passed=passed, load_seconds=loaded - launched)
            return evidence_of(qemu.vm, count, broken, started)

    def _load(self, qemu: Incoming, number: int) -> tuple[float, Break | None]:
        """When the load was over, and where it broke."""
        loaded = None
        try:
            qemu.load(self.state)
            loaded = time.monotonic()
            qemu.resume(self.run_s)
        except ChannelBroken as error:
            return loaded or time.monotonic(), break_at(error, number, self.state.phase)
        return loaded, None


def merge(seen: Sequence[Evidence]) -> Evidence:
    """Several sessions as one: counts added up, what was seen taken from the first that was not well.

    :raises ValueError: there are none
    """
    if not seen:
        raise ValueError("no evidence to merge")
    telling = next((e for e in seen if e.broken or e.exit or e.events), seen[-1])
    return replace(
        telling,
        loads_asked=sum(e.loads_asked for e in seen),
        loads_acked=sum(e.loads_acked for e in seen),
        checkpoints_acked=sum(e.checkpoints_acked for e in seen),
        seconds=sum(e.seconds for e in seen),
        load_seconds=sum(e.load_seconds for e in seen),
    )
