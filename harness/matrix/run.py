# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a matrix: record what is not recorded yet, judge every cell, keep the document up to date all the while."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

from harness.cache import cache_root
from harness.errors import HarnessError, HostError, PackError, QemuError, UsageError
from harness.guest.build import Guest
from harness.matrix.checks import Check, perform, planned_checks
from harness.matrix.controls import ControlRoom
from harness.matrix.judge import Bench, RunControls, judge_cell
from harness.matrix.model import Cell, Finding, MachineResult, MatrixDoc, Qemu
from harness.matrix.plan import CellPlan, plan_cells
from harness.oracle.verdict import Verdict
from harness.qemu.binary import QemuBinary
from harness.qemu.process import kill_all
from harness.record.pack import StatePack
from harness.record.profile import Profile
from harness.record.recorder import PHASES, Plan, ordered_phases, record
from harness.replay.engine import Buffers, Pace, Stopped
from harness.replay.probe import ColoAbility, probe_colo
from harness.replay.schedule import Schedule
from harness.replay.state import GuestMode

#: Part of the key of a kept recording: raised when recordings of older programs shall not be used again.
_RECORDING_FORMAT = 1
_POLL_S = 0.2
_PLATFORM = "platform"


#: Does something and returns what is to be done next.
Job = Callable[[], "list[Job]"]


