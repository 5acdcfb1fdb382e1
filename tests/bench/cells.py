# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of many cells costs beside its loads: time, bytes written, memory.

``python tests/bench/cells.py [--cells N,N] [--out FOLDER] [--profile]``. N cells that are judged on paper go through
a run's bookkeeping, its events, the display, reports now and then as a run of :data:`CELL_S` seconds a cell would
write them, and in the end the document, every report and the terminal; then ``postload report`` reads the events
and writes all of it once more. They are as a real run has them: 150 devices with 23 cells on each machine, some of
them crashes with logs, refusals, drifts, leaks with their figures. Each size has a process of its own. Ends with 1
when 10,000 cells, or the same share for others, take more than the limits (of time that of the processor, which other
work on the host does not change), or when a cell of the largest size costs more than half as much again as one of the
smallest.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.colo.messages import Step
from harness.guests.lack import Lack, Lacks
from harness.report.progress import LiveProgress
from harness.report.snapshots import Snapshots
from harness.report.terminal import print_matrix
from harness.report.writer import write_reports
from harness.results.cause import (
    Assertion,
    Cause,
    Drifted,
    DriftedField,
    Ended,
    Leaked,
    Refused,
    Resource,
    Side,
    Unsupported,
)
from harness.results.document import Cell, MachineResult, Qemu, Warned
from harness.results.events import CellsPlanned, Event, EventLog, Judged, MachineSeen, Started, fold_file
from harness.results.folder import held_against
from harness.results.key import CellKey, Route
from harness.results.outcome import ControlName, ControlResult, Isolation, IsolationWay, Outcome
from harness.results.verdict import FailureClass, Verdict
from harness.work.asked import Options
from harness.work.run import Run

#: For 10,000 cells.
LIMIT_S, LIMIT_BYTES, LIMIT_RSS_BYTES = 20.0, 60_000_000, 500_000_000
LIMIT_GROWTH = 1.5
SIZES = (10_000, 40_000)
#: What judging a cell takes in a run, for the clock by which reports are written in between.
CELL_S = 1.0
JOBS = 4
DEVICES = 150
PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
#: 23 cells of a device.
COLUMNS = (
    *((lane, (phase,)) for lane in ("same", "back-to-back", "drift") for phase in PHASES),
    ("alternate", PHASES), ("walk", PHASES), ("leak", PHASES), ("plain", PHASES), ("guest", PHASES),
)  # fmt: skip
ORACLES = ("drift", "leak", "guest", "plain")
SECTIONS = (
    "PCIBUS", "PCIHost", "acpi_build", "apic", "cpu", "cpu_common", "dma", "fw_cfg", "globalstate", "hpet", "i2c_bus",
    "i8254", "i8259", "i8259#1", "ioapic", "kvm-tpr-opt", "mc146818rtc", "pckbd", "pcspk", "port92", "ps2kbd",
    "ps2mouse", "serial", "timer", "vmmouse",
)  # fmt: skip
CONTROLS = (
    ControlResult(name=ControlName.FRESH, verdict=Verdict.OK, asked=3, passed=3, decided=True),
    ControlResult(name=ControlName.LOADVM, verdict=Verdict.OK, asked=5, passed=5, decided=True),
)
HOST = {"system": "Debian GNU/Linux 12", "cores": 2, "memory_bytes": 8 << 30, "accel": {"tcg": {"usable": True}}}


def machines() -> Iterator[MachineResult]:
    """As many machines of as many QEMUs as are wanted."""
    number = 0
    while True:
        version = f"{7 + number // 2}.2.{number}"
        path, sha256 = f"/opt/{version}/qemu", f"{number:064x}"
        qemu = Qemu(version=version, build=f"Debian 1:{version}", path=path, sha256=sha256, label=version)
        for family, name in (("pc", "pc-i440fx"), ("q35", "pc-q35")):
            yield MachineResult(
                machine=f"{name}-{version}", alias=family, qemu=qemu, dialect="enable-colo", resets_before_load=False
            )
        number += 1


def rows() -> Iterator[tuple[MachineResult, str, list[CellKey]]]:
    """Machine, device and keys, row by row."""
    for machine in machines():
        route = Route(recorder=machine.qemu.label, loader=machine.qemu.label)
        names = ["platform", *(f"device-{number}-pci" for number in range(1, DEVICES))]
        for device in names:
            yield (
                machine,
                device,
                [
                    CellKey(route=route, machine=machine.machine, device=device, phases=phases, lane=lane)
                    for lane, phases in COLUMNS
                ],
            )


