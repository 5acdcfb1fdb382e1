# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a matrix: record what is not recorded yet, judge every cell, keep the document up to date all the while."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any, Protocol

from harness.devices.profile import Profile
from harness.engines.colo import Buffers, Pace
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule
from harness.errors import HarnessError, HostError, QemuError, Stopped
from harness.guests.build import Guest
from harness.lanes.checks import Check, perform, planned_checks
from harness.lanes.controls import ControlRoom
from harness.lanes.judge import Bench, RunControls, judge_cell
from harness.lanes.migrations import planned_migrations
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.scope import ProcessScope
from harness.results.answer import PLATFORM, Seen, machine_result
from harness.results.document import RECORDER_LACKS, Cell, Finding, MatrixDoc, Qemu
from harness.results.plan import CellPlan, plan_cells
from harness.results.signature import signature_of_cell
from harness.results.verdict import Verdict
from harness.state.recorder import PHASES, Plan, ordered_phases
from harness.state.recordings import Recordings, machine_names, missing
from harness.state.transforms import GuestMode

_POLL_S = 0.2


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
    :param migrations: ordinary migrations to be made before the checkpoints: ``plain``, ``postcopy``
    :param oracles: the experiments that look at more than the answers are made
    :param overrides: further options of the QEMU that loads, such as ``-global``
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
    migrations: tuple[str, ...] = ()
    oracles: bool = True
    overrides: tuple[Option, ...] = ()

    @property
    def experiments(self) -> bool:
        """Whether there is more than loads."""
        return self.oracles and not self.quick

    @property
    def controls(self) -> bool:
        """Whether findings get a class."""
        return not self.quick


