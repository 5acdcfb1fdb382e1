# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the heap chunks that a leak leaves behind were allocated: loads under gdb, and a walk through the heap.

The sizes of the chunks are known from the leak oracle. A secondary that has taken some loads already is stopped in each
call that asks for such a size (:mod:`harness.triage.gdb_allocations`), and what each call returned is looked for in the
heap some loads later: memory that is freed, or that the next load replaces, is gone by then. What is left leaks, and
the stack of its call is where it was allocated.

It is kept in ``backtraces/CELL.allocations.json`` (schema ``postload.allocations/1``), for the next who asks.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from harness.colo.primary import ChannelBroken
from harness.deadline import Deadline
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility, probe_colo
from harness.engines.secondary import Secondary
from harness.errors import DeadlineError, PostloadError, QemuError
from harness.experiments.leak import FRAMEWORK, LeakBench, LeakBudget, _Item, _Kind, _Meter, tuned_secondary
from harness.experiments.memory import LEAST_CHUNK_BYTES, chunks_in_use
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.process import scratch_folder
from harness.results.cause import Leaked, LoadedBy, Resource
from harness.results.document import Cell
from harness.results.frames import Frame, short_form
from harness.state.transforms import GuestMode
from harness.triage.backtrace import parse_frames
from harness.triage.cells import phase_of
from harness.triage.debugger import GdbLauncher, denied_line
from harness.triage.stack import read_looked, stack_file, write_looked

SCHEMA: Final = "postload.allocations/1"
DEADLINE_S: Final = 90.0
#: A build that resets the machine makes thousands of small allocations in a load: no more loads than it takes by then.
ENOUGH_S: Final = 15.0
#: Loads before anything is looked at, and those that are counted: as many as leave some chunks of the rarest size. As
#: few again come behind them.
WARM_UP_LOADS, LEAST_LOADS, MOST_LOADS, WANTED_CHUNKS = 20, 8, 64, 4
#: One chunk of a place may be there for another reason.
_FEWEST_CHUNKS = 2
#: QEMU's RCU thread frees memory some time after the load; a heap that is being changed cannot be walked.
_SETTLE_S, _LOOKS = 0.2, 5
#: For an answer while gdb stops QEMU in every allocation.
_ANSWER_S, _ARM_S, _POLL_S = 60.0, 30.0, 0.05
_SCRIPT = Path(__file__).with_name("gdb_allocations.py")
#: malloc's own part of a chunk, and what its size is a multiple of.
_OWN_BYTES, _STEP_BYTES = 8, 16
#: Nobody asks the C library or glib who leaks: their frames are left out at the inner end.
_ALLOCATOR = re.compile(r"/lib(c|glib-2\.0)[.-][^/]*$|^$")
_NO_PYTHON = re.compile(r"[Ss]cripting in the .Python. language is not supported")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$", re.MULTILINE)


class AllocationsHow(StrEnum):
    """How call sites were found, or why not; the value is what is stored."""

    SEEN = "seen"
    NO_CHUNKS = "no-chunks"  # what leaks is no heap, or its chunks are not known
    NO_GDB = "no-gdb"
    NO_PYTHON = "gdb-without-python"
    NO_ALLOCATOR = "no-allocator"  # gdb finds no malloc in this program, or does not know the processor
    DENIED = "gdb-denied"  # ``said`` is gdb's line
    LATE = "gdb-late"
    FOREIGN = "foreign"  # under gdb there would be no walls
    NO_PACK = "no-pack"
    NO_HEAP = "no-heap"  # it could not be walked
    NOT_AGAIN = "not-again"  # nothing stayed
    FAILED = "failed"  # ``said`` is the text of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSite:
    """A place that allocates what stays.

    :param section: whose load it is; empty for the whole state
    :param size_bytes: of a chunk, with malloc's own part
    :param per_load: how many stay for each load
    :param frames: from whoever asked for it outwards
    :param short: names from there to what dispatched the load; empty when there is none
    """

    section: str
    size_bytes: int
    per_load: float
    frames: tuple[Frame, ...]
    short: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocations:
    """Where what a leak leaves behind was allocated.

    :param sites: those with most bytes first; empty when none could be found
    :param said: see :class:`AllocationsHow`
    :param loads: that were counted
    :param freed_per_load: further calls that ask for such a size, and whose memory is freed again
    :param qemu: version and path of the QEMU that was looked at, where it is not the cell's own
    """

    how: AllocationsHow
    said: str = ""
    sites: tuple[CallSite, ...] = ()
    loads: int = 0
    freed_per_load: float = 0.0
    qemu: str = ""

    @property
    def debug(self) -> bool:
        """Debug symbols were found."""
        return any(frame.file for site in self.sites for frame in site.frames if frame.in_qemu)

    def of(self, sections: Iterable[str]) -> Allocations:
        """Those of some sections alone."""
        return replace(self, sites=tuple(site for site in self.sites if site.section in set(sections)))

    def to_json(self) -> dict[str, Any]:
        sites = [{**asdict(site), "frames": [frame.to_json() for frame in site.frames]} for site in self.sites]
        return {**asdict(self), "sites": sites}


