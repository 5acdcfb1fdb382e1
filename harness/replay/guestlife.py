# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiment: load checkpoints into a secondary whose guest runs, fail over, and ask the guest how it is.

The loads rewind the guest to the recorded moment again and again. Then ``x-colo-lost-heartbeat`` ends COLO, the
guest goes on by itself, and its own shell on the serial line says whether clock, disks, network and kernel are
well. Whether they are is for :mod:`harness.oracle.guestfault`; here it is only written down.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken, Dialect
from harness.errors import DeadlineError, GuestError, QemuError
from harness.guest.console import Console
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.record.pack import incoming_body
from harness.record.profile import Profile, load_profiles
from harness.replay.disks import DiskKind, with_disks
from harness.replay.engine import ANSWER_TIMEOUT_S, Break, Buffers, Stopped
from harness.replay.secondary import DEATH_GRACE_S, Secondary
from harness.replay.state import GuestMode, encode, sections_for, without

LOADS = 30
#: How long the guest runs after each load.
RUN_S = 0.01
FAILOVER_TIMEOUT_S = 10.0
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
_GUEST_ENDS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "GUEST_CRASHLOADED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The guest's clocks, read between two moments of the host's monotonic clock.

    :param beats: count of a loop that sleeps 50 ms each time
    :param up_s: seconds since boot
    :param epoch_s: its calendar clock
    """

    asked_s: float
    answered_s: float
    beats: int
    up_s: float
    epoch_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """What a device's check came to.

    :param status: of the guest's command, None when it did not end within its deadline
    :param said: its last lines; the last one is the step it was in
    """

    device: str
    status: int | None
    said: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLife:
    """What was seen of one guest.

    :param kernel_names: device to regular expressions for what the guest's kernel calls it
    :param disks: how its disks were arranged, and ``disks_why`` why it was not replication
    :param broken: where the loads broke; then nothing else was asked
    :param exit: how QEMU ended by itself, None when it was still there
    :param events: names of QMP events of the guest's end
    :param failover: why the failover did not end: one sentence, or empty
    :param stuck: where the guest's console did not answer as it should: one sentence, or empty
    :param clocks: first and last reading; fewer when the guest did not answer
    :param kernel_log: lines behind the mark of the recording
    :param log: what QEMU printed
    """

    phase: str
    devices: tuple[str, ...]
    kernel_names: Mapping[str, tuple[str, ...]]
    disks: DiskKind
    disks_why: str = ""
    loads_asked: int
    loads_acked: int
    broken: Break | None = None
    exit: Exit | None = None
    events: tuple[str, ...] = ()
    failover: str = ""
    stuck: str = ""
    clocks: tuple[Clock, ...] = ()
    checks: tuple[DeviceCheck, ...] = ()
    kernel_log: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0


def guest_life(
    *,
    binary: QemuBinary,
    dialect: Dialect,
    resets: bool,
    buffers: Buffers,
    phase: str,
    excluded: frozenset[str],
    stop: Event,
    profiles: Iterable[Profile] | None = None,
    loads: int = LOADS,
    run_s: float = RUN_S,
    last: str | None = None,
    check_timeout_s: float = CHECK_TIMEOUT_S,
    disks: DiskKind = DiskKind.REPLICATION,
) -> GuestLife:
    """Load ``phase`` into a secondary ``loads`` times, fail over, and see how its guest is.

    :param resets: the build resets before each load: every buffer then holds the whole state, and a second time
        behind it what is not excluded, for devices in use
    :param excluded: labels of sections left out of every checkpoint
    :param profiles: those the pack was recorded with; the installed ones when None
    :param last: another recording for the last checkpoint, for controls
    :param check_timeout_s: how long one device's check may take
    :param disks: falls back to plain where the build has no replication; the result says so
    :raises QemuError: the secondary did not even start
    :raises Stopped: ``stop`` was set
    """
    known = load_profiles().values() if profiles is None else profiles
    recorded = {entry.name for entry in buffers.pack.manifest.devices}
    experiment = _Experiment(
        binary=binary,
        dialect=dialect,
        buffers=buffers,
        phase=phase,
        excluded=excluded,
        stop=stop,
        profiles=tuple(p for p in known if p.name in recorded),
        loads=loads,
        run_s=run_s,
        last=last or phase,
        check_timeout_s=check_timeout_s,
        resets=resets,
    )
    if disks is DiskKind.PLAIN:
        return experiment.run(DiskKind.PLAIN, "asked for")
    try:
        life = experiment.run(DiskKind.REPLICATION, "")
    except QemuError as error:
        return experiment.run(DiskKind.PLAIN, f"replication did not start: {_last_line(str(error))}")
    if life.broken and life.broken.step is Step.INCOMING:
        why = _last_line(life.log) or life.broken.detail
        return experiment.run(DiskKind.PLAIN, f"with replication the incoming stream broke: {why}")
    return life


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What a run has come to so far."""

    loads: int = 0
    broken: Break | None = None
    exit: Exit | None = None
    events: tuple[str, ...] = ()
    failover: str = ""
    stuck: str = ""
    clocks: list[Clock] = field(default_factory=list)
    checks: list[DeviceCheck] = field(default_factory=list)
    kernel_log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experiment:
    binary: QemuBinary
    dialect: Dialect
    buffers: Buffers
    phase: str
    excluded: frozenset[str]
    stop: Event
    profiles: tuple[Profile, ...]
    loads: int
    run_s: float
    last: str
    check_timeout_s: float
    resets: bool

    def run(self, disks: DiskKind, why: str) -> GuestLife:
        started = time.monotonic()
        pack = self.buffers.pack
        patterns = {image: disk for profile in self.profiles for image, disk in profile.patterns.items()}
        machine = with_disks(self.buffers.machine, disks, {} if self.phase in ("firmware", "kernel") else patterns)
        seen = _Seen()
        with Secondary(self.binary, machine, self.dialect, timeout_s=ANSWER_TIMEOUT_S) as secondary:
            self._load_all(secondary, seen)
            if seen.broken is None:
                self._live(secondary, seen)
            seen.exit = secondary.vm.ended(_grace_s(seen))
            if seen.exit is None:
                seen.events = _guest_ends(secondary)
            return GuestLife(
                phase=self.phase,
                devices=tuple(entry.name for entry in pack.manifest.devices),
                kernel_names={p.name: self._kernel_names(p) for p in self.profiles if p.kernel_names},
                disks=disks,
                disks_why=why,
                loads_asked=self.loads,
                loads_acked=seen.loads,
                broken=seen.broken,
                exit=seen.exit,
                events=seen.events,
                failover=seen.failover,
                stuck=seen.stuck,
                clocks=tuple(seen.clocks),
                checks=tuple(seen.checks),
                kernel_log=seen.kernel_log,
                log=secondary.vm.process.stderr().strip(),
                seconds=time.monotonic() - started,
            )

    def _kernel_names(self, profile: Profile) -> tuple[str, ...]:
        part = profile.part(self.buffers.pack.manifest.family)
        slot = part.guest.get("slot") if part else None
        return (*profile.kernel_names, re.escape(slot)) if slot else profile.kernel_names

    def _load_all(self, secondary: Secondary, seen: _Seen) -> None:
        recording = self.buffers.pack.recordings[self.phase]
        ram = self.buffers.ram_whole(self.phase)
        body = incoming_body(recording, ram, encode(sections_for(recording, GuestMode.RUNNING)))
        devices = self._devices(self.phase)
        try:
            secondary.start(recording.head, body)
            while seen.loads < self.loads - 1:
                self._check_stop()
                secondary.primary.checkpoint(devices)
                seen.loads += 1
                time.sleep(self.run_s)
            secondary.primary.checkpoint(self._devices(self.last), self.buffers.ram_difference(self.last, self.phase))
            seen.loads += 1
        except ChannelBroken as error:
            number = 0 if error.step is Step.INCOMING else seen.loads + 1
            at = self.last if number == self.loads else self.phase
            seen.broken = Break(step=error.step, kind=error.kind, detail=error.detail, load=number, phase=at)

    def _devices(self, phase: str) -> bytes:
        sections = sections_for(self.buffers.pack.recordings[phase], GuestMode.RUNNING)
        loaded = encode(without(sections, self.excluded))
        # after a reset, what is left out would be in reset state
        return encode(sections) + loaded if self.resets else loaded

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped("stopped")

    def _live(self, secondary: Secondary, seen: _Seen) -> None:
        try:
            _fail_over(secondary)
        except (QemuError, DeadlineError) as error:
            seen.failover = str(error)
            return
        try:
            self._ask(Console(secondary.vm.console), seen)
        except GuestError as error:
            seen.stuck = str(error)

    def _ask(self, console: Console, seen: _Seen) -> None:
        if self.phase == "firmware":
            console.wait_ready(READY_TIMEOUT_S)
            # no mark: the whole of the kernel's log was said after the loads
            console.run("beat_start", CONSOLE_TIMEOUT_S)
        seen.clocks.append(_read_clock(console))
        checks = [(p.name, self._check_line(p)) for p in self.profiles if p.guest.life != "true"]
        if self.phase in _TOGETHER:
            self._run_checks(console, checks, seen)
        else:
            # a driver's modules are inserted one by one
            for check in checks:
                self._run_checks(console, [check], seen)
        time.sleep(max(0.0, CLOCK_SPAN_S - (time.monotonic() - seen.clocks[0].answered_s)))
        seen.clocks.append(_read_clock(console))
        seen.kernel_log = tuple(console.run("log_new", CONSOLE_TIMEOUT_S).splitlines())

    def _check_line(self, profile: Profile) -> str:
        family = self.buffers.pack.manifest.family
        names = [_PREPARE[self.phase]] if self.phase in _PREPARE else []
        names += ["check"] if self.phase == "busy" else []
        lines = [profile.command(name, family) for name in (*names, "life")]
        return " && ".join(line for line in lines if line != "true")

    def _run_checks(self, console: Console, checks: Sequence[tuple[str, str]], seen: _Seen) -> None:
        if not checks:
            return
        started = time.monotonic()
        left = [device for device, _ in checks]
        begin = "; ".join(f"life_begin {shlex.quote(device)} {shlex.quote(line)}" for device, line in checks)
        console.run(begin, CONSOLE_TIMEOUT_S)
        while left:
            self._check_stop()
            time.sleep(_POLL_S)
            late = time.monotonic() - started > self.check_timeout_s
            states = _states(console, left)
            for device in [device for device in left if late or states.get(device) is not None]:
                left.remove(device)
                seen.checks.append(_ended(console, device, states.get(device), time.monotonic() - started))