class Run:
    """A matrix in the making.

    :param guest: builds the guest when a recording has to be made
    :param watcher: told about progress, from several threads
    :param on_cell: called after each judged cell with the document so far
    :param scope: closing it stops this run; the run has one of its own within it
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
        scope: ProcessScope | None = None,
    ) -> None:
        self._options = options
        self._guest = guest
        self._watcher = watcher
        self._on_cell = on_cell
        self._scope = ProcessScope(scope)
        self._lock = Lock()
        self._began = time.monotonic()
        self._planned: list[str] = []
        self._cells: dict[str, list[Cell]] = {}
        self._machines: list[Seen] = []
        self._recordings = Recordings(
            fresh=options.fresh, stage=watcher.stage, message=watcher.message, scope=self._scope
        )
        self._doc = MatrixDoc(
            command=tuple(command),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            complete=False,
            host=host,
            machines=(),
            cells=(),
        )

    def stop(self) -> None:
        """End it from another thread: its QEMUs are killed, and :meth:`execute` returns what was judged."""
        self._scope.close()

    @property
    def binaries(self) -> tuple[QemuBinary, ...]:
        """The QEMUs of the run, each build once."""
        return tuple({binary.sha256: binary for binary in reversed(self._options.binaries)}.values())[::-1]

    def execute(
        self, jobs: Sequence[Job] | None = None, then: Callable[[MatrixDoc], Sequence[Job]] | None = None
    ) -> MatrixDoc:
        """Judge everything; Ctrl-C, or :meth:`stop`, gives what was judged until then, ``complete`` false.

        :param jobs: what to begin with, by default every machine of every QEMU with its own recording
        :param then: what is still to be done when all of that is judged
        :raises HostError: the host has no space left, or the like; the document so far was handed to ``on_cell``
        """
        pool = ThreadPoolExecutor(max_workers=self._options.jobs, thread_name_prefix="cell")
        try:
            self._finish(pool, self._jobs() if jobs is None else jobs)
            if then is not None:
                self._finish(pool, then(self.document()))
            self._scope.check()  # what was cut short by a stop ends as if it had nothing more to say
            complete = True
        except KeyboardInterrupt:
            complete = False
        except Stopped:
            if not self._scope.stopped:
                raise
            complete = False
        finally:
            self._scope.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            self._scope.close()
            pool.shutdown(wait=True)
        return self.document(complete=complete)

    def document(self, *, complete: bool = False) -> MatrixDoc:
        """The matrix so far, cells in the order of the plan."""
        with self._lock:
            cells = tuple(cell for planned in self._planned for cell in self._cells.get(planned, ()))
            machines = tuple(machine_result(seen, cells) for seen in self._machines)
        seconds = time.monotonic() - self._began
        return replace(self._doc, cells=cells, machines=machines, seconds=seconds, complete=complete)

    def _jobs(self) -> list[Job]:
        """Each machine once, though it was named twice or by its alias too, or its QEMU by two paths."""
        jobs: dict[tuple[str, str], Job] = {}
        for binary in self._options.binaries:
            for machine in self._options.machines:
                key = (binary.sha256, machine_names(binary, machine)[1])
                jobs.setdefault(key, partial(self._prepare, binary, machine))
        return list(jobs.values())

    def _finish(self, pool: ThreadPoolExecutor, first: Sequence[Job]) -> None:
        """Do preparations and the cells that they bring; the first error that stops a run is raised.

        What a job brings is done before what was waiting already: one machine is over, and its buffers are free,
        before the next but few begins.
        """
        due = list(first)
        waiting: set[Future[list[Job]]] = set()
        while due or waiting:
            self._scope.check()
            while due and len(waiting) < self._options.jobs:
                waiting.add(pool.submit(due.pop(0)))
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                due[:0] = future.result()

    def _prepare(self, binary: QemuBinary, machine: str) -> list[Job]:
        """Have a recording of one machine; returns the jobs that judge its cells."""
        return self.prepare_pair(binary, binary, machine)

    def prepare_pair(
        self, recorder: QemuBinary, binary: QemuBinary, machine: str, devices: frozenset[str] | None = None
    ) -> list[Job]:
        """Have one QEMU's recording of a machine; returns the jobs that judge it loaded by another, or itself.

        :param devices: the rows to be judged, by default those of the run
        """
        family, name = machine_names(recorder, machine)
        seen = self._see(name, family, binary, Qemu(**recorder.identity()))
        wanted = devices or self._options.devices
        rows = [p.name for p in self._options.profiles if p.name in wanted]
        never = {p.name: missing(p, recorder, name, family) for p in self._options.profiles}
        lacking = {p.name: never[p.name] or missing(p, binary, name, family) for p in self._options.profiles}
        plans = self._plan(name, rows)
        self._add(plans, seen)
        able = [plan for plan in plans if lacking[plan.device] is None]
        for plan in plans:
            reason = lacking[plan.device]
            if reason is not None:
                whose = recorder if never[plan.device] else binary
                reason = reason.replace("this QEMU", f"QEMU {whose.version}")
                details = {RECORDER_LACKS: reason} if never[plan.device] else {}
                self._settle(plan, seen, Verdict.UNSUPPORTED, reason, details)
        if not able:
            return []
        try:
            seen.ability = probe_colo(binary, self._scope)
            profiles = tuple(p for p in self._options.profiles if lacking[p.name] is None)
            pack = self._pack(recorder, name, family, profiles)
        except (HostError, Stopped):
            raise
        except (QemuError, HarnessError) as error:
            if self._scope.stopped:
                raise Stopped("stopped") from error
            self._give_up(able, seen, error)
            return []
        return self._jobs_for(pack, seen, able, came=recorder.sha256 != binary.sha256)

    def prepare_pack(self, pack: StatePack, binary: QemuBinary) -> list[Job]:
        """The jobs of a pack that is open already."""
        machine = pack.manifest.machine
        seen = self._see(machine, pack.manifest.family, binary, Qemu(**pack.manifest.qemu))
        plans = self._plan(machine, list(self._options.devices))
        self._add(plans, seen)
        lacking = _lacking(pack, binary)
        if lacking is not None:
            for plan in plans:
                self._settle(plan, seen, Verdict.UNSUPPORTED, lacking)
            return []
        try:
            seen.ability = probe_colo(binary, self._scope)
        except QemuError as error:
            self._give_up(plans, seen, error)
            return []
        return self._jobs_for(pack, seen, plans, came=True)

    def _give_up(self, plans: Sequence[CellPlan], seen: Seen, error: Exception) -> None:
        self._watcher.message(f"{seen.label} {seen.machine}: {error}")
        for plan in plans:
            self._settle(plan, seen, Verdict.HARNESS_ERROR, str(error))

    def _jobs_for(self, pack: StatePack, seen: Seen, plans: Sequence[CellPlan], *, came: bool) -> list[Job]:
        """The jobs that judge planned cells of one open pack; ordinary migration comes before all checkpoints."""
        assert seen.ability is not None  # probed by whoever opened the pack
        machine = replace(pack.machine, options=pack.machine.options + self._options.overrides)
        bench = Bench(
            binary=seen.binary,
            ability=seen.ability,
            buffers=Buffers(pack, machine),
            pace=Pace(run_s=self._options.run_s),
            scope=self._scope,
            came=came,
        )
        rows = list(dict.fromkeys(plan.device for plan in plans))
        migrations = planned_migrations(self._options.migrations, self._options.phases, rows)
        self._plan_checks(migrations, seen, rows, last=False)
        experiments = planned_checks(self._options.phases, rows) if self._options.experiments else []
        self._plan_checks(experiments, seen, rows, last=True)
        rest = partial(self._checkpoints, plans, experiments, bench)
        for check in reversed(migrations):
            rest = partial(self._check, check, bench, rest)
        return [rest]

    def _checkpoints(self, plans: Sequence[CellPlan], experiments: Sequence[Check], bench: Bench) -> list[Job]:
        # the platform is last in a report and first in a run: what breaks it is then known to the other rows
        ordered = sorted(plans, key=lambda plan: plan.device != PLATFORM)
        after = _Countdown(len(ordered), [partial(self._check, check, bench, list) for check in experiments])
        control = ControlRoom(bench=bench, pair=self._options.pair).judge if self._options.controls else None
        return [partial(self._judge, plan, bench, control, after) for plan in ordered]

    def _plan_checks(self, checks: Sequence[Check], seen: Seen, rows: Sequence[str], *, last: bool) -> None:
        """Cells of experiments stand row by row, before or behind those of the schedules."""
        for row in rows:
            ids = [check.cell_id(seen.label, seen.machine, row) for check in checks if row in check.rows]
            start = f"{seen.label}/{seen.machine}/{row}/"
            with self._lock:
                mine = [i for i, planned in enumerate(self._planned) if planned.startswith(start)]
                at = 1 + max(mine) if last else min(mine)
                self._planned[at:at] = ids
        self._watcher.add_cells(sum(len(check.rows) for check in checks))

    def _see(self, machine: str, family: str, binary: QemuBinary, recorder: Qemu) -> Seen:
        seen = Seen(machine=machine, family=family, binary=binary, recorder=recorder)
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

    def _add(self, plans: Sequence[CellPlan], seen: Seen) -> None:
        with self._lock:
            self._planned += [plan.id(seen.label) for plan in plans]
        self._watcher.add_cells(len(plans))

    def _pack(self, binary: QemuBinary, name: str, family: str, profiles: tuple[Profile, ...]) -> StatePack:
        assert self._guest is not None  # only a run over an open pack has none, and it records nothing
        plan = Plan(
            binary=binary,
            machine=name,
            family=family,
            accel=self._options.accel,
            guest=self._guest(),
            profiles=profiles,
            phases=tuple(ordered_phases([*PHASES, *self._options.phases])),
        )
        return self._recordings.pack(plan)

    def _judge(self, plan: CellPlan, bench: Bench, control: RunControls | None, after: _Countdown) -> list[Job]:
        """Judge a planned cell; the last one of a machine brings the checks, which know by then what to leave out."""
        if not self._scope.stopped:
            self._judge_now(plan, bench, control)
        return after.one_less()

    def _check(self, check: Check, bench: Bench, then: Job) -> list[Job]:
        """Make one experiment; what is to be done next comes back."""
        if self._scope.stopped:
            return []
        planned = [check.cell_id(bench.label, bench.buffers.pack.manifest.machine, row) for row in check.rows]
        self._watcher.start_cell(planned[0])
        cells = perform(check, bench)
        if self._scope.stopped:
            # its QEMU was killed by the stop
            return []
        for name, cell in zip(planned, cells, strict=True):
            self._keep(name, cell)
        return then()

    def _judge_now(self, plan: CellPlan, bench: Bench, control: RunControls | None) -> None:
        planned = plan.id(bench.label)
        self._watcher.start_cell(planned)
        for cell in judge_cell(plan, bench, self._watcher.loads, control):
            if self._scope.stopped:
                return
            more = bool(self._cells.get(planned))
            if more:
                self._watcher.add_cells(1)
            self._keep(planned, cell)

    def _settle(
        self, plan: CellPlan, seen: Seen, verdict: Verdict, text: str, details: dict[str, Any] | None = None
    ) -> None:
        cell = Cell(
            id=plan.id(seen.label),
            record_qemu=seen.recorder,
            load_qemu=Qemu(**seen.binary.identity()),
            machine=plan.machine,
            accel=self._options.accel,
            device=plan.device,
            phases=plan.phases,
            schedule=str(plan.schedule),
            guest_mode=str(plan.guest_mode),
            loads_asked=plan.loads,
            verdict=verdict,
            finding=Finding(text=text),
            details=details or {},
        )
        self._keep(cell.id, cell)

    def _keep(self, planned: str, cell: Cell) -> None:
        signature = signature_of_cell(cell)
        cell = replace(cell, signature=None if signature is None else signature.name)
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


def _lacking(pack: StatePack, binary: QemuBinary) -> str | None:
    """Why a build cannot be the machine of a pack, or None when it can. It was asked for the pack's device types."""
    machine = pack.manifest.machine
    if binary.machine(machine) is None:
        return f"QEMU {binary.version} has no machine {machine}"
    absent = [name for name in pack.device_types if name not in binary.devices]
    return f"the recorded guest has {', '.join(absent)}, which QEMU {binary.version} has not" if absent else None


def load_pack_rows(run: Run, pack: StatePack) -> MatrixDoc:
    """Judge the rows of an open pack with every binary of the run."""
    return run.execute([partial(run.prepare_pack, pack, binary) for binary in run.binaries])
