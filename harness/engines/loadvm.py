# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``loadvm``: a recorded state as an internal snapshot, loaded again and again after a reset.

``load_snapshot`` (``migration/savevm.c``) resets the machine before it loads, so nothing that a reset clears can
be stale. That reset is of kind ``snapshot-load`` (the reason in its event RESET): a device may by design do less in it
than in a cold one. Each phase is brought into a process by an ordinary migration and saved with ``savevm``; snapshots
live in the disk images, so that one process after the other adds its phase, and the last one loads them in turn.

``savevm`` wants every writable disk to hold snapshots: the raw scratch images of the guest become qcow2 ones of
the same size here, which a guest cannot tell apart. One more qcow2 node is there for machines without a disk.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Sign, Symptom
from harness.engines.buffers import Buffers
from harness.engines.evidence import ANSWER_TIMEOUT_S, Count, Evidence, OnLoads, break_at, evidence_of
from harness.engines.incoming import Incoming, State, attempt
from harness.engines.schedule import LoadPlan
from harness.errors import QemuError
from harness.guests.machine import DiskKind, Machine
from harness.qemu.binary import QemuBinary
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode

#: How long the guest runs between two loads.
RUN_S = 0.05
_QUIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadvm:
    """One walk over snapshots in one process.

    :param plan: its checkpoints are loaded in order; one that repeats is loaded as often
    :param mode: of the state that is saved; a parked guest runs no code between loads
    :param excluded: labels of sections left out when a phase is brought in; the snapshot holds all of them, in
        reset state
    :param run_s: how long the guest runs after each load
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    binary: QemuBinary
    buffers: Buffers
    plan: LoadPlan
    mode: GuestMode = GuestMode.RUNNING
    excluded: frozenset[str] = frozenset()
    run_s: float = RUN_S
    timeout_s: float = ANSWER_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """Load everything and say what happened. A break at load 0 is the state that could not be brought in.

        :raises QemuError: QEMU does not start, or does not take a snapshot
        :raises Stopped: the run was told to stop
        :raises HostError: no space for the images
        """
        images = new_workdir()
        try:
            machine = replace(self.buffers.machine, disks=DiskKind.SNAPSHOTS)
            machine.make_files(images)
            return self._run(machine, images, on_loads)
        finally:
            shutil.rmtree(images, ignore_errors=True)

    def _run(self, machine: Machine, images: Path, on_loads: OnLoads) -> Evidence:
        started = time.monotonic()
        phases = list(dict.fromkeys(checkpoint.phase for checkpoint in self.plan.checkpoints))
        for phase in phases:
            self._check_stop()
            with Incoming(self.binary, machine, timeout_s=self.timeout_s, scope=self.scope, images=images) as qemu:
                try:
                    qemu.load(State(buffers=self.buffers, phase=phase, mode=self.mode, excluded=self.excluded))
                except ChannelBroken as error:
                    none = Count(asked=self.plan.loads, passed=0)
                    return evidence_of(qemu.vm, none, break_at(error, 0, phase), started)
                _save(qemu.vm, phase, self.timeout_s)
                if phase == phases[-1]:
                    return self._load_all(qemu, on_loads, started)
                _quit(qemu.vm)
        raise QemuError("loadvm: no loads were asked for")

    def _load_all(self, qemu: Incoming, on_loads: OnLoads, started: float) -> Evidence:
        begun = time.monotonic()
        passed, broken = 0, None
        for phase in [c.phase for c in self.plan.checkpoints for _ in range(c.repeat)]:
            self._check_stop()
            try:
                self._load(qemu, phase)
            except ChannelBroken as error:
                broken = break_at(error, passed + 1, phase)
                break
            passed += 1
            on_loads(1)
        count = Count(asked=self.plan.loads, passed=passed, load_seconds=time.monotonic() - begun)
        return evidence_of(qemu.vm, count, broken, started)

    def _load(self, qemu: Incoming, phase: str) -> None:
        attempt(Step.REQUEST, qemu.vm, "stop", self.timeout_s)
        said = attempt(
            Step.LOAD, qemu.vm, "human-monitor-command", self.timeout_s, command_line=f"loadvm {_tag(phase)}"
        )
        if said.strip():
            refused = Symptom(sign=Sign.REFUSED, command="loadvm", said=said.strip())
            raise ChannelBroken(Step.LOAD, "refused", refused)
        qemu.resume(self.run_s)

    def _check_stop(self) -> None:
        self.scope.check()


def _tag(phase: str) -> str:
    return f"postload-{phase}"


def _save(vm: Vm, phase: str, timeout_s: float) -> None:
    # newer builds leave the disks of a machine that arrived stopped inactive until its guest is started; older
    # ones have no such command
    with contextlib.suppress(CommandRefused):
        vm.qmp("blockdev-set-active", active=True)
    said = vm.qmp("human-monitor-command", timeout_s, command_line=f"savevm {_tag(phase)}")
    if said.strip():
        raise QemuError(f"savevm: {said.strip()}")


def _quit(vm: Vm) -> None:
    """End it by itself, so that the images are written whole."""
    vm.qmp("quit")
    if vm.ended(_QUIT_TIMEOUT_S) is None:
        raise QemuError("QEMU did not quit after savevm")
