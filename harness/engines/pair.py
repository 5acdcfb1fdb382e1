# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``pair``: a real primary and a real secondary, to confirm what the harness does as a primary.

The primary is brought into the recorded state and migrates with ``x-colo`` to a secondary of the same command line;
then COLO starts both guests, and the primary sends a checkpoint every ``x-checkpoint-delay``. The primary's guest
does not run before that. There is neither block replication nor a network proxy: nobody but the secondary's devices
is asked anything.

A secondary stops its guest for each checkpoint and starts it when the load is over
(``colo_incoming_process_checkpoint`` in ``migration/colo.c``), so its events STOP and RESUME count checkpoints
without trace points: a RESUME behind a STOP is a load that passed. The RESUME before the first STOP is the start
of COLO itself.

The guest goes on between the recording and a checkpoint, so what is loaded is that phase a moment later, whole:
sections cannot be left out. Both have some memory more than was recorded, without which a secondary gets old pages
under TCG, and its guest panics (see :mod:`harness.engines.spare`).

Under TCG a primary can hang by itself, seen on 7.2 and 10.0: its COLO thread synchronises dirty memory without the
big lock (``qemu_savevm_live_state`` in ``colo_do_checkpoint_transaction``), ``tcg_log_global_after_sync`` waits for
each CPU with ``run_on_cpu``, and waiting takes the lock and never gives it back. It does not wait when the CPU
thread is quicker. So the primary is kept on one host CPU, with its COLO thread in the scheduler's idle class: the
CPU thread, once woken, then goes first. A primary that hangs all the same is tried anew, and then leaves the control
undecided.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken, Dialect
from harness.colo.symptom import Sign, Symptom
from harness.deadline import Deadline
from harness.engines.evidence import DEATH_GRACE_S, Count, Evidence, OnLoads, break_at, evidence_of, own_words
from harness.engines.incoming import Incoming, State, drain_console
from harness.engines.secondary import capabilities, left_colo
from harness.errors import DeadlineError, QemuError
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.migrationstatus import stage_of
from harness.qemu.process import socket_path
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm

CHECKPOINT_DELAY_MS = 100
#: A checkpoint of a real pair sends the pages that its guest wrote; the first migration sends all of them.
PAIR_TIMEOUT_S = 30.0
_POLL_S = 0.01
_BANDWIDTH = 1 << 40
#: Without progress for so long, the primary is asked whether it is still there.
_STALL_S = 3.0
_ANSWER_S = 2.0
#: Names of the thread that migrates, of older and newer builds.
_MIGRATION_THREADS = ("live_migration", "migration", "mig/src")
_LISTENING = "00010000"  # __SO_ACCEPTCON in /proc/net/unix


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One pair of processes in one phase.

    :param state: of the primary; nothing may be excluded from it
    :param checkpoints: how many the secondary has to load
    :param delay_ms: ``x-checkpoint-delay``
    :param attempts: pairs that are tried when the primary fails by itself
    :param timeout_s: deadline for the migration, and for each checkpoint
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    binary: QemuBinary
    dialect: Dialect
    state: State
    checkpoints: int = 5
    delay_ms: int = CHECKPOINT_DELAY_MS
    attempts: int = 3
    timeout_s: float = PAIR_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """The evidence of the secondary; the last line of its log is the primary's fate.

        A break at load 0 is a secondary that COLO was never started in. When the primary fails or hangs and the
        secondary does not, loads are missing and nothing is broken, which is judged as undecided.

        :raises QemuError: a process does not start, or the primary cannot be brought into its state
        :raises Stopped: the run was told to stop
        """
        for _ in range(self.attempts):
            evidence = self._once(on_loads)
            if evidence.broken or evidence.loads_acked >= self.checkpoints:
                break
        return evidence

    def _once(self, on_loads: OnLoads) -> Evidence:
        machine = self.state.buffers.machine
        started = time.monotonic()
        with (
            Incoming(
                self.binary, machine, timeout_s=self.timeout_s, scope=self.scope, live=True, extra=(_THREAD_NAMES,)
            ) as primary,
            Incoming(self.binary, machine, timeout_s=self.timeout_s, scope=self.scope, live=True) as secondary,
        ):
            _bring_up(primary, self.state)
            watch = _Watch(self, primary.vm, secondary.vm, on_loads)
            broken = None
            try:
                self._start(primary.vm, secondary.vm)
                watch.until_done()
            except ChannelBroken as error:
                broken = break_at(error, watch.number, self.state.phase)
            except _PrimaryFailed:
                pass
            count = Count(asked=self.checkpoints, passed=watch.passed, load_seconds=watch.seconds)
            evidence = evidence_of(secondary.vm, count, broken, started)
            return replace(evidence, log=f"{evidence.log}\n{_fate(primary.vm)}".strip())

    def _start(self, primary: Vm, secondary: Vm) -> None:
        wanted = capabilities(self.dialect)
        told = {"capability": "events", "state": True}
        secondary.qmp("migrate-set-capabilities", capabilities=wanted)
        with socket_path(secondary.workdir / "pair.sock") as path:
            secondary.qmp("migrate-incoming", uri=f"unix:{path}")
            wait_listening(path, secondary, self.timeout_s)
            primary.qmp("migrate-set-capabilities", capabilities=[*wanted, told])
            primary.qmp("migrate-set-parameters", x_checkpoint_delay=self.delay_ms, max_bandwidth=_BANDWIDTH)
            primary.qmp("migrate", uri=f"unix:{path}")
            _wait_connected(primary, self.timeout_s)
        let_cpu_threads_go_first(primary.process.pid)


