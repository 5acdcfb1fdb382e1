# SPDX-License-Identifier: GPL-2.0-or-later
"""What a load leaves behind in a secondary: memory, descriptors, threads and the size of its saved state.

The guest is parked. One section after the other is loaded many times back to back, then the whole state once in each
checkpoint, as COLO does; a section alone once in each checkpoint where one of these grows. Between equal batches of
checkpoints the process is looked at from outside. The allocator is told (:data:`MALLOC_ENV`) to keep everything in
one contiguous heap and to cache nothing, so that the heap can be walked chunk by chunk through ``/proc/PID/mem`` and
the bytes in use are known exactly; what lies outside that heap is counted by the page. Where the heap cannot be
walked (another C library, no permission) all private memory is counted by the page.

Two series stand beside the sections: checkpoints that load nothing more than a checkpoint has to (the framework's own
growth), and a section that is known to hold no memory (the control). A build that resets the machine before each load
has to be given its CPU in each checkpoint, parked, else the reset one runs the firmware: its back to back loads stand
behind the whole state, and a section that is loaded once stands behind the CPU's (:attr:`LeakRun.plain`).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Doing, Sign, Symptom
from harness.engines.evidence import (
    Break,
    Count,
    Evidence,
    evidence_of,
    symptom_of,
)
from harness.engines.secondary import Secondary
from harness.engines.setting import Setting
from harness.errors import DeadlineError, QemuError
from harness.experiments.memory import Memory, look_at_memory, private_bytes
from harness.qemu.threads import wait_at_rest
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, cpu_labels, encode, labels_of, only, sections_for, without

#: glibc: one arena, grown by ``brk`` alone, nothing cached (a cached chunk looks like one in use). Older glib has an
#: allocator of its own above that.
MALLOC_ENV = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}"
        for name in ("arena_max=1", "tcache_count=0", "mxfast=0", "mmap_max=0", "trim_threshold=1000000000")
    ),
    "G_SLICE": "always-malloc",
}
#: Name of the series of checkpoints without a section under test.
FRAMEWORK = ""
#: A machine with more sections that break a secondary is given up on.
MAX_BREAKS = 4
#: Mappings of guest RAM and of its COLO cache are told by their size; smaller blocks are ROMs, which do not change.
_BIG_BLOCK_BYTES = 1 << 20
#: Checkpoints with nothing under test before anything is measured: what the incoming stream left is freed by then.
WARM_UP_CHECKPOINTS = 100
#: Bounds of a batch of checkpoints without a section; few where each of them resets the machine and loads it whole.
_FRAMEWORK_CHECKPOINTS = (20, 80)
_PILOTS, _GROWTH_LOOKS = 2, 4
#: Growth of a checkpoint that is too much for thousands of loads, what a series may leave behind in all, and the fewest
#: checkpoints of a batch.
_LARGE_BYTES, _MOST_BYTES, _FEWEST_CHECKPOINTS = 100_000, 64 << 20, 2
#: What waits for the RCU thread is still counted, and a heap that is being changed cannot be walked: a look that sees
#: more growth than this, or no heap, is repeated, and the smallest one is taken.
_LOOKS = 4
_GROWTH_BYTES = 4096
#: Allocation sizes whose number grew by less than this part of the loads are not worth naming.
_CHUNK_SHARE = 0.02

#: Told after each batch, before the process is looked at: the machine, the section, loads and checkpoints of the batch.
Between = Callable[[Vm, str, int, int], None]


class SuspectFinder(Protocol):
    """Says what has to be looked at again; see :class:`harness.oracles.leak.SuspectFinder`."""

    def back_to_back(self, run: LeakRun) -> frozenset[str]:
        """Sections that grow back to back."""

    def whole(self, run: LeakRun) -> bool:
        """The whole state grows, by more than the sections that were loaded once in each checkpoint."""

    def once(self, run: LeakRun) -> frozenset[str]:
        """Sections that grow with one load in each checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakBudget:
    """How much is loaded.

    :param samples: looks at the process for each series, after a warm-up of one batch
    :param section_s: time for loading one section; a slow one takes longer, to have ``min_loads``
    :param max_loads: of a quick section: the smallest leak, 16 bytes a load, is then 9 kB in a batch, and more than
        looks at 67 sections that do not leak ever differed by (8 kB)
    :param repeat: loads of the section in one device buffer
    :param buffer_bytes: bound of a device buffer, which a secondary keeps in memory
    :param once_checkpoints: in each batch of one load a checkpoint
    :param settle_s: longest pause before a look; QEMU's RCU thread frees memory up to 50 ms later (``util/rcu.c``)
    :param exact: walk the heap where that can be done; without it memory is counted by the page
    """

    samples: int = 8
    section_s: float = 0.25
    min_loads: int = 2000
    max_loads: int = 4_000
    repeat: int = 40
    buffer_bytes: int = 2_000_000
    once_checkpoints: int = 40
    settle_s: float = 0.06
    exact: bool = True

    def times(self, factor: int) -> LeakBudget:
        """The same with more loads."""
        return replace(
            self,
            section_s=self.section_s * factor,
            min_loads=self.min_loads * factor,
            max_loads=self.max_loads * factor,
            once_checkpoints=self.once_checkpoints * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the process.

    :param loads: loads of the section since the first look
    :param checkpoints: checkpoints since the first look
    :param private_bytes: dirty private pages, without guest RAM, its COLO cache and translated code
    :param heap_bytes: allocated bytes of the heap, exactly; None when the heap could not be walked
    :param outside_bytes: dirty private pages outside of the heap
    """

    loads: int
    checkpoints: int
    private_bytes: int
    heap_bytes: int | None
    outside_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Looks at the process while one section was loaded.

    :param repeat: loads in each checkpoint; 0 for what has no section under test
    :param once: one load in each checkpoint, and not back to back
    :param state_bytes: size of the whole saved device state at the first, the middle and the last look
    :param chunks: size of an allocation with its overhead, in bytes, to how many more there are at the last look
    """

    label: str
    repeat: int
    samples: tuple[Sample, ...]
    state_bytes: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0
    once: bool = False

    @property
    def loads(self) -> int:
        """Loads between the first and the last look."""
        return self.samples[-1].loads

    @property
    def checkpoints(self) -> int:
        """Checkpoints between the first and the last look."""
        return self.samples[-1].checkpoints

    @property
    def exact(self) -> bool:
        """Whether memory is known by the byte."""
        return all(sample.heap_bytes is not None for sample in self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenSection:
    """A section whose loads broke the secondary, with what can be judged as any other session.

    :param label: :data:`FRAMEWORK` when it broke before any section was loaded alone
    """

    label: str
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakRun:
    """One process, or a few when sections broke them.

    :param sections: back to back
    :param whole: the whole state, once in each checkpoint
    :param plain: what :attr:`once` is measured against where a build resets the machine; else that is the framework
    :param once: sections alone, once in each checkpoint
    :param resets: the build resets the machine before each load
    """

    framework: Series | None
    control: Series | None
    sections: tuple[Series, ...]
    whole: Series | None = None
    plain: Series | None = None
    once: tuple[Series, ...] = ()
    resets: bool = False
    breaks: tuple[BrokenSection, ...] = ()
    loads_asked: int = 0
    loads_acked: int = 0
    seconds: float = 0.0

    def joined(self, more: LeakRun) -> LeakRun:
        """With what another process measured with one load in each checkpoint."""
        return replace(
            self,
            plain=self.plain or more.plain,
            once=self.once + more.once,
            breaks=self.breaks + more.breaks,
            loads_asked=self.loads_asked + more.loads_asked,
            loads_acked=self.loads_acked + more.loads_acked,
            seconds=self.seconds + more.seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakResult:
    """All sections back to back, and the suspects among them again in new processes.

    :param second: the suspects, back to back and once in each checkpoint; None when nothing was suspected
    :param third: what grew with one load in each checkpoint, once more; None when nothing did
    """

    first: LeakRun
    second: LeakRun | None = None
    third: LeakRun | None = None

    @property
    def runs(self) -> tuple[LeakRun, ...]:
        """Processes, in their order."""
        return tuple(run for run in (self.first, self.second, self.third) if run is not None)

    @property
    def loads_asked(self) -> int:
        """Loads that were to be done."""
        return sum(run.loads_asked for run in self.runs)

    @property
    def loads_acked(self) -> int:
        """Loads acknowledged with VMSTATE_LOADED."""
        return sum(run.loads_acked for run in self.runs)

    @property
    def seconds(self) -> float:
        """Time that it took."""
        return sum(run.seconds for run in self.runs)

    @property
    def broken(self) -> Break | None:
        """The first break."""
        return next((broken.evidence.broken for run in self.runs for broken in run.breaks), None)


def find_leaks(
    setting: Setting,
    *,
    suspects: SuspectFinder,
    labels: Sequence[str] | None = None,
    budget: LeakBudget | None = None,
    between: Between | None = None,
    confirm_factor: int = 3,
) -> LeakResult:
    """Measure every section back to back and the whole state once in each checkpoint; then what ``suspects`` names
    again in new processes with more loads, in both ways.

    :param labels: sections to be measured, all of the phase when None
    :raises QemuError: the secondary did not start
    :raises Stopped: the run was told to stop
    """
    bench = LeakBench.of(setting, budget=budget or LeakBudget(), between=between)
    wanted = bench.labels if labels is None else labels
    first = bench.run(wanted, whole=True)
    together = suspects.back_to_back(first)
    if not together and not suspects.whole(first):
        return LeakResult(first=first)
    again = replace(bench, budget=bench.budget.times(confirm_factor))
    # what the whole state loses, and no section back to back does, may be any section's
    second = again.run(_of(wanted, together), whole=True, once=_of(wanted, together) or wanted)
    rest = [label for label in wanted if label not in together]
    if together and rest and suspects.whole(second):
        second = second.joined(again.run([], once=rest))
    once = suspects.once(second)
    return LeakResult(first=first, second=second, third=again.run([], once=_of(wanted, once)) if once else None)


def _of(labels: Sequence[str], chosen: frozenset[str]) -> list[str]:
    return [label for label in labels if label in chosen]


class _Kind(Enum):
    FRAMEWORK = auto()
    CONTROL = auto()
    SECTION = auto()
    WHOLE = auto()
    PLAIN = auto()
    ONCE = auto()


@dataclass(frozen=True, slots=True)
class _Item:
    """One series to be measured."""

    kind: _Kind
    label: str = FRAMEWORK


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakBench(Setting):
    """Measures what the sections of a phase leave behind."""

    budget: LeakBudget = field(default_factory=LeakBudget)
    between: Between | None = None

    @property
    def labels(self) -> list[str]:
        """Sections of the phase that may be loaded."""
        return labels_of(without(self.buffers.pack.recordings[self.phase].sections, self.excluded))

    def run(self, labels: Sequence[str], *, whole: bool = False, once: Sequence[str] = ()) -> LeakRun:
        """The framework, the control, then each section; one that breaks the secondary costs a new process.

        :param labels: to be loaded back to back
        :param whole: the whole state is loaded too, once in each checkpoint
        :param once: to be loaded alone, once in each checkpoint
        """
        began = time.monotonic()
        todo = self._items(labels, whole, once)
        done: list[tuple[_Item, Series]] = []
        breaks: list[BrokenSection] = []
        asked = acked = 0
        while todo and len(breaks) < MAX_BREAKS:
            meter = _Meter(self)
            broken = meter.measure(todo)
            done += meter.done
            asked, acked = asked + meter.asked, acked + meter.acked
            culprit, todo = todo[len(meter.done) :][:1], todo[len(meter.done) + 1 :]
            if broken is not None:
                breaks.append(broken)
            if broken is not None and (meter.unborn or culprit[0].kind is _Kind.FRAMEWORK):
                break  # it does not even take the incoming stream, or a checkpoint with nothing in it
        run = _as_run(done, breaks, asked, acked, time.monotonic() - began)
        return replace(run, resets=self.resets)

    def _items(self, labels: Sequence[str], whole: bool, once: Sequence[str]) -> list[_Item]:
        known, control = set(self.labels), self.buffers.pack.architecture.leak_control
        items = [_Item(_Kind.FRAMEWORK)]
        items += [_Item(_Kind.CONTROL, control)] if control in known else []
        items += [_Item(_Kind.SECTION, label) for label in labels if label in known]
        # where the machine is reset, the framework's series is the whole state's
        items += [_Item(_Kind.WHOLE)] if whole and not self.resets else []
        items += [_Item(_Kind.PLAIN)] if once and self.resets else []
        # the CPU's own sections stand in each checkpoint there already
        known -= cpu_labels(self.recording) if self.resets else frozenset()
        return items + [_Item(_Kind.ONCE, label) for label in once if label in known]


def _as_run(
    done: list[tuple[_Item, Series]], breaks: list[BrokenSection], asked: int, acked: int, seconds: float
) -> LeakRun:
    def all_of(kind: _Kind) -> tuple[Series, ...]:
        return tuple(series for item, series in done if item.kind is kind)

    def one_of(kind: _Kind) -> Series | None:
        return next(iter(all_of(kind)), None)

    return LeakRun(
        framework=one_of(_Kind.FRAMEWORK),
        control=one_of(_Kind.CONTROL),
        sections=all_of(_Kind.SECTION),
        whole=one_of(_Kind.WHOLE),
        plain=one_of(_Kind.PLAIN),
        once=all_of(_Kind.ONCE),
        breaks=tuple(breaks),
        loads_asked=asked,
        loads_acked=acked,
        seconds=seconds,
    )


def tuned_secondary(bench: LeakBench) -> Secondary:
    """A secondary whose allocator can be looked into."""
    return bench.secondary(env={**os.environ, **MALLOC_ENV})


class _Meter:
    """Measures series after series in one process, until it breaks."""

    def __init__(self, bench: LeakBench) -> None:
        self._bench = bench
        self._sections = sections_for(bench.recording, GuestMode.PARKED)
        self._whole = encode(without(self._sections, bench.excluded))
        # a build that resets the machine needs the whole state, else the reset CPU starts to run the firmware
        self._prefix = self._whole if bench.resets else b""
        blocks = bench.buffers.pack.manifest.blocks
        self._ram = frozenset(block.size_bytes for block in blocks if block.size_bytes >= _BIG_BLOCK_BYTES)
        self._walkable = bench.budget.exact
        self._cpu = encode(only(self._sections, cpu_labels(bench.recording))) if bench.resets else b""
        self.done: list[tuple[_Item, Series]] = []
        self.unborn = True
        self.asked = 0
        self.acked = 0

    def measure(self, todo: Sequence[_Item]) -> BrokenSection | None:
        """Measure until all is done, or until a section breaks the secondary; that one is returned."""
        bench, began = self._bench, time.monotonic()
        with tuned_secondary(bench) as secondary:
            try:
                bench.begin(secondary, GuestMode.PARKED)
                self._warm_up(secondary)
                self.unborn = False
                for item in todo:
                    self.done.append((item, self._series(secondary, item)))
            except ChannelBroken as error:
                label = FRAMEWORK if self.unborn else todo[len(self.done)].label
                return BrokenSection(label=label, evidence=self._evidence(secondary, error, began))
        return None

    def _warm_up(self, secondary: Secondary) -> None:
        for _ in range(WARM_UP_CHECKPOINTS):
            self.checkpoint(secondary, self._prefix, 0)
        with _alive():
            _state_bytes(secondary.vm)

    def _series(self, secondary: Secondary, item: _Item) -> Series:
        began, budget = time.monotonic(), self._bench.budget
        devices, repeat = self._buffer(item)
        batch = _Batch(self, secondary, item.label, devices, repeat)
        once = item.kind in (_Kind.WHOLE, _Kind.PLAIN, _Kind.ONCE)
        batch.pilot()
        seconds, growth_bytes = self._lasting_growth(secondary.vm, batch)
        together = min(_batch_checkpoints(budget, repeat, seconds), _most_checkpoints(growth_bytes, budget.samples))
        batch.size = budget.once_checkpoints if once else together
        batch.load()
        samples: list[Sample] = []
        looks: list[Memory] = []
        state_bytes = []
        looks_at_state = {0, budget.samples // 2, budget.samples - 1}
        for number in range(budget.samples):
            if number:
                batch.load()
            with _alive():
                if number in looks_at_state:
                    state_bytes.append(_state_bytes(secondary.vm))
                looks.append(self._settled(secondary.vm, looks[-1] if looks else None))
            samples.append(_sample(looks[-1], number * batch.size, repeat))
        return Series(
            label=item.label,
            repeat=repeat,
            once=once,
            samples=tuple(samples),
            state_bytes=tuple(state_bytes),
            chunks=_grown(looks[0].chunks, looks[-1].chunks, samples[-1].loads),
            seconds=time.monotonic() - began,
        )

    def _lasting_growth(self, vm: Vm, batch: _Batch) -> tuple[float, float]:
        """Seconds of the quickest checkpoint, and bytes that one adds for sure: the least of some looks, the first of
        which may see a buffer that only grew once."""
        before, seconds, growth = self._private_bytes(vm), math.inf, math.inf
        for _ in range(_GROWTH_LOOKS):
            seconds = min(seconds, batch.pilot())
            after = self._private_bytes(vm)
            growth, before = min(growth, (after - before) / _PILOTS), after
            if growth < _LARGE_BYTES:
                break
        return seconds, growth

    def _private_bytes(self, vm: Vm) -> int:
        with _alive():
            return private_bytes(vm.process.pid, self._ram)

    def _buffer(self, item: _Item) -> tuple[bytes, int]:
        """What a checkpoint loads, and how often the section under test stands in it."""
        budget = self._bench.budget
        if item.kind is _Kind.FRAMEWORK:
            return self._prefix, 0
        if item.kind is _Kind.PLAIN:
            return self._cpu, 0
        if item.kind is _Kind.WHOLE:
            return self._whole, 1
        own = encode(only(self._sections, frozenset({item.label})))
        if item.kind is _Kind.ONCE:
            return self._cpu + own, 1
        # where each checkpoint loads the whole machine, more of the section in it cost little
        wanted = budget.repeat * (3 if self._bench.resets else 1)
        repeat = min(wanted, max(1, budget.buffer_bytes // len(own)))
        return self._prefix + own * repeat, repeat

    def _settled(self, vm: Vm, before: Memory | None) -> Memory:
        """The smallest of some looks, one when it shows no growth."""
        # a queue of events that nobody fetches would grow in this process, and fill the socket
        vm.monitor.drain_events().clear()
        looks: list[Memory] = []
        while len(looks) < _LOOKS:
            self._settle(vm, watched=before is not None and not looks)
            looks.append(look_at_memory(vm.process.pid, self._ram, walk=self._walkable))
            walked = looks[-1].chunks is not None or not self._walkable
            if walked and (before is None or looks[-1].known_bytes < before.known_bytes + _GROWTH_BYTES):
                break
        best = [look for look in looks if look.chunks is not None]
        self._walkable = bool(best)
        return min(best or looks, key=lambda look: look.known_bytes)

    def _settle(self, vm: Vm, *, watched: bool) -> None:
        """What the others are compared with, and what seems to have grown, gets the whole pause."""
        if watched:
            wait_at_rest(vm.process.pid, self._bench.budget.settle_s)
        else:
            time.sleep(self._bench.budget.settle_s)

    def checkpoint(self, secondary: Secondary, devices: bytes, repeat: int) -> None:
        """One checkpoint, counted."""
        self._bench.scope.check()
        self.asked += repeat
        secondary.primary.checkpoint(devices)
        self.acked += repeat

    def after_batch(self, vm: Vm, label: str, loads: int, checkpoints: int) -> None:
        """Let the caller have its way between loads and look."""
        if self._bench.between is not None:
            self._bench.between(vm, label, loads, checkpoints)

    def _evidence(self, secondary: Secondary, error: ChannelBroken, began: float) -> Evidence:
        count = Count(asked=self.asked, passed=self.acked, checkpoints=secondary.primary.checkpoints)
        return evidence_of(secondary.vm, count, self._bench.broken(error, self.acked), began)


class _Batch:
    """Equal checkpoints between two looks."""

    def __init__(self, meter: _Meter, secondary: Secondary, label: str, devices: bytes, repeat: int) -> None:
        self._meter = meter
        self._secondary = secondary
        self._label = label
        self._devices = devices
        self._repeat = repeat
        self.size = 1

    def pilot(self) -> float:
        """Some checkpoints; seconds of the quickest."""
        seconds = []
        for _ in range(_PILOTS):
            began = time.monotonic()
            self._meter.checkpoint(self._secondary, self._devices, self._repeat)
            seconds.append(time.monotonic() - began)
        return min(seconds)

    def load(self) -> None:
        """All checkpoints of a batch."""
        for _ in range(self.size):
            self._meter.checkpoint(self._secondary, self._devices, self._repeat)
        with _alive():
            self._meter.after_batch(self._secondary.vm, self._label, self.size * self._repeat, self.size)


def _batch_checkpoints(budget: LeakBudget, repeat: int, checkpoint_s: float) -> int:
    """Checkpoints in a batch: as many as the time allows, within the bounds of the loads."""
    batches = budget.samples - 1
    wanted = int(budget.section_s / batches / max(checkpoint_s, 1e-5))
    if not repeat:
        least, most = _FRAMEWORK_CHECKPOINTS
        return max(least, min(wanted, most))
    least = math.ceil(budget.min_loads / batches / repeat)
    return max(least, min(wanted, budget.max_loads // batches // repeat))


def _most_checkpoints(growth_bytes: float, batches: int) -> int:
    """Checkpoints in a batch of what leaks so much that a secondary would not have the memory for a usual one."""
    if growth_bytes < _LARGE_BYTES:
        return sys.maxsize
    return max(_FEWEST_CHECKPOINTS, int(_MOST_BYTES / batches / growth_bytes))


@contextmanager
def _alive() -> Iterator[None]:
    """A process that is gone when it is looked at broke after its last acknowledgement."""
    try:
        yield
    except OSError as error:
        gone = Symptom(sign=Sign.ENDED, doing=Doing.BETWEEN, said=str(error))
        raise ChannelBroken(Step.REQUEST, "closed", gone) from error
    except QemuError as error:
        raise ChannelBroken(Step.REQUEST, "closed", symptom_of(error).during(Doing.BETWEEN)) from error
    except DeadlineError as error:
        raise ChannelBroken(Step.REQUEST, "late", symptom_of(error).during(Doing.BETWEEN)) from error


def _state_bytes(vm: Vm) -> int:
    """Size of the device state that the machine would save now; stops it, and the next checkpoint resumes it."""
    path = vm.workdir / "leak.state"
    vm.qmp("stop")
    vm.qmp("xen-save-devices-state", filename=str(path), live=False)
    size = path.stat().st_size
    path.unlink()
    return size


def _sample(look: Memory, checkpoints: int, repeat: int) -> Sample:
    return Sample(
        loads=checkpoints * repeat,
        checkpoints=checkpoints,
        private_bytes=look.private_bytes,
        heap_bytes=look.heap_bytes,
        outside_bytes=look.outside_bytes,
        descriptors=look.descriptors,
        threads=look.threads,
    )


def _grown(first: dict[int, int] | None, last: dict[int, int] | None, loads: int) -> tuple[tuple[int, int], ...]:
    """Sizes of which there are more chunks, those with most bytes first."""
    if first is None or last is None:
        return ()
    more = {size: number - first.get(size, 0) for size, number in last.items()}
    grown = [(size, number) for size, number in more.items() if number > max(4, loads * _CHUNK_SHARE)]
    return tuple(sorted(grown, key=lambda item: -item[0] * item[1]))
