# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a running guest how it is: its own shell on the serial line tells of clocks, devices and its kernel's log.

How the guest came to run, by a failover or by an ordinary migration, is nothing to this module.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from harness.colo.symptom import Sign, Symptom
from harness.devices.device import NOTHING, Device
from harness.engines.evidence import symptom_of
from harness.errors import GuestError
from harness.guests.console import Console, ConsoleError
from harness.guests.machine import DiskKind, Machine
from harness.guests.plan import GuestPlan, guest_command, guest_slot
from harness.packs.pack import StatePack
from harness.qemu.hosttime import HostClock
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm

#: A healthy guest under TCG ends a check within three seconds, and within nine when six others want the two cores: a
#: late answer must not look like a dead device, so these are far from it.
CONSOLE_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 40.0
READY_TIMEOUT_S = 60.0
#: The guest's calendar clock has seconds; between its first and its last reading one of them has to pass.
CLOCK_SPAN_S = 1.2
_POLL_S = 0.05

#: What brings a device from a phase to where it can be asked for its life.
_PREPARE = {"firmware": "bind", "kernel": "bind", "unbound": "rebind"}
#: With the devices bound already, their checks run side by side.
_TOGETHER = ("bound", "busy", "rebound")
_CLOCK = re.compile(r"\bclock (\d+) ([\d.]+) (\d+)\s*$", re.MULTILINE)
_CLOCK_TRIES = 3


class After(StrEnum):
    """What brought the guest to run."""

    FAILOVER = "failover"
    MIGRATION = "migration"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestClock:
    """The guest's clocks, read between two moments of the host's monotonic clock.

    :param beats: count of a loop that sleeps 50 ms each time
    :param up_s: seconds since boot
    :param epoch_s: its calendar clock
    :param lost_s: host time until it was asked in which its QEMU could not run
    """

    asked_s: float
    answered_s: float
    beats: int
    up_s: float
    epoch_s: int
    lost_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeCheck:
    """What a device's check came to.

    :param status: of the guest's command, None when it did not end within its deadline
    :param said: its last lines; the last one is the step it was in
    """

    device: str
    status: int | None
    said: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class Answers:
    """What a guest has said so far.

    :param stuck: where its console did not answer as it should, None where it did
    :param clocks: first and last reading; fewer when the guest did not answer
    :param kernel_log: lines behind the mark of the recording
    """

    stuck: Symptom | None = None
    clocks: list[GuestClock] = field(default_factory=list)
    checks: list[LifeCheck] = field(default_factory=list)
    kernel_log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interview:
    """The questions to a guest that was recorded in ``phase``.

    :param plan: what the guest is
    :param devices: those that the pack was recorded with
    :param silent: names of those that are not to be asked
    :param check_timeout_s: how long one device's check may take
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    plan: GuestPlan
    phase: str
    devices: tuple[Device, ...]
    scope: ProcessScope
    silent: frozenset[str] = frozenset()
    check_timeout_s: float = CHECK_TIMEOUT_S

    def ask(self, vm: Vm, answers: Answers) -> None:
        """Put all questions to the guest of ``vm``; what it said until it fell silent stays in ``answers``.

        :raises Stopped: the run was told to stop
        """
        try:
            self._ask(vm, Console(vm.console, vm.process.clock), answers)
        except GuestError as error:
            answers.stuck = symptom_of(error)

    def machine(self, machine: Machine, disks: DiskKind) -> Machine:
        """The machine with disks that hold what its guest had written by then."""
        written = self.phase not in ("firmware", "kernel")
        patterns = {device.node(name): disk for device in self.devices for name, disk in device.patterns.items()}
        return replace(machine, disks=disks, patterns=patterns if written else {})

    def unasked(self) -> tuple[str, ...]:
        """Devices that have no ``life`` to ask for, or not got so far."""
        return tuple(each.name for each in self.devices if not self._asked(each) and not each.rest)

    def kernel_names(self) -> Mapping[str, tuple[str, ...]]:
        """Device to regular expressions for what the guest's kernel calls it."""
        return {device.name: self._kernel_names(device) for device in self.devices if device.kernel_names}

    def _asked(self, device: Device) -> bool:
        return device.guest.life != NOTHING and device.name not in self.silent

    def _kernel_names(self, device: Device) -> tuple[str, ...]:
        slot = guest_slot(device, self.plan)
        if slot is None or slot.startswith("$"):
            return device.kernel_names
        return (*device.kernel_names, re.escape(slot))

    def check_stop(self) -> None:
        """:raises Stopped: the run was told to stop"""
        self.scope.check()

    def _ask(self, vm: Vm, console: Console, answers: Answers) -> None:
        if self.phase == "firmware":
            console.wait_ready(READY_TIMEOUT_S)
            # no mark: the whole of the kernel's log was said after the loads
            console.run("beat_start", CONSOLE_TIMEOUT_S)
        answers.clocks.append(_read_clock(console, vm.process.clock))
        span = vm.deadline(CLOCK_SPAN_S)
        checks = [(d.name, self._check_line(d)) for d in self.devices if self._asked(d)]
        if self.phase in _TOGETHER:
            self._run_checks(vm, console, checks, answers)
        else:
            # a driver's modules are inserted one by one
            for check in checks:
                self._run_checks(vm, console, [check], answers)
        while left_s := span.left_s:
            time.sleep(left_s)
        answers.clocks.append(_read_clock(console, vm.process.clock))
        answers.kernel_log = tuple(console.run("log_new", CONSOLE_TIMEOUT_S).splitlines())

    def _check_line(self, device: Device) -> str:
        names = [_PREPARE[self.phase]] if self.phase in _PREPARE else []
        names += ["check"] if self.phase == "busy" else []
        lines = [guest_command(device, name, self.plan) for name in (*names, "life")]
        return " && ".join(line for line in lines if line != NOTHING)

    def _run_checks(self, vm: Vm, console: Console, checks: Sequence[tuple[str, str]], answers: Answers) -> None:
        if not checks:
            return
        started = time.monotonic()
        deadline = vm.deadline(self.check_timeout_s)
        left = [device for device, _ in checks]
        begin = "; ".join(f"life_begin {shlex.quote(device)} {shlex.quote(line)}" for device, line in checks)
        console.run(begin, CONSOLE_TIMEOUT_S)
        while left:
            self.check_stop()
            time.sleep(_POLL_S)
            late = deadline.over
            states = _states(console, left)
            for device in [device for device in left if late or states.get(device) is not None]:
                left.remove(device)
                answers.checks.append(_ended(console, device, states.get(device), time.monotonic() - started))