# -- kept ------------------------------------------------------------------------------------------------------------


def _file(run: Path, cell: Cell) -> Path:
    return stack_file(run, cell).with_suffix(".allocations.json")


def kept_allocations(run: Path, cell: Cell, sha256: str | None = None) -> Allocations | None:
    """What somebody has found already.

    :param sha256: only of this QEMU; any when None
    :return: None when there is none, or the file cannot be read
    """
    try:
        told = read_looked(_file(run, cell), SCHEMA, cell, sha256)["allocations"]
        frames = [tuple(Frame(**frame) for frame in site["frames"]) for site in told["sites"]]
        sites = [CallSite(**{**site, "frames": each}) for site, each in zip(told["sites"], frames, strict=True)]
        return Allocations(**{**told, "how": AllocationsHow(told["how"]), "sites": tuple(sites)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(run: Path, cell: Cell, binary: QemuBinary, found: Allocations) -> None:
    write_looked(_file(run, cell), SCHEMA, cell, binary, allocations=found.to_json())


# -- finding them ----------------------------------------------------------------------------------------------------


def leaks_of_heap(cell: Cell) -> list[Leaked]:
    """What of the cell's leaks are chunks of known sizes."""
    leaks = (cause for cause in cell.outcome.causes if isinstance(cause, Leaked))
    return [leak for leak in leaks if leak.resource is Resource.MEMORY and leak.chunks]


def find_allocations(cell: Cell, run: Path, pack: StatePack, qemu: Path) -> Allocations:
    """Load what leaks under gdb; what is found is kept.

    :param qemu: the program that loads it
    :return: without sites, and with why in ``how``, where they cannot be had; never an error of its own
    """
    leaks = leaks_of_heap(cell)
    if not leaks:
        return Allocations(how=AllocationsHow.NO_CHUNKS)
    gdb = shutil.which("gdb")
    if gdb is None:
        return Allocations(how=AllocationsHow.NO_GDB)
    try:
        binary = probe_binary(qemu)
        ability = probe_colo(binary)
        found = _joined([_Watched(cell, leak, binary, ability, pack, gdb).run() for leak in leaks])
    except _Unfound as unfound:
        return Allocations(how=unfound.how)
    except (PostloadError, ChannelBroken, OSError) as error:
        return _why_not(error)
    if binary.sha256 != cell.load_qemu.sha256:
        found = replace(found, qemu=f"{binary.version} at {binary.path}")
    if found.sites:
        _keep(run, cell, binary, found)
    return found


class _Unfound(Exception):
    """There is nothing to be found in this process."""

    def __init__(self, how: AllocationsHow) -> None:
        super().__init__(how)
        self.how = how


def _why_not(error: Exception) -> Allocations:
    said = str(error)
    denied = denied_line(said)
    if denied:
        return Allocations(how=AllocationsHow.DENIED, said=denied)
    if _NO_PYTHON.search(said):
        return Allocations(how=AllocationsHow.NO_PYTHON)
    how = AllocationsHow.LATE if isinstance(error, DeadlineError) else AllocationsHow.FAILED
    return Allocations(how=how, said=said[-300:])


def _joined(parts: Sequence[Allocations]) -> Allocations:
    """What was found of each section."""
    sites = sorted((site for part in parts for site in part.sites), key=lambda s: -s.size_bytes * s.per_load)
    return Allocations(
        how=AllocationsHow.SEEN if sites else AllocationsHow.NOT_AGAIN,
        sites=tuple(sites),
        loads=max(part.loads for part in parts),
        freed_per_load=sum(part.freed_per_load for part in parts),
    )


def asked_bytes(chunk_bytes: int) -> tuple[int, int]:
    """The least and the most that a program can have asked for to get a chunk of such a size."""
    most = chunk_bytes - _OWN_BYTES
    return 0 if chunk_bytes <= LEAST_CHUNK_BYTES else most - _STEP_BYTES + 1, most


class _Watched:
    """One section of a cell, loaded under gdb."""

    def __init__(
        self, cell: Cell, leak: Leaked, binary: QemuBinary, ability: ColoAbility, pack: StatePack, gdb: str
    ) -> None:
        self._leak = leak
        self._program = Path(binary.path)
        self._gdb = gdb
        rarest = min(count for _, count in leak.chunks)
        self._loads = max(LEAST_LOADS, min(MOST_LOADS, math.ceil(WANTED_CHUNKS / max(rarest, 0.01))))
        self._bench = LeakBench(
            binary=binary,
            dialect=ability.dialect,
            resets=bool(ability.resets_before_load),
            buffers=Buffers(pack).looked_at(binary.path),
            phase=phase_of(cell),
            excluded=frozenset(cell.left_out),
            timeout_s=_ANSWER_S,
            budget=LeakBudget(repeat=LEAST_LOADS),
        )

    def run(self) -> Allocations:
        """Load it, and look.

        :raises _Unfound: it cannot be looked at
        :raises PostloadError: QEMU or gdb did not start, or took too long
        :raises ChannelBroken: a load broke the secondary
        """
        with scratch_folder() as folder:
            report = _Reported(folder / "report")
            argv = [str(report.path), *(":".join(map(str, asked_bytes(size))) for size, _ in self._leak.chunks)]
            commands = [f"python import sys; sys.argv = {argv!r}", f"source {_SCRIPT}", "kill"]
            launcher = GdbLauncher(folder, self._gdb, self._program, commands)
            under_gdb = replace(self._bench.binary, path=str(launcher.path))
            bench = replace(self._bench, binary=under_gdb)
            with tuned_secondary(bench) as secondary:
                bench.begin(secondary, GuestMode.PARKED)
                return self._look(bench, secondary, launcher, report)

    def _look(self, bench: LeakBench, secondary: Secondary, launcher: GdbLauncher, report: _Reported) -> Allocations:
        once = self._leak.way is LoadedBy.CHECKPOINT
        kind = _Kind.WHOLE if self._leak.section == FRAMEWORK else _Kind.ONCE if once else _Kind.SECTION
        meter, deadline = _Meter(bench), secondary.vm.deadline(DEADLINE_S)
        devices, repeat = meter._buffer(_Item(kind, self._leak.section))

        def load(least: int, most: int) -> int:
            enough, loads = secondary.vm.deadline(ENOUGH_S), 0
            while loads < least or (loads < most and not enough.over):
                if deadline.over:
                    raise DeadlineError(f"not within {DEADLINE_S:g} s")
                meter.checkpoint(secondary, devices, repeat)
                loads += repeat
            return loads

        load(WARM_UP_LOADS, WARM_UP_LOADS)
        launcher.signal(signal.SIGINT)
        report.wait_armed(secondary.vm.deadline(_ARM_S))
        loads = load(LEAST_LOADS, self._loads)
        counted = max((call.number for call in report.calls()), default=0)
        load(LEAST_LOADS, LEAST_LOADS)
        pid = _pid_of(launcher)
        in_use = of_sizes(_settled_chunks(pid), {size for size, _ in self._leak.chunks})
        modules = modules_of(Path(f"/proc/{pid}/maps").read_text())
        sites = call_sites(self._leak.section, report.calls(), counted, loads, in_use, modules)
        freed = counted / loads - sum(site.per_load for site in sites)
        return Allocations(how=AllocationsHow.SEEN, sites=sites, loads=loads, freed_per_load=round(max(0.0, freed), 2))


def _pid_of(launcher: GdbLauncher) -> int:
    """The process id of the QEMU that gdb has started.

    :raises QemuError: it is gone
    """
    children = launcher.processes()[1:]
    if not children:
        raise QemuError("the QEMU under gdb is gone")
    return children[0]


def _settled_chunks(pid: int) -> dict[int, int]:
    for _ in range(_LOOKS):
        time.sleep(_SETTLE_S)
        found = chunks_in_use(pid)
        if found is not None:
            return found
    raise _Unfound(AllocationsHow.NO_HEAP)


# -- what gdb saw ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of an allocator: its number from 1 on, gdb's text of its stack, and what it returned."""

    number: int
    stack: str
    pointer: int


class _Reported:
    """The file that gdb writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_armed(self, deadline: Deadline) -> None:
        """Until gdb looks.

        :raises _Unfound: it finds no allocator
        :raises DeadlineError: it did not get there
        """
        while not (lines := self._lines()):
            if deadline.over:
                raise DeadlineError("gdb did not get to look at its allocations")
            time.sleep(_POLL_S)
        if not lines[0]["armed"]:
            raise _Unfound(AllocationsHow.NO_ALLOCATOR)

    def calls(self) -> list[Call]:
        """Calls that have returned, in that order."""
        return read_calls(self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        # the last one may not be whole yet
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


def read_calls(lines: Iterable[dict[str, Any]]) -> list[Call]:
    """The calls that returned something, in the order in which they did."""
    stacks: dict[int, str] = {}
    calls = []
    for line in lines:
        if "stack" in line:
            stacks[line["call"]] = line["stack"]
        elif line.get("pointer"):
            calls.append(Call(number=line["call"], stack=stacks[line["call"]], pointer=line["pointer"]))
    return calls


def of_sizes(in_use: Mapping[int, int], sizes: Collection[int]) -> dict[int, int]:
    """The chunks of some sizes, each with the one that was meant: malloc may give one step more than it has to.

    A chunk of another size was given anew since, for something that nobody asks for here.
    """
    meant = {size + _STEP_BYTES: size for size in sizes} | {size: size for size in sizes}
    return {pointer: meant[size] for pointer, size in in_use.items() if size in meant}


def call_sites(
    section: str,
    calls: Iterable[Call],
    counted: int,
    loads: int,
    in_use: Mapping[int, int],
    modules: Sequence[Mapped],
) -> tuple[CallSite, ...]:
    """The places whose memory stays.

    :param calls: in the order in which they returned
    :param counted: number of the last call that counts, and ``loads`` how many loads made those
    :param in_use: address to size of the chunks that are in use after all calls
    """
    staying: dict[str, list[int]] = {}
    # what was given anew is the last call's
    for call in {call.pointer: call for call in calls}.values():
        if call.number <= counted and call.pointer in in_use:
            staying.setdefault(call.stack, []).append(in_use[call.pointer])
    return tuple(
        CallSite(
            section=section,
            size_bytes=Counter(sizes).most_common(1)[0][0],
            per_load=round(len(sizes) / loads, 2),
            frames=frames,
            short=short_form(frames),
        )
        for stack, sizes in staying.items()
        if len(sizes) >= _FEWEST_CHUNKS
        for frames in [site_frames(stack, modules)]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """Where a program or library lies in a process, from its first mapping to the end of its last one."""

    path: str
    first: int
    last: int


def modules_of(maps: str) -> list[Mapped]:
    """Of ``/proc/PID/maps``."""
    found: dict[str, Mapped] = {}
    for first, last, path in _MAPPING.findall(maps):
        here = Mapped(path=path, first=int(first, 16), last=int(last, 16))
        found[path] = replace(found.get(path, here), last=here.last)
    return list(found.values())


def site_frames(stack: str, modules: Sequence[Mapped]) -> tuple[Frame, ...]:
    """Frames without those of the allocators; one without a source file gets its place in its module."""
    frames = list(parse_frames(stack))
    while frames and not frames[0].in_qemu and _ALLOCATOR.search(frames[0].module):
        frames.pop(0)
    return tuple(_placed(frame, modules) for frame in frames)


def _placed(frame: Frame, modules: Sequence[Mapped]) -> Frame:
    if frame.file or not frame.address:
        return frame
    at = int(frame.address, 16)
    module = next((each for each in modules if each.first <= at < each.last), None)
    return frame if module is None else replace(frame, module=module.path, offset=f"0x{at - module.first:x}")
