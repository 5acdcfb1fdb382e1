# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``colo``: load a schedule into one secondary and bring back the evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken, Dialect
from harness.engines.buffers import Buffers, Selection
from harness.engines.evidence import ANSWER_TIMEOUT_S, Break, Count, Evidence, OnLoads, break_at, evidence_of, own_words
from harness.engines.incoming import drain_console
from harness.engines.reset import reset_machine
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.engines.secondary import Secondary
from harness.packs.pack import incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state.transforms import GuestMode

#: What the deadline grows by for each load in one buffer; a load takes some 0.3 ms at most.
PER_LOAD_S = 0.05
_PROGRESS_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the guest runs after each load, in seconds; a parked guest is not waited for."""

    run_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of a schedule into one new secondary.

    :param absent: labels of sections that even the incoming stream leaves out, as this QEMU refuses them
    :param scope: of the run: owns its processes, and is told when it shall end
    :param reset_first: the machine is reset before each load, for a build that does not do that itself
    """

    binary: QemuBinary
    dialect: Dialect
    buffers: Buffers
    plan: LoadPlan
    selection: Selection
    mode: GuestMode
    absent: frozenset[str] = frozenset()
    pace: Pace = Pace()
    timeout_s: float = ANSWER_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)
    reset_first: bool = False

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """Load everything and say what happened; a secondary that dies is evidence.

        :param on_loads: told how many more loads were acknowledged, some ten times a second
        :raises QemuError: the secondary did not even start
        :raises Stopped: the run was told to stop
        """
        return in_turn([(self, on_loads)])[0]

    def turn(self, secondary: Secondary, on_loads: OnLoads, *, first: bool) -> Evidence:
        """Load everything into a secondary.

        :param first: nothing was loaded into it yet, not even its incoming stream
        """
        started = time.monotonic()
        vm, tally = secondary.vm, _Tally(on_loads)
        printed = None if first else vm.process.stderr_size()
        broken = self._load_all(secondary, tally, first=first)
        count = Count(
            asked=self.plan.loads,
            passed=tally.loads,
            checkpoints=tally.checkpoints,
            load_seconds=tally.seconds,
            warnings=tally.warnings(vm.process.stderr()),
        )
        return evidence_of(vm, count, broken, started, printed)

    def _load_all(self, secondary: Secondary, tally: _Tally, *, first: bool = True) -> Break | None:
        phase = self.plan.incoming
        try:
            if first:
                self._bring_in(secondary)
            tally.begin(secondary.vm.process.stderr_size())
            for checkpoint in self.plan.checkpoints:
                self._load(secondary, checkpoint, phase, tally)
                phase = checkpoint.phase
                tally.add(checkpoint.repeat)
                if self.pace.run_s and self.mode is GuestMode.RUNNING:
                    time.sleep(self.pace.run_s)
                    # a guest that has much to say would wait in the middle of a byte, which is no state of ours
                    drain_console(secondary.vm)
        except ChannelBroken as error:
            number = 0 if error.step is Step.INCOMING else tally.loads + 1
            at = self.plan.checkpoints[tally.checkpoints].phase if number else phase
            return break_at(error, number, at)
        else:
            tally.look(secondary.vm.process.stderr_size())
        finally:
            tally.end()
        return None

    def _bring_in(self, secondary: Secondary) -> None:
        recording = self.buffers.pack.recordings[self.plan.incoming]
        devices = self.buffers.whole_state(recording.name, self.mode, self.absent)
        secondary.start(recording.head, incoming_body(recording, self.buffers.ram_whole(recording.name), devices))

    def _load(self, secondary: Secondary, checkpoint: Checkpoint, before: str, tally: _Tally) -> None:
        if self.reset_first:
            reset_machine(secondary.vm, self.timeout_s)
        secondary.primary.request()
        # the secondary stops its guest meanwhile: what this process does here costs no time
        self.scope.check()
        tally.look(secondary.vm.process.stderr_size())
        first, own = self.buffers.parts(checkpoint.phase, self.mode, self.selection)
        behind = [own] * (checkpoint.repeat - 1 + self.selection.again) + self._last(secondary.primary.checkpoints)
        ram = self.buffers.ram_difference(checkpoint.phase, before)
        more_s = checkpoint.repeat * PER_LOAD_S
        secondary.primary.load(first, ram, behind=behind, more_s=more_s)

    def _last(self, _number: int) -> list[bytes]:
        """What stands last in the buffer of a checkpoint, counted from 0."""
        return []


def in_turn(sessions: Sequence[tuple[Session, OnLoads]]) -> list[Evidence]:
    """One session behind the other in one secondary, as long as that is well.

    :param sessions: who is told of the loads of each; all bring in the same, and several stay in one phase
    :return: the evidence of each that was begun; what broke a later one may be the doing of one before
    :raises QemuError: the secondary did not even start
    :raises Stopped: the run was told to stop
    """
    found: list[Evidence] = []
    like, _ = sessions[0]
    machine = replace(like.buffers.machine, resettable=like.reset_first)
    with Secondary(like.binary, machine, like.dialect, timeout_s=like.timeout_s, scope=like.scope) as secondary:
        for session, on_loads in sessions:
            found.append(session.turn(secondary, on_loads, first=not found))
            if found[-1].broken or found[-1].exit or found[-1].events:
                break
    return found


class _Tally:
    """Counts what was acknowledged and reports it now and then."""

    def __init__(self, on_loads: OnLoads) -> None:
        self.loads = 0
        self.checkpoints = 0
        self.seconds = 0.0
        self._on_loads = on_loads
        self._told = 0
        self._next = 0.0
        self._begun: float | None = None
        self._printed: list[tuple[int, int]] = []

    def begin(self, printed: int) -> None:
        self._begun = time.monotonic()
        self._printed.append((0, printed))

    def add(self, loads: int) -> None:
        """One more checkpoint was acknowledged."""
        self.loads += loads
        self.checkpoints += 1

    def look(self, printed: int) -> None:
        """Note how much was printed up to here, and tell of the loads now and then."""
        if printed > self._printed[-1][1]:
            self._printed.append((self.loads, printed))
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            self._tell()

    def warnings(self, stderr: str) -> tuple[tuple[int, str], ...]:
        """Lines by the load after which they were there; only while QEMU has printed less than is read back."""
        text = stderr.encode()
        found, start = [], 0
        for load, size in self._printed:
            found += [(load, line) for line in own_words(text[start:size].decode(errors="replace")).splitlines()]
            start = size
        return tuple((load, line.strip()) for load, line in found if line.strip())

    def end(self) -> None:
        if self._begun is not None:
            self.seconds = time.monotonic() - self._begun
        self._tell()

    def _tell(self) -> None:
        self._on_loads(self.loads - self._told)
        self._told = self.loads
