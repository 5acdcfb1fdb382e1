# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiment: load checkpoints into a secondary whose guest runs, fail over, and ask the guest how it is.

The loads rewind the guest to the recorded moment again and again. Then ``x-colo-lost-heartbeat`` ends COLO, the
guest goes on by itself, and its own shell on the serial line says whether clock, disks, network and kernel are
well. Whether they are is for :mod:`harness.oracles.guestfault`; here it is only written down.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Symptom
from harness.devices.device import Device
from harness.engines.evidence import DEATH_GRACE_S, Break, end_within, guest_ends, symptom_of
from harness.engines.secondary import Secondary, end_colo
from harness.engines.setting import Setting
from harness.errors import DeadlineError, QemuError
from harness.experiments.interview import (
    CHECK_TIMEOUT_S,
    After,
    Answers,
    GuestClock,
    Interview,
    LifeCheck,
    recorded_devices,
    unbound_devices,
)
from harness.guests.machine import DiskKind
from harness.qemu.process import Exit
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, without

__all__ = ["CHECK_TIMEOUT_S", "GuestClock", "GuestLife", "LifeCheck", "guest_life"]

LOADS = 30
#: How long the guest runs after each load.
RUN_S = 0.01


class DisksWhy(StrEnum):
    """Why disks were not arranged as replication."""

    ASKED = "asked-for"
    ONE_LOAD = "one-load"  # nothing is rewound
    NO_START = "replication-did-not-start"
    INCOMING = "incoming-stream-broke"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLife:
    """What was seen of one guest.

    :param unasked: those of them whose recipe has nothing to ask
    :param kernel_names: device to regular expressions for what the guest's kernel calls it
    :param disks: how its disks were arranged, ``disks_why`` why not as replication, and ``disks_said`` what QEMU said
    :param broken: where the loads broke; then nothing else was asked
    :param exit: how QEMU ended by itself, None when it was still there
    :param events: names of QMP events of the guest's end
    :param failover: why the failover did not end, None where it did
    :param stuck: where the guest's console did not answer as it should, None where it did
    :param clocks: first and last reading; fewer when the guest did not answer
    :param kernel_log: lines behind the mark of the recording
    :param log: what QEMU printed
    :param after: what had brought the guest to run
    """

    phase: str
    devices: tuple[str, ...]
    kernel_names: Mapping[str, tuple[str, ...]]
    disks: DiskKind
    unasked: tuple[str, ...] = ()
    disks_why: DisksWhy | None = None
    disks_said: str = ""
    loads_asked: int
    loads_acked: int
    broken: Break | None = None
    exit: Exit | None = None
    events: tuple[str, ...] = ()
    failover: Symptom | None = None
    stuck: Symptom | None = None
    clocks: tuple[GuestClock, ...] = ()
    checks: tuple[LifeCheck, ...] = ()
    kernel_log: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0
    after: After = After.FAILOVER