_THREAD_NAMES = Option(name="name", first="postload-primary", props={"debug-threads": True})


class _PrimaryFailed(Exception):
    """The primary failed, and its secondary did not."""


class _Watch:
    """Follows the secondary until it has loaded enough, or something is not well."""

    def __init__(self, owner: Pair, primary: Vm, secondary: Vm, on_loads: OnLoads) -> None:
        self._owner = owner
        self._primary = primary
        self._secondary = secondary
        self._on_loads = on_loads
        self.passed = 0
        self.begun = 0
        self.seconds = 0.0
        self._first: float | None = None
        self._progress()

    @property
    def number(self) -> int:
        """The load that was going on, or 0 when none had begun."""
        return self.begun if self.begun > self.passed else self.passed + 1 if self.begun else 0

    def until_done(self) -> None:
        """Return when enough checkpoints were loaded.

        :raises ChannelBroken: the secondary is not well
        """
        while self.passed < self._owner.checkpoints:
            self._owner.scope.check()
            drain_console(self._primary)
            drain_console(self._secondary)
            events = self._secondary.monitor.drain_events()
            if not self._count(events):
                self._check(events)
                time.sleep(_POLL_S)

    def _progress(self) -> None:
        """Something moved: both deadlines begin anew."""
        clocks = self._primary.process.clock, self._secondary.process.clock
        self._stall = Deadline(_STALL_S, *clocks)
        self._late = Deadline(self._owner.timeout_s, *clocks)

    def _count(self, events: list[dict[str, Any]]) -> bool:
        """Whether loads passed since the last time."""
        before = self.passed
        self.begun, self.passed = count_checkpoints(event["event"] for event in events)
        if self.begun and self._first is None:
            self._first = time.monotonic()
        if self.passed == before:
            return False
        self._progress()
        now = time.monotonic()
        self.seconds = now - (self._first or now)
        self._on_loads(self.passed - before)
        return True

    def _check(self, events: list[dict[str, Any]]) -> None:
        if self._secondary.ended():
            raise self._broken("closed", Symptom(sign=Sign.ENDED))
        left = left_colo(events)
        if left is not None:
            raise self._broken("refused", left)
        self._check_primary()
        if self._stall.over and not _answers(self._primary):
            raise _PrimaryFailed
        if self._late.over:
            raise self._broken("late", Symptom(sign=Sign.NO_CHECKPOINT, seconds=self._owner.timeout_s))

    def _check_primary(self) -> None:
        """A primary that gives up because its secondary dies must not be taken for the cause."""
        # by its events alone: while it waits for its secondary in a checkpoint it may answer no command
        events = self._primary.monitor.drain_events()
        if not self._primary.ended() and not _gave_up(events):
            return
        if self._secondary.ended(DEATH_GRACE_S):
            raise self._broken("closed", Symptom(sign=Sign.ENDED))
        left = left_colo(self._secondary.monitor.drain_events())
        if left is not None:
            raise self._broken("refused", left)
        raise _PrimaryFailed

    def _broken(self, kind: str, symptom: Symptom) -> ChannelBroken:
        step = Step.INCOMING if not self.begun else Step.LOAD if self.begun > self.passed else Step.REQUEST
        return ChannelBroken(step, kind, symptom)