def paper_cell(machine: MachineResult, key: CellKey, column: int) -> Cell:
    """A cell as a run has it. What it comes to hangs on its device and its column."""
    device, by_load = key.device, key.lane not in ORACLES
    number = 0 if device == "platform" else int(device.split("-")[1])
    verdict = _verdict(number, "load" if by_load else key.lane, column)
    own = (f"0000:00:{number % 30:02x}.0/{device}",)
    loads = 60 if len(key.phases) > 1 else 100
    crash = verdict is Verdict.CRASH
    log = "".join(f"qemu-system-x86_64: line {n} of what it printed at {0x55550000 + number:#x}\n" for n in range(12))
    return Cell(
        key=key, record_qemu=machine.qemu, load_qemu=machine.qemu,
        outcome=Outcome(
            verdict=verdict, loads_asked=loads, loads_acked=loads if verdict is Verdict.OK else column,
            checkpoints_acked=loads, causes=_causes(verdict, own[0], column, number),
            sections=() if verdict is Verdict.OK else own, log=log if crash else "",
            failure_class=FailureClass.NOT_REENTRANT if crash else None, controls=CONTROLS if crash else (),
            isolation=Isolation(way=IsolationWay.ALONE, of=1) if crash else None,
        ),
        sections=SECTIONS if device == "platform" else own, seconds=0.911,
        loads_per_second=417.25 if by_load else 0.0, details=_leak(device) if key.lane == "leak" else {},
        warnings=(Warned(text="warning: TCG does not do that", load=0),) if column % 10 == 0 else (),
        pack=f"/root/.cache/postload/packs/{machine.machine}-097449130b61b430",
    )  # fmt: skip


def _verdict(number: int, oracle: str, column: int) -> Verdict:
    if number % 11 == 3 and oracle == "load":
        return Verdict.CRASH
    if number % 25 == 7 and column % 3 == 0:
        return Verdict.REJECT
    if number % 17 == 5 and oracle in ("drift", "leak"):
        return Verdict.DRIFT if oracle == "drift" else Verdict.LEAK
    return Verdict.UNSUPPORTED if number % 40 == 9 else Verdict.OK


def _causes(verdict: Verdict, section: str, column: int, number: int) -> tuple[Cause, ...]:
    line = f"../../hw/x/{number}.c:2610: f: Assertion `!s->mr' failed."
    failed = Assertion(function="f", expression="!s->mr", file=f"{number}.c")
    low, high = 20.0 + number, 50.0 + number
    drifted = tuple(DriftedField(field=f"regs[{n}]", type="uint32", values=(1, column, n)) for n in range(3))
    causes: dict[Verdict, Cause] = {
        Verdict.CRASH: Ended(step=Step.LOAD, load=column + 1, signal="SIGABRT", assertion=failed, line=line),
        Verdict.REJECT: Refused(step=Step.LOAD, load=column + 1, status=1, section=section, reason=f"no {number}"),
        Verdict.DRIFT: Drifted(section=section, fields=drifted, count=3, loads=50),
        Verdict.LEAK: Leaked(
            section=section, resource=Resource.MEMORY, per_load=30, low=low, high=high, unit="bytes", loads=9
        ),
        Verdict.UNSUPPORTED: Unsupported(side=Side.LOADER, lack=Lack(what=Lacks.TYPES, names=("sd",), qemu="7.2.22")),
    }
    return () if verdict is Verdict.OK else (causes[verdict],)