def _fail_over(secondary: Secondary) -> None:
    """End COLO; on return the guest runs on its own.

    :raises QemuError: QEMU refused, or is gone
    :raises DeadlineError: it did not get there within :data:`FAILOVER_TIMEOUT_S`
    """
    vm = secondary.vm
    vm.qmp("x-colo-lost-heartbeat")
    vm.monitor.poll_until(
        "query-colo-status", lambda answer: answer.get("mode") == "none", timeout_s=FAILOVER_TIMEOUT_S
    )
    status = vm.monitor.poll_until(
        "query-status",
        lambda answer: answer["status"] in ("running", "paused", "io-error", "guest-panicked", "shutdown"),
        timeout_s=FAILOVER_TIMEOUT_S,
    )
    if status["status"] == "paused":
        # a secondary that was started with -S waits for a word after the failover
        vm.qmp("cont")


def _grace_s(seen: _Seen) -> float:
    """How long QEMU may take to die, when something says that it may be dying."""
    closed = seen.broken is not None and seen.broken.kind in ("closed", "unexpected")
    return DEATH_GRACE_S if closed else 1.0 if seen.failover or seen.stuck else 0.0


def _guest_ends(secondary: Secondary) -> tuple[str, ...]:
    with contextlib.suppress(QemuError, DeadlineError):
        secondary.vm.qmp("query-status")
    return tuple(e["event"] for e in secondary.vm.monitor.drain_events() if e["event"] in _GUEST_ENDS)