def guest_life(
    setting: Setting,
    *,
    devices: Iterable[Device] | None = None,
    loads: int = LOADS,
    run_s: float = RUN_S,
    last: str | None = None,
    check_timeout_s: float = CHECK_TIMEOUT_S,
    disks: DiskKind = DiskKind.REPLICATION,
) -> GuestLife:
    """Load a phase into a secondary ``loads`` times, fail over, and see how its guest is.

    Where the build resets before each load, every buffer holds the whole state, and a second time behind it what is not
    excluded, for devices in use.

    :param devices: instead of those that the pack was recorded with, as it says itself
    :param last: another recording for the last checkpoint, for controls
    :param check_timeout_s: how long one device's check may take
    :param disks: falls back to plain where the build has no replication; the result says so
    :raises QemuError: the secondary did not even start
    :raises Stopped: the run was told to stop
    """
    interview = Interview(
        plan=setting.buffers.pack.manifest.plan,
        phase=setting.phase,
        devices=recorded_devices(setting.buffers.pack, devices),
        silent=unbound_devices(setting.buffers.pack, setting.phase),
        scope=setting.scope,
        check_timeout_s=check_timeout_s,
    )
    last = last or setting.phase
    experiment = _Experiment.of(setting, interview=interview, loads=loads, run_s=run_s, last=last)
    if disks is DiskKind.PLAIN:
        return experiment.run(DiskKind.PLAIN, DisksWhy.ASKED)
    try:
        life = experiment.run(DiskKind.REPLICATION)
    except QemuError as error:
        return experiment.run(DiskKind.PLAIN, DisksWhy.NO_START, _last_line(str(error)))
    if life.broken and life.broken.step is Step.INCOMING:
        return experiment.run(DiskKind.PLAIN, DisksWhy.INCOMING, _last_line(life.log) or str(life.broken.symptom))
    return life


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What a run has come to so far."""

    loads: int = 0
    broken: Break | None = None
    exit: Exit | None = None
    events: tuple[str, ...] = ()
    failover: Symptom | None = None
    answers: Answers = field(default_factory=Answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experiment(Setting):
    interview: Interview
    loads: int
    run_s: float
    last: str

    def run(self, disks: DiskKind, why: DisksWhy | None = None, said: str = "") -> GuestLife:
        started = time.monotonic()
        pack = self.buffers.pack
        machine = self.interview.machine(self.buffers.machine, disks)
        seen = _Seen()
        with self.secondary(machine) as secondary:
            self._load_all(secondary, seen)
            if seen.broken is None:
                self._live(secondary, seen)
            seen.exit = end_within(secondary.vm, _grace_s(seen))
            if seen.exit is None:
                seen.events = answered_ends(secondary.vm)
            return GuestLife(
                phase=self.phase,
                devices=tuple(entry.name for entry in pack.manifest.devices),
                kernel_names=self.interview.kernel_names(),
                unasked=self.interview.unasked(),
                disks=disks,
                disks_why=why,
                disks_said=said,
                loads_asked=self.loads,
                loads_acked=seen.loads,
                broken=seen.broken,
                exit=seen.exit,
                events=seen.events,
                failover=seen.failover,
                stuck=seen.answers.stuck,
                clocks=tuple(seen.answers.clocks),
                checks=tuple(seen.answers.checks),
                kernel_log=seen.answers.kernel_log,
                log=secondary.vm.process.stderr().strip(),
                seconds=time.monotonic() - started,
            )

    def _load_all(self, secondary: Secondary, seen: _Seen) -> None:
        devices = self._devices(self.phase)
        try:
            self.begin(secondary, GuestMode.RUNNING)
            while seen.loads < self.loads - 1:
                self.interview.check_stop()
                secondary.primary.checkpoint(devices)
                seen.loads += 1
                time.sleep(self.run_s)
            secondary.primary.checkpoint(self._devices(self.last), self.buffers.ram_difference(self.last, self.phase))
            seen.loads += 1
        except ChannelBroken as error:
            seen.broken = self.broken(error, seen.loads, self.last if seen.loads + 1 == self.loads else None)

    def _devices(self, phase: str) -> bytes:
        sections = self.sections(GuestMode.RUNNING, phase)
        loaded = encode(without(sections, self.excluded))
        # after a reset, what is left out would be in reset state
        return encode(sections) + loaded if self.resets else loaded

    def _live(self, secondary: Secondary, seen: _Seen) -> None:
        try:
            _fail_over(secondary)
        except (QemuError, DeadlineError) as error:
            seen.failover = symptom_of(error)
            return
        self.interview.ask(secondary.vm, seen.answers)


def _fail_over(secondary: Secondary) -> None:
    """End COLO; on return the guest runs on its own.

    :raises QemuError: QEMU refused, or is gone
    :raises DeadlineError: it did not get there in time
    """
    if end_colo(secondary.vm) == "paused":
        secondary.vm.qmp("cont")


def _grace_s(seen: _Seen) -> float:
    """How long QEMU may take to die, when something says that it may be dying."""
    closed = seen.broken is not None and seen.broken.kind in ("closed", "unexpected")
    return DEATH_GRACE_S if closed else 1.0 if seen.failover or seen.answers.stuck else 0.0


def answered_ends(vm: Vm) -> tuple[str, ...]:
    """Names of the events of the guest's end, with those that are on their way."""
    with contextlib.suppress(QemuError, DeadlineError):
        vm.qmp("query-status")
    return guest_ends(vm)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