def _leak(device: str) -> dict[str, Any]:
    """1 kB a section, and the platform has many."""
    figure = {"estimate": 0.0, "low": -3.1825, "high": 1.64}
    names = ("memory", "outside", "private", "descriptors", "threads")
    figures = {f"{name}_per_load": figure for name in names}
    run = {"control": "port92", "loads": 358400, **figures}
    one = {**figures, "state_bytes": [109780] * 3, "run": run, "first_look": figures}
    return dict.fromkeys(SECTIONS if device == "platform" else (device,), one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a part took: seconds, those of the processor among them, bytes written, and the most memory it ever had."""

    seconds: float
    cpu_s: float
    written_bytes: int
    rss_bytes: int

    def __str__(self) -> str:
        written_mb, rss_mb = self.written_bytes / 1e6, self.rss_bytes / 1e6
        return f"{self.seconds:5.1f} s ({self.cpu_s:.1f} s of CPU), {written_mb:.1f} MB written, {rss_mb:.0f} MB memory"


class _Nothing:
    """A watcher; the display takes the events."""

    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


#: Does something, and says what is to be done next.
Job = Callable[[], "list[Any]"]


class _PaperRun(Run):
    """A run whose work is done by functions of this file."""

    def _announced(self, subject: Any) -> Any:
        return subject

    def _do(self, due: Any) -> list[Any]:
        todo: list[Any] = due()
        return todo

    def _enqueue(self, queue: Any, task: Any) -> None:
        queue.add(task, (1, 0))


def _options() -> Options:
    return Options(
        binaries=(), accel="tcg", machines=(), profiles=(), devices=(), phases=PHASES, schedules=(), guest_modes=(),
        loads=100, jobs=JOBS, run_s=0.0,
    )  # fmt: skip


def run_cells(count: int, out: Path) -> int:
    """A run of so many cells, to its reports; returns how many bytes it wrote."""
    log = EventLog(out)
    started = Started(command=("postload", "matrix"), host=HOST)
    judged = [0]

    def clock() -> float:
        return time.monotonic() + judged[0] * CELL_S

    def count_cells(event: Event) -> None:
        judged[0] += isinstance(event, Judged)

    with log, LiveProgress(total_cells=0, console=Console(file=io.StringIO())) as progress:
        snapshots = Snapshots(out, lambda: held_against(run.document(), started).doc, lambda: log.size_bytes, clock)
        sinks = (count_cells, progress.take, snapshots.take)
        run = _PaperRun(_options(), watcher=_Nothing(), started=started, write=log.write, sinks=sinks)
        doc = run.execute(_jobs(run, count))
    doc = held_against(doc, started).doc
    assert (len(doc.cells), doc.complete) == (count, True)
    paths = write_reports(doc, out)
    print_matrix(doc, Console(file=io.StringIO(), width=100))
    return log.size_bytes + snapshots.written_bytes + sum(path.stat().st_size for path in paths)


def _jobs(run: Run, count: int) -> list[Any]:
    """As a run has them: each machine plans its rows and brings a job for each cell."""

    def judge(machine: MachineResult, key: CellKey, column: int) -> list[Job]:
        run._keep(str(key), paper_cell(machine, key, column))
        return []

    def prepare(mine: list[tuple[MachineResult, str, list[CellKey]]]) -> list[Job]:
        run.tell(MachineSeen(machine=mine[0][0]))
        for _, _, keys in mine:
            run.tell(CellsPlanned(row=keys[0].row, cells=tuple(map(str, keys))))
        return [partial(judge, machine, key, column) for machine, _, keys in mine for column, key in enumerate(keys)]

    left, wanted = count, []
    for machine, device, names in rows():
        wanted.append((machine, device, names[:left]))
        left -= len(names)
        if left <= 0:
            break
    groups: dict[str, list[tuple[MachineResult, str, list[CellKey]]]] = {}
    for row in wanted:
        groups.setdefault(row[0].machine, []).append(row)
    return [partial(prepare, group) for group in groups.values()]


def report_cells(count: int, out: Path) -> int:
    """``postload report``: events to all reports and the terminal."""
    fold = fold_file(out / "cells.jsonl")
    doc = held_against(fold.document(), fold.started).doc
    assert (len(doc.cells), doc.complete) == (count, True)
    paths = write_reports(doc, out)
    print_matrix(doc, Console(file=io.StringIO(), width=100))
    return sum(path.stat().st_size for path in paths)


PARTS: dict[str, Callable[[int, Path], int]] = {"run": run_cells, "report": report_cells}


def measured(part: str, count: int, out: Path) -> Cost:
    """One part in this process."""
    began_s = time.monotonic()
    written = PARTS[part](count, out)
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - began_s
    return Cost(seconds=seconds, cpu_s=time.process_time(), written_bytes=written, rss_bytes=rss_bytes)


def _apart(part: str, count: int, out: Path) -> Cost:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--cells", str(count), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Cost(**json.loads(done.stdout))


def measure(sizes: list[int], folder: Path) -> bool:
    """Print the table; whether all is within the limits."""
    fine = True
    costs: dict[int, Cost] = {}
    for count in sizes:
        out = folder / str(count)
        for part in PARTS:
            cost = _apart(part, count, out)
            costs[count] = cost if part == "run" else costs[count]
            print(f"{count:7} cells, {part:6} {cost}", flush=True)
            share = max(1.0, count / 10_000)
            fine &= cost.cpu_s <= LIMIT_S * share and cost.written_bytes <= LIMIT_BYTES * share
            fine &= cost.rss_bytes <= LIMIT_RSS_BYTES * share
        names = ("cells.jsonl", "matrix.json", "matrix.html", "matrix.md", "junit.xml", "matrix.tap")
        print("  " + ", ".join(f"{name} {(out / name).stat().st_size / 1e6:.1f} MB" for name in names))
    small, large = min(sizes), max(sizes)
    growth = (costs[large].cpu_s / large) / (costs[small].cpu_s / small)
    print(f"a cell of {large} takes {growth:.2f} times as long as one of {small}")
    return fine and growth <= LIMIT_GROWTH


def _profiled(count: int, folder: Path) -> None:
    for part, function in PARTS.items():
        profile = cProfile.Profile()
        profile.runcall(function, count, folder)
        print(part)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def main() -> int:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", default=",".join(map(str, SIZES)), help="how many, several by commas")
    parser.add_argument("--out", type=Path, help="keep what is written here")
    parser.add_argument("--profile", action="store_true", help="in this process, with its slowest functions")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = [int(text) for text in given.cells.split(",")]
    if given.part:
        cost = measured(given.part, sizes[0], given.out)
        names = ("seconds", "cpu_s", "written_bytes", "rss_bytes")
        print(json.dumps({name: getattr(cost, name) for name in names}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if given.profile:
            _profiled(sizes[0], given.out or Path(folder))
            return 0
        return 0 if measure(sizes, given.out or Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
