# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``colo``: load a schedule into one secondary and bring back the evidence."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar, cast

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken, Dialect
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.engines.secondary import DEATH_GRACE_S, Secondary
from harness.errors import DeadlineError, HarnessError, QemuError
from harness.guests.machine import Machine
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.qemu.scope import ProcessScope
from harness.qemu.threads import describe_threads
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, only, sections_for, without

#: Deadline for one answer: a whole-state load takes milliseconds, a buffer of 100 loads a tenth of a second.
ANSWER_TIMEOUT_S = 20.0
#: What the deadline grows by for each load in one buffer; a load takes some 0.3 ms at most.
PER_LOAD_S = 0.05
_PROGRESS_EVERY_S = 0.1
_CACHE_ENTRIES = 64


class Stopped(HarnessError):
    """The run was told to stop; what was acknowledged until then is lost for this session only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which sections go into a buffer.

    :param own: labels of the row's sections: those repeated back to back, and those the verdict speaks of
    :param excluded: labels left out of every buffer, because they were blamed before
    :param whole: every other section is sent as well; without it, ``own`` alone, which wants a parked guest
    :param again: ``own`` stands once more in the buffer, for a build that resets the machine before each load:
        only this second time meets a used device
    """

    own: frozenset[str]
    excluded: frozenset[str] = frozenset()
    whole: bool = True
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Where a session broke: the step, how, and in which load (1 is the first; 0 the incoming stream)."""

    step: Step
    kind: str
    detail: str
    load: int
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen in one session.

    :param loads_acked: loads whose checkpoint was acknowledged with VMSTATE_LOADED
    :param checkpoints_acked: acknowledged checkpoints; fewer than loads when they stood back to back
    :param exit: how QEMU ended by itself, None when it was still there
    :param log: what QEMU printed
    :param warnings: what QEMU printed while it lived, with the load after which it was there (0: before the first)
    :param events: names of QMP events of the guest's end (SHUTDOWN, RESET, GUEST_PANICKED)
    :param load_seconds: time between the first request and the last acknowledgement
    """

    loads_asked: int
    loads_acked: int
    checkpoints_acked: int
    broken: Break | None
    exit: Exit | None
    log: str
    warnings: tuple[tuple[int, str], ...] = ()
    events: tuple[str, ...] = ()
    seconds: float = 0.0
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the guest runs after each load, in seconds; a parked guest is not waited for."""

    run_s: float = 0.0


T = TypeVar("T")

OnLoads = Callable[[int], None]


class Buffers:
    """Encoded buffers of one pack, made once and shared by sessions.

    RAM is kept as views into the pack, some 9 MB of small objects for 70 MB of pages; device buffers are bytes.
    The least recently used go first when there are many.

    :param machine: what the loading side shall be, when it is not just what was recorded
    """

    def __init__(self, pack: StatePack, machine: Machine | None = None) -> None:
        self.pack = pack
        self.machine = machine or pack.machine
        self._lock = Lock()
        self._kept: OrderedDict[object, Any] = OrderedDict()

    def ram_whole(self, phase: str) -> list[bytes | memoryview]:
        """See :meth:`StatePack.ram_whole`."""
        return self._get(("whole", phase), lambda: self.pack.ram_whole(phase))

    def ram_difference(self, phase: str, base: str) -> list[bytes | memoryview]:
        """See :meth:`StatePack.ram_difference`."""
        if phase == base:
            return []
        return self._get(("difference", phase, base), lambda: self.pack.ram_difference(phase, base))

    def devices(self, phase: str, mode: GuestMode, selection: Selection, repeat: int) -> bytes:
        """One device buffer: everything once, the row's own sections as often as asked."""
        key = ("devices", phase, mode, selection, repeat)
        return self._get(key, lambda: self._devices(phase, mode, selection, repeat))

    def whole_state(self, phase: str, mode: GuestMode, absent: frozenset[str] = frozenset()) -> bytes:
        """Every section once but the absent ones: what an incoming stream brings."""
        recording = self.pack.recordings[phase]
        return self._get(("state", phase, mode, absent), lambda: encode(without(sections_for(recording, mode), absent)))

    def _devices(self, phase: str, mode: GuestMode, selection: Selection, repeat: int) -> bytes:
        sections = without(sections_for(self.pack.recordings[phase], mode), selection.excluded)
        own = encode(only(sections, selection.own))
        if not own:
            raise HarnessError(f"phase {phase}: none of the sections {sorted(selection.own)} is there to load")
        extra = repeat - 1 + selection.again
        return encode(sections) + own * extra if selection.whole else own * (1 + extra)

    def _get(self, key: object, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(T, self._kept[key])
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _CACHE_ENTRIES:
                self._kept.popitem(last=False)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of a schedule into one new secondary.

    :param absent: labels of sections that even the incoming stream leaves out, as this QEMU refuses them
    :param scope: of the run: owns its processes, and is told when it shall end
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

    def run(self, on_loads: OnLoads = lambda _: None) -> Evidence:
        """Load everything and say what happened; a secondary that dies is evidence.

        :param on_loads: told how many more loads were acknowledged, some ten times a second
        :raises QemuError: the secondary did not even start
        :raises Stopped: the run was told to stop
        """
        started = time.monotonic()
        with Secondary(
            self.binary, self.buffers.machine, self.dialect, timeout_s=self.timeout_s, scope=self.scope
        ) as secondary:
            tally = _Tally(on_loads)
            broken = self._load_all(secondary, tally)
            return self._evidence(secondary, tally, broken, started)

    def _load_all(self, secondary: Secondary, tally: _Tally) -> Break | None:
        phase = self.plan.incoming
        recording = self.buffers.pack.recordings[phase]
        devices = self.buffers.whole_state(phase, self.mode, self.absent)
        try:
            secondary.start(recording.head, incoming_body(recording, self.buffers.ram_whole(phase), devices))
            tally.begin(secondary.vm.process.stderr_size())
            for checkpoint in self.plan.checkpoints:
                self.scope.check()
                self._load(secondary, checkpoint, phase)
                phase = checkpoint.phase
                tally.add(checkpoint.repeat, secondary.vm.process.stderr_size())
                if self.pace.run_s and self.mode is GuestMode.RUNNING:
                    time.sleep(self.pace.run_s)
        except ChannelBroken as error:
            number = 0 if error.step is Step.INCOMING else tally.loads + 1
            at = self.plan.checkpoints[tally.checkpoints].phase if number else phase
            return Break(step=error.step, kind=error.kind, detail=error.detail, load=number, phase=at)
        finally:
            tally.end()
        return None

    def _load(self, secondary: Secondary, checkpoint: Checkpoint, before: str) -> None:
        devices = self.buffers.devices(checkpoint.phase, self.mode, self.selection, checkpoint.repeat)
        ram = self.buffers.ram_difference(checkpoint.phase, before)
        secondary.primary.checkpoint(devices, ram, more_s=checkpoint.repeat * PER_LOAD_S)

    def _evidence(self, secondary: Secondary, tally: _Tally, broken: Break | None, started: float) -> Evidence:
        vm = secondary.vm
        # a QEMU that aborts closes its sockets before it is gone; one that loaded all, or that refused a load and
        # keeps its connection, must still be there
        dying = broken is not None and broken.kind in ("closed", "unexpected")
        ended = vm.ended(DEATH_GRACE_S if dying else 0.0)
        hung = broken is not None and broken.kind == "late" and ended is None
        events = () if ended or hung else guest_events(vm)
        threads = "\n" + describe_threads(vm.process.pid) if hung else ""
        return Evidence(
            loads_asked=self.plan.loads,
            loads_acked=tally.loads,
            checkpoints_acked=tally.checkpoints,
            broken=broken,
            exit=ended,
            log=own_words(vm.process.stderr()) + threads,
            warnings=tally.warnings(vm.process.stderr()),
            events=events,
            seconds=time.monotonic() - started,
            load_seconds=tally.seconds,
        )


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

    def add(self, loads: int, printed: int) -> None:
        self.loads += loads
        self.checkpoints += 1
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


_GUEST_ENDS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "GUEST_CRASHLOADED")


def guest_events(vm: Vm, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[str, ...]:
    """Names of the events of the guest's end that came so far; ``NO-ANSWER`` when QEMU's main loop hangs."""
    try:
        # any answer at all: a process whose main loop hangs is not well, though its session had acknowledged
        vm.qmp("query-status", timeout_s=timeout_s)
    except (QemuError, DeadlineError):
        return ("NO-ANSWER",)
    return tuple(e["event"] for e in vm.monitor.drain_events() if e["event"] in _GUEST_ENDS and not _asked_for(e))


def _asked_for(event: dict[str, Any]) -> bool:
    """A reset that is part of loading a snapshot, and not the guest's."""
    return bool(event.get("data", {}).get("reason") == "snapshot-load")


#: Said because of what this program does: it ends QEMU by a signal, and speaks QMP through an old option.
_NOT_ITS_OWN = re.compile(r"^\S+: (terminating on signal |-mon chardev=postload-qmp).*\n?", re.MULTILINE)


def own_words(stderr: str) -> str:
    """What QEMU printed, without what it says because of this program."""
    return _NOT_ITS_OWN.sub("", stderr).strip()
