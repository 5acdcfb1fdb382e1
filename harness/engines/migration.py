# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``migration``: a real QEMU migrates a recorded guest to another real QEMU, without the harness between them.

The source is brought into the recorded state by an ordinary incoming stream and its guest runs for a moment; then it
migrates over a unix socket, live, as a management program would have it: nothing on that socket is the harness's.
It confirms what the harness found as a source, or does not. Both have one set of images, as with shared storage: the
destination opens them when the source has let go. Both have some memory more than was recorded, so that nothing of
what the guest writes meanwhile is lost under TCG (see :mod:`harness.engines.spare`).

What is loaded is that phase a moment later, whole: sections cannot be left out on the way.

With ``postcopy`` the source is slow at first, is told to start postcopy as soon as it is active, and from there on as
quick as it likes: nearly all memory then moves behind the guest. In the destination ``cont`` is for this engine to say
in both cases, so that the load and the start of the guest can be told apart.

A destination that refuses a device in the middle of postcopy does not always get to its end. Up to 10.1 two of its
threads call ``exit`` at once (``process_incoming_migration_co`` and ``postcopy_ram_listen_thread``), so that it dies
by a signal or stands still for ever, and the source, which is ``postcopy-active`` by then, does not fail but pauses:
of a dozen tries on 10.0.13 four ended with status 1, six by SIGSEGV and two not at all. All of them are refusals.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Sign, Symptom
from harness.deadline import Deadline
from harness.engines.evidence import DEATH_GRACE_S, Count, Evidence, OnLoads, break_at, evidence_of, own_words
from harness.engines.incoming import Incoming, State, attempt, drain_console, ended_in_postcopy
from harness.engines.pair import wait_listening
from harness.engines.postcopy import allow_postcopy
from harness.errors import DeadlineError, QemuError
from harness.qemu.binary import QemuBinary
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.process import new_workdir, socket_path
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm

#: How long the guest runs in the source before it leaves, and in the destination after it came.
RUN_S = 0.3
MIGRATION_TIMEOUT_S = 30.0
_POLL_S = 0.01
_STATUS_TIMEOUT_S = 2.0
_DOWNTIME_MS = 1000
_BANDWIDTH = 1 << 40
#: A source that sends so few bytes a second does not finish before it is told to start postcopy.
_SLOW_BANDWIDTH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RealMigration:
    """One guest, once, from one process to another.

    :param source: brings the guest up as the machine that was recorded
    :param destination: is the machine of ``state.buffers``, whose properties may have been changed
    :param postcopy: memory follows the guest; both sides must be able to (see
        :func:`~harness.engines.postcopy.probe_postcopy`)
    :param run_s: how long the guest runs in the source, and again in the destination
    :param timeout_s: deadline for the migration, and for each step before and after
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    source: QemuBinary
    destination: QemuBinary
    state: State
    postcopy: bool = False
    run_s: float = RUN_S
    timeout_s: float = MIGRATION_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """The evidence of the destination; the last line of its log is the source's fate.

        A break at INCOMING is the migration, at LOAD the device state of a postcopy that was started, at RESUME the
        guest's start or what came behind it. When the source fails and the destination does not, the load is
        missing and nothing is broken, which is judged as undecided.

        :raises QemuError: a process does not start, the source cannot be brought into its state or refuses to
            migrate, or one side cannot do postcopy
        :raises Stopped: the run was told to stop
        :raises HostError: no space for the images
        """
        images = new_workdir()
        try:
            self.state.buffers.pack.machine.make_files(images)
            evidence = self._run(images)
        finally:
            shutil.rmtree(images, ignore_errors=True)
        on_loads(evidence.loads_acked)
        return evidence

    def _run(self, images: Path) -> Evidence:
        started = time.monotonic()
        recorded, wanted = self.state.buffers.pack.machine, self.state.buffers.machine
        with (
            Incoming(
                self.source, recorded, timeout_s=self.timeout_s, scope=self.scope, images=images, live=True
            ) as source,
            Incoming(
                self.destination, wanted, timeout_s=self.timeout_s, scope=self.scope, images=images, live=True
            ) as destination,
        ):
            bring_up(source, self.state, self.run_s)
            move = _Move(self, source.vm, destination.vm)
            broken = None
            try:
                move.run()
                destination.resume(self.run_s)
                passed = 1
            except ChannelBroken as error:
                broken, passed = break_at(error, 1, self.state.phase), 0
            except _SourceFailed:
                passed = 0
            count = Count(asked=1, passed=passed, load_seconds=move.seconds)
            evidence = evidence_of(destination.vm, count, broken, started)
            return replace(evidence, log=f"{evidence.log}\n{_fate(source.vm)}".strip())


class _SourceFailed(Exception):
    """The source failed, and the destination did not."""


def bring_up(source: Incoming, state: State, run_s: float) -> None:
    """A source in the recorded state, its guest running.

    :raises QemuError: it cannot be brought there
    """
    try:
        source.load(state)
        source.resume(run_s)
    except ChannelBroken as error:
        said = own_words(source.vm.process.stderr())
        raise QemuError(f"the source cannot be brought into phase {state.phase}: {error}: {said}") from error


class _Move:
    """The migration itself."""

    def __init__(self, owner: RealMigration, source: Vm, destination: Vm) -> None:
        self._owner = owner
        self._source = source
        self._destination = destination
        self._step = Step.INCOMING
        self._begun = time.monotonic()
        self._deadline = Deadline(owner.timeout_s, source.process.clock, destination.process.clock)
        self.seconds = 0.0

    def run(self) -> None:
        """On return the guest is in the destination, and both sides say that they are done.

        :raises ChannelBroken: the destination failed
        :raises _SourceFailed: the source failed alone
        """
        self._start()
        if self._owner.postcopy:
            self._until(lambda: _stage(self._source).begun)
            self._source.qmp("migrate-start-postcopy")
            self._step = Step.LOAD
            self._until(self._switched)
            self._step = Step.RESUME
            attempt(Step.RESUME, self._destination, "cont", self._owner.timeout_s)
        self._until(lambda: _stage(self._source) is Stage.COMPLETED)
        self._until(lambda: _stage(self._destination) is Stage.COMPLETED)
        self.seconds = time.monotonic() - self._begun

    def _start(self) -> None:
        timeout_s = self._owner.timeout_s
        if self._owner.postcopy:
            allow_postcopy(self._destination)
            allow_postcopy(self._source)
        bandwidth = _SLOW_BANDWIDTH if self._owner.postcopy else _BANDWIDTH
        self._source.qmp("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=_DOWNTIME_MS)
        with socket_path(self._destination.workdir / "move.sock") as path:
            self._destination.qmp("migrate-incoming", uri=f"unix:{path}")
            wait_listening(path, self._destination, timeout_s)
            self._source.qmp("migrate", uri=f"unix:{path}")
            # the name must live until the source has connected to it
            self._until(lambda: _stage(self._source).begun)

    def _switched(self) -> bool:
        """Whether the destination has loaded its devices, and waits for the word to start its guest."""
        try:
            return bool(self._destination.qmp("query-status", _STATUS_TIMEOUT_S)["status"] != "inmigrate")
        except DeadlineError:
            return False

    def _until(self, done: Callable[[], bool]) -> None:
        while not self._try(done):
            self._owner.scope.check()
            drain_console(self._source)
            drain_console(self._destination)
            self._check()
            time.sleep(_POLL_S)

    def _try(self, done: Callable[[], bool]) -> bool:
        try:
            return done()
        except QemuError:
            # somebody died; who, is for _check to say
            return False

    def _check(self) -> None:
        self._check_destination()
        if self._source.ended() or self._bad(self._source):
            # the source hears of it first
            self._check_destination(DEATH_GRACE_S)
            if not _answers(self._destination):
                raise ChannelBroken(self._step, "refused", self._where(Sign.STUCK))
            raise _SourceFailed
        if self._deadline.over:
            raise ChannelBroken(self._step, "late", replace(self._where(Sign.NOT_DONE), seconds=self._owner.timeout_s))

    def _check_destination(self, within_s: float = 0.0) -> None:
        if self._destination.ended(within_s):
            raise ended_in_postcopy(self._step, self._destination)
        if self._bad(self._destination):
            raise ChannelBroken(self._step, "refused", self._where(Sign.MIGRATION_ENDED))

    def _bad(self, vm: Vm) -> bool:
        try:
            return _stage(vm).bad
        except QemuError:
            return False

    def _where(self, sign: Sign) -> Symptom:
        return Symptom(sign=sign, source=_status(self._source), status=_status(self._destination))


def _info(vm: Vm) -> dict[str, Any]:
    """What ``query-migrate`` says; empty when the main loop is busy.

    :raises QemuError: QEMU is gone
    """
    try:
        return dict(vm.qmp("query-migrate", _STATUS_TIMEOUT_S))
    except DeadlineError:
        return {}


def _stage(vm: Vm) -> Stage:
    return stage_of(_info(vm))


def _answers(vm: Vm) -> bool:
    try:
        vm.qmp("query-migrate", _STATUS_TIMEOUT_S)
    except (DeadlineError, QemuError):
        return False
    return True


def _status(vm: Vm) -> str:
    """Of its migration: ``none`` where it says nothing, ``gone`` where it is not there."""
    try:
        return str(_info(vm).get("status", "none"))
    except QemuError:
        return "gone"


def _fate(source: Vm) -> str:
    """Names and the words of QEMU: how it ended or its status, requests for pages, what it printed."""
    ended = source.ended()
    said = own_words(source.process.stderr()).splitlines()[-3:]
    return f"source: {', '.join([*([str(ended)] if ended else _story(source)), *said])}"


def _story(source: Vm) -> list[str]:
    try:
        info = source.qmp("query-migrate", _STATUS_TIMEOUT_S)
    except (DeadlineError, QemuError) as error:
        return ["no-answer", str(error)]
    requests = info.get("ram", {}).get("postcopy-requests")
    told = [str(info.get("status")), str(info.get("error-desc", "")), f"requests={requests}" if requests else ""]
    return [word for word in told if word]