def _read_clock(console: Console) -> Clock:
    """The clocks, asked again when the line is not whole: the console may still bring what was typed before."""
    printed = ""
    for _ in range(_CLOCK_TRIES):
        asked = time.monotonic()
        printed = console.run("clock", CONSOLE_TIMEOUT_S)
        match = _CLOCK.search(printed)
        if match:
            beats, up, epoch = int(match[1]), float(match[2]), int(match[3])
            return Clock(asked_s=asked, answered_s=time.monotonic(), beats=beats, up_s=up, epoch_s=epoch)
    raise GuestError(f"the guest's clock reads {printed.strip()!r}")


def _states(console: Console, devices: Sequence[str]) -> dict[str, int]:
    """Status of each check that has ended."""
    printed = console.run(f"life_state {' '.join(map(shlex.quote, devices))}", CONSOLE_TIMEOUT_S)
    matches = (re.fullmatch(r"life (\S+) (\d+)", line.strip()) for line in printed.splitlines())
    return {match[1]: int(match[2]) for match in matches if match}


def _ended(console: Console, device: str, status: int | None, seconds: float) -> DeviceCheck:
    said = console.run(f"life_said {shlex.quote(device)}", CONSOLE_TIMEOUT_S) if status != 0 else ""
    return DeviceCheck(device=device, status=status, said=said.strip(), seconds=seconds)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