def _read_clock(console: Console, host: HostClock) -> GuestClock:
    """The clocks, asked again when the line is not whole: the console may still bring what was typed before."""
    printed = ""
    for _ in range(_CLOCK_TRIES):
        lost_s = host.lost().total_s
        asked = time.monotonic()
        printed = console.run("clock", CONSOLE_TIMEOUT_S)
        match = _CLOCK.search(printed)
        if match:
            beats, up, epoch = int(match[1]), float(match[2]), int(match[3])
            answered = time.monotonic()
            return GuestClock(asked_s=asked, answered_s=answered, beats=beats, up_s=up, epoch_s=epoch, lost_s=lost_s)
    unread = Symptom(sign=Sign.UNREADABLE, command="clock", said=printed.strip())
    raise ConsoleError(f"the guest's clock reads {unread.said!r}", unread)


def _states(console: Console, devices: Sequence[str]) -> dict[str, int]:
    """Status of each check that has ended."""
    printed = console.run(f"life_state {' '.join(map(shlex.quote, devices))}", CONSOLE_TIMEOUT_S)
    matches = (re.fullmatch(r"life (\S+) (\d+)", line.strip()) for line in printed.splitlines())
    return {match[1]: int(match[2]) for match in matches if match}


def _ended(console: Console, device: str, status: int | None, seconds: float) -> LifeCheck:
    said = console.run(f"life_said {shlex.quote(device)}", CONSOLE_TIMEOUT_S) if status != 0 else ""
    return LifeCheck(device=device, status=status, said=said.strip(), seconds=seconds)


def unbound_devices(pack: StatePack, phase: str) -> frozenset[str]:
    """Devices that cannot be asked how they are: they did not get to a phase, or to none in which they are bound."""
    return frozenset(
        device.name for device in pack.manifest.devices if {phase, "bound"} & {lack.phase for lack in device.unreached}
    )


def recorded_devices(pack: StatePack, devices: Iterable[Device] | None) -> tuple[Device, ...]:
    """What a pack was recorded with: as it says itself, or as some devices of these names say instead."""
    others = {device.name: device for device in devices or ()}
    return tuple(others.get(entry.name, entry.recipe) for entry in pack.manifest.devices)