class Watcher(Protocol):
    """Told what is going on; see :class:`harness.report.progress.LiveProgress`."""

    def add_cells(self, count: int) -> None: ...
    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def end_cell(self, cell: Cell) -> None: ...
    def stage(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a matrix is asked to cover.

    :param machines: families, e.g. ``pc``, ``q35``, or versioned names
    :param profiles: every profile that the guest is built with; ``devices`` are the rows to be judged
    :param run_s: how long the guest runs after each load
    :param fresh: record anew even when a recording is kept
    :param pair: breaks are repeated with a real primary and a real secondary
    :param quick: loads only: no control, no oracle beyond the answers of the secondary
    """

    binaries: tuple[QemuBinary, ...]
    accel: str
    machines: tuple[str, ...]
    profiles: tuple[Profile, ...]
    devices: tuple[str, ...]
    phases: tuple[str, ...]
    schedules: tuple[Schedule, ...]
    guest_modes: tuple[GuestMode, ...]
    loads: int
    jobs: int
    run_s: float
    fresh: bool = False
    quick: bool = False
    pair: bool = False


@dataclass(slots=True, kw_only=True)
class Seen:
    """A machine of the run; ``ability`` is None until its QEMU was probed."""

    machine: str
    family: str
    binary: QemuBinary
    ability: ColoAbility | None = None


class Run:
    """A matrix in the making.

    :param guest: builds the guest when a recording has to be made
    :param watcher: told about progress, from several threads
    :param on_cell: called after each judged cell with the document so far
    """

    def __init__(
        self,
        options: Options,
        *,
        guest: Callable[[], Guest] | None = None,
        watcher: Watcher,
        on_cell: Callable[[MatrixDoc], None],
        host: dict[str, Any],
        command: Sequence[str],
    ) -> None:
        self._options = options
        self._guest = guest
        self._watcher = watcher
        self._on_cell = on_cell
        self._stop = Event()
        self._lock = Lock()
        self._began = time.monotonic()
        self._planned: list[str] = []
        self._cells: dict[str, list[Cell]] = {}
        self._machines: list[Seen] = []
        self._doc = MatrixDoc(
            command=tuple(command),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            complete=False,
            host=host,
            machines=(),
            cells=(),
        )

    def execute(self, prepare: Callable[[QemuBinary, str], list[Job]] | None = None) -> MatrixDoc:
        """Judge everything; Ctrl-C gives what was judged until then, ``complete`` false.

        :raises HostError: the host has no space left, or the like; the document so far was handed to ``on_cell``
        """
        pool = ThreadPoolExecutor(max_workers=self._options.jobs, thread_name_prefix="cell")
        try:
            self._finish(pool, [pool.submit(prepare or self._prepare, *job) for job in self._jobs()])
            complete = True
        except KeyboardInterrupt:
            complete = False
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            pool.shutdown(wait=True)
        return self.document(complete=complete)

    def document(self, *, complete: bool = False) -> MatrixDoc:
        """The matrix so far, cells in the order of the plan."""
        with self._lock:
            cells = tuple(cell for planned in self._planned for cell in self._cells.get(planned, ()))
            machines = tuple(_machine_result(seen, cells) for seen in self._machines)
        seconds = time.monotonic() - self._began
        return replace(self._doc, cells=cells, machines=machines, seconds=seconds, complete=complete)

    def _jobs(self) -> list[tuple[QemuBinary, str]]:
        """Each machine once, though it was named twice or by its alias too, or its QEMU by two paths."""
        jobs: dict[tuple[str, str], tuple[QemuBinary, str]] = {}
        for binary in self._options.binaries:
            for machine in self._options.machines:
                jobs.setdefault((binary.sha256, _machine_names(binary, machine)[1]), (binary, machine))
        return list(jobs.values())

    def _finish(self, pool: ThreadPoolExecutor, first: list[Future[list[Job]]]) -> None:
        """Wait for preparations and for the cells that they bring; the first error that stops a run is raised."""
        waiting: set[Future[list[Job]]] = set(first)
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                waiting |= {pool.submit(job) for job in future.result()}

    def _prepare(self, binary: QemuBinary, machine: str) -> list[Job]:
        """Have a recording of one machine; returns the jobs that judge its cells."""
        family, name = _machine_names(binary, machine)
        seen = self._see(name, family, binary)
        rows = [p for p in self._options.profiles if p.name in self._options.devices]
        missing = {p.name: _missing(p, binary, machine, family) for p in self._options.profiles}
        plans = self._plan(name, [p.name for p in rows])
        self._add(plans, binary)
        able = [plan for plan in plans if missing[plan.device] is None]
        for plan in plans:
            if missing[plan.device] is not None:
                self._settle(plan, binary, Verdict.UNSUPPORTED, missing[plan.device] or "")
        if not able:
            return []
        try:
            seen.ability = ability = probe_colo(binary)
            profiles = tuple(p for p in self._options.profiles if missing[p.name] is None)
            pack = self._pack(binary, name, family, profiles)
        except (HostError, Stopped):
            raise
        except (QemuError, HarnessError) as error:
            if self._stop.is_set():
                raise Stopped("stopped") from error
            self._watcher.message(f"{binary.short} {name}: {error}")
            for plan in able:
                self._settle(plan, binary, Verdict.HARNESS_ERROR, str(error))
            return []
        return self._jobs_for(pack, binary, ability, able)

    def prepare_pack(self, pack: StatePack, binary: QemuBinary, machine: str) -> list[Job]:
        """The jobs of a pack that is open already."""
        seen = self._see(machine, pack.manifest.family, binary)
        plans = self._plan(machine, list(self._options.devices))
        self._add(plans, binary)
        if binary.machine(machine) is None:
            for plan in plans:
                self._settle(plan, binary, Verdict.UNSUPPORTED, f"this QEMU has no machine {machine}")
            return []
        try:
            seen.ability = probe_colo(binary)
        except QemuError as error:
            self._watcher.message(f"{binary.short} {machine}: {error}")
            for plan in plans:
                self._settle(plan, binary, Verdict.HARNESS_ERROR, str(error))
            return []
        return self._jobs_for(pack, binary, seen.ability, plans)

    def _jobs_for(
        self, pack: StatePack, binary: QemuBinary, ability: ColoAbility, plans: Sequence[CellPlan]
    ) -> list[Job]:
        """The jobs that judge planned cells of one open pack."""
        bench = Bench(
            binary=binary,
            ability=ability,
            buffers=Buffers(pack),
            pace=Pace(run_s=self._options.run_s),
            stop=self._stop,
        )
        # the platform is last in a report and first in a run: what breaks it is then known to the other rows
        ordered = sorted(plans, key=lambda plan: plan.device != _PLATFORM)
        checks = self._checks(pack.manifest.machine, binary, list(dict.fromkeys(plan.device for plan in plans)))
        after = _Countdown(len(ordered), [partial(self._check, check, bench) for check in checks])
        control = None if self._options.quick else ControlRoom(bench=bench, pair=self._options.pair).judge
        return [partial(self._judge, plan, bench, control, after) for plan in ordered]

    def _checks(self, machine: str, binary: QemuBinary, rows: list[str]) -> list[Check]:
        """The experiments of a machine; their cells stand behind those of the schedules, row by row."""
        checks = [] if self._options.quick else planned_checks(self._options.phases, rows)
        for row in rows:
            ids = [check.cell_id(binary.short, machine, row) for check in checks if row in check.rows]
            with self._lock:
                mine = [i for i, planned in enumerate(self._planned) if f"/{machine}/{row}/" in planned]
                at = 1 + max(i for i in mine if self._planned[i].startswith(binary.short + "/"))
                self._planned[at:at] = ids
        self._watcher.add_cells(sum(len(check.rows) for check in checks))
        return checks

    def _see(self, machine: str, family: str, binary: QemuBinary) -> Seen:
        seen = Seen(machine=machine, family=family, binary=binary)
        with self._lock:
            self._machines.append(seen)
        return seen

    def _plan(self, machine: str, devices: list[str]) -> list[CellPlan]:
        return plan_cells(
            machine=machine,
            devices=devices,
            phases=self._options.phases,
            schedules=self._options.schedules,
            guest_modes=self._options.guest_modes,
            loads=self._options.loads,
        )

    def _add(self, plans: Sequence[CellPlan], binary: QemuBinary) -> None:
        with self._lock:
            self._planned += [plan.id(binary.short) for plan in plans]
        self._watcher.add_cells(len(plans))

    def _pack(self, binary: QemuBinary, name: str, family: str, profiles: tuple[Profile, ...]) -> StatePack:
        assert self._guest is not None  # only a run over an open pack has none, and it records nothing
        guest = self._guest()
        plan = Plan(
            binary=binary,
            machine=name,
            family=family,
            accel=self._options.accel,
            guest=guest,
            profiles=profiles,
            phases=tuple(ordered_phases([*PHASES, *self._options.phases])),
        )
        path = cache_root() / "packs" / recording_key(plan)
        if not self._options.fresh:
            try:
                return StatePack(path)
            except PackError as error:
                if path.exists():
                    self._watcher.message(f"recording anew: {error}")
        _remove(path)
        record(plan, path, lambda phase: self._watcher.stage(f"recording {name}: {phase}"))
        return StatePack(path)

    def _judge(
        self, plan: CellPlan, bench: Bench, control: RunControls | None, after: _Countdown
    ) -> list[Job]:
        """Judge a planned cell; the last one of a machine brings the checks, which know by then what to leave out."""
        if not self._stop.is_set():
            self._judge_now(plan, bench, control)
        return after.one_less()

    def _check(self, check: Check, bench: Bench) -> list[Job]:
        if self._stop.is_set():
            return []
        planned = [check.cell_id(bench.binary.short, bench.buffers.pack.manifest.machine, row) for row in check.rows]
        self._watcher.start_cell(planned[0])
        for name, cell in zip(planned, perform(check, bench), strict=True):
            self._keep(name, cell)
        return []

    def _judge_now(self, plan: CellPlan, bench: Bench, control: RunControls | None) -> None:
        planned = plan.id(bench.binary.short)
        self._watcher.start_cell(planned)
        for cell in judge_cell(plan, bench, self._watcher.loads, control):
            if self._stop.is_set():
                return
            more = bool(self._cells.get(planned))
            if more:
                self._watcher.add_cells(1)
            self._keep(planned, cell)

    def _settle(self, plan: CellPlan, binary: QemuBinary, verdict: Verdict, text: str) -> None:
        qemu = Qemu(**binary.identity())
        cell = Cell(
            id=plan.id(binary.short),
            record_qemu=qemu,
            load_qemu=qemu,
            machine=plan.machine,
            accel=self._options.accel,
            device=plan.device,
            phases=plan.phases,
            schedule=str(plan.schedule),
            guest_mode=str(plan.guest_mode),
            loads_asked=plan.loads,
            verdict=verdict,
            finding=Finding(text=text),
        )
        self._keep(cell.id, cell)

    def _keep(self, planned: str, cell: Cell) -> None:
        with self._lock:
            self._cells.setdefault(planned, []).append(cell)
        self._watcher.end_cell(cell)
        self._on_cell(self.document())


class _Countdown:
    """Jobs that become due when others are all done."""

    def __init__(self, count: int, jobs: list[Job]) -> None:
        self._left = count
        self._jobs = jobs
        self._lock = Lock()

    def one_less(self) -> list[Job]:
        """The jobs, when this was the last."""
        with self._lock:
            self._left -= 1
            return self._jobs if self._left == 0 else []


def load_pack_rows(run: Run, pack: StatePack) -> MatrixDoc:
    """Judge the rows of an open pack with every binary of the run."""
    return run.execute(lambda binary, machine: run.prepare_pack(pack, binary, machine))


def make_recording(
    *,
    binary: QemuBinary,
    machine: str,
    accel: str,
    guest: Guest,
    profiles: Sequence[Profile],
    phases: Sequence[str],
    path: Path,
    stage: Callable[[str], None],
) -> Path:
    """Record one guest outside a matrix.

    :raises UsageError: a device is not to be had on this machine with this QEMU
    """
    family, name = _machine_names(binary, machine)
    for profile in profiles:
        reason = _missing(profile, binary, machine, family)
        if reason is not None:
            raise UsageError(f"cannot record {profile.name} on {name}: {reason}")
    plan = Plan(
        binary=binary,
        machine=name,
        family=family,
        accel=accel,
        guest=guest,
        profiles=tuple(profiles),
        phases=tuple(phases),
    )
    return record(plan, path, lambda phase: stage(f"recording {name}: {phase}"))


def recording_key(plan: Plan) -> str:
    """Names a kept recording by everything that went into it."""
    parts = {
        "format": _RECORDING_FORMAT,
        "qemu": plan.binary.sha256,
        "machine": plan.machine,
        "accel": plan.accel,
        "guest": dict(plan.guest.identity),
        "cmdline": [plan.guest.cmdline, plan.guest.memory_mib, plan.guest.cpus],
        "profiles": [profile.model_dump(mode="json") for profile in plan.profiles],
        "phases": plan.phases,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{plan.machine}-{plan.binary.version}-{digest[:16]}"


def _machine_names(binary: QemuBinary, wanted: str) -> tuple[str, str]:
    """Family and versioned name; what is not there keeps the name it was asked by."""
    found = binary.machine(wanted)
    if found is None:
        return wanted, wanted
    if found.alias:
        return found.alias, found.name
    for family, prefix in (("q35", "pc-q35-"), ("pc", "pc-i440fx-")):
        if found.name.startswith(prefix):
            return family, found.name
    return found.name, found.name


def _missing(profile: Profile, binary: QemuBinary, machine: str, family: str) -> str | None:
    if binary.machine(machine) is None:
        return f"this QEMU has no machine {machine}"
    return profile.missing(family, binary)


def _machine_result(seen: Seen, cells: Sequence[Cell]) -> MachineResult:
    """Safe only when every row was judged ok with nothing left out; not safe with the first load that breaks.

    Two kinds of findings are worth a word and do not make a checkpoint unsafe: drift and leaks, and, where a build
    resets the machine before each load, a section that breaks only when it stands twice in one buffer.
    """
    mine = [c for c in cells if c.machine == seen.machine and c.load_qemu.sha256 == seen.binary.sha256]
    resets = bool(seen.ability and seen.ability.resets_before_load)
    hidden = [c for c in mine if resets and c.verdict.is_finding and c.schedule == Schedule.BACK_TO_BACK]
    slow = [c for c in mine if c.verdict in (Verdict.DRIFT, Verdict.LEAK)]
    reasons = [_reason(c) for c in mine if c.verdict.is_finding and c not in hidden and c not in slow]
    notes = [f"without the reset before each load, {_reason(c)}" for c in hidden] + [_reason(c) for c in slow]
    counted = [c for c in mine if c.oracle == "load" and not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    clean = all(cell.verdict is Verdict.OK and not cell.excluded for cell in counted)
    judged = {cell.device for cell in counted if cell.verdict is Verdict.OK}
    safe = False if reasons else (True if clean and _PLATFORM in judged else None)
    because = reasons + notes if safe is not None else _undecided(mine)
    return MachineResult(
        machine=seen.machine,
        alias=seen.family,
        qemu=Qemu(**seen.binary.identity()),
        colo_safe=safe,
        because=tuple(dict.fromkeys(because)),
        dialect=seen.ability.dialect.name if seen.ability else None,
        resets_before_load=seen.ability.resets_before_load if seen.ability else None,
    )


def _reason(cell: Cell) -> str:
    finding = cell.finding
    who = finding.section if finding and finding.section else cell.device
    text = finding.text if finding else ""
    what = text.partition(": ")[2] if cell.oracle == "load" and ": " in text else text
    return f"{who}: {cell.verdict}: {what}"


def _undecided(cells: Sequence[Cell]) -> list[str]:
    texts = [c.finding.text for c in cells if c.finding and c.verdict is not Verdict.OK]
    return texts or ["the platform row was not judged"]


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