def count_checkpoints(events: Iterable[str]) -> tuple[int, int]:
    """Checkpoints that a secondary began and finished, from the names of its events in order."""
    begun = passed = 0
    for event in events:
        if event == "STOP":
            begun += 1
        elif event == "RESUME":
            passed = begun
    return begun, passed


def let_cpu_threads_go_first(pid: int) -> None:
    """Keep a process on one CPU and put its migration thread, which COLO runs in, into the idle class."""
    with contextlib.suppress(OSError):
        usable = sorted(os.sched_getaffinity(pid))
        cpu = {usable[pid % len(usable)]}  # several pairs at a time shall not share one
        for task in Path(f"/proc/{pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            os.sched_setaffinity(int(task.name), cpu)
            if name.startswith(_MIGRATION_THREADS):
                os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


def _answers(vm: Vm) -> bool:
    try:
        vm.qmp("query-status", timeout_s=_ANSWER_S)
    except (QemuError, DeadlineError):
        return False
    return True


def _bring_up(primary: Incoming, state: State) -> None:
    try:
        primary.load(state)
    except ChannelBroken as error:
        said = own_words(primary.vm.process.stderr())
        raise QemuError(
            f"the primary of the pair cannot be brought into phase {state.phase}: {error}: {said}"
        ) from error


def _gave_up(events: Sequence[dict[str, Any]]) -> bool:
    return left_colo(events) is not None or any(
        event["event"] == "MIGRATION" and stage_of(event["data"]).bad for event in events
    )


def wait_listening(path: Path, vm: Vm, timeout_s: float) -> None:
    """11.1 answers ``migrate-incoming`` before it listens, and a real source tries but once.

    :raises QemuError: it does not listen within ``timeout_s``
    """
    deadline = vm.deadline(timeout_s)
    while not _listens(path, vm.process.pid):
        if vm.ended() or deadline.over:
            raise QemuError(f"QEMU does not listen for its incoming stream: {vm.process.stderr()[-400:]}")
        time.sleep(_POLL_S)


def _wait_connected(primary: Vm, timeout_s: float) -> None:
    """The name of the socket must live for as long as somebody may connect to it."""
    primary.monitor.poll_until("query-migrate", lambda info: stage_of(info).begun, timeout_s=timeout_s)


def _listens(path: Path, pid: int) -> bool:
    """Whether a unix socket of that name accepts connections: ``net/unix`` has flags in its fourth column.

    :param pid: who listens: behind walls it has a network of its own, and only there its socket is listed
    """
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()]
    except OSError:
        return False
    return any(row[-1] == str(path) and row[3] == _LISTENING for row in rows)


def _fate(primary: Vm) -> str:
    """Names and the words of QEMU: how it ended or that it is there, the reason of COLO_EXIT, what it printed."""
    ended = primary.ended()
    left = left_colo(primary.monitor.drain_events())
    how = [str(ended) if ended else "answers" if _answers(primary) else "no-answer"]
    how += [f"COLO_EXIT={left.said}"] if left is not None else []
    return f"primary: {', '.join([*how, *own_words(primary.process.stderr()).splitlines()[-3:]])}"
