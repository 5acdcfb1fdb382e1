# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a matrix: record what is not recorded yet, judge every cell, tell every event as it happens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Protocol

from harness.arch import architecture_of
from harness.devices.device import Device
from harness.engines.colo import Buffers, Pace
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule
from harness.errors import HarnessError, HostError, QemuError, Stopped
from harness.experiments.interview import recorded_devices
from harness.guests.build import GuestMaker
from harness.guests.planner import PlannedGuest
from harness.lanes.checks import Check, perform, planned_checks
from harness.lanes.controls import ControlRoom
from harness.lanes.judge import Bench, RunControls, judge_cell
from harness.lanes.migrations import planned_migrations
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.scope import ProcessScope
from harness.results.answer import PLATFORM, Seen
from harness.results.document import RECORDER_LACKS, Cell, Finding, MatrixDoc, Qemu
from harness.results.events import Ended, Event, Fold, Judged, MachineSeen, Place, Planned, Said, Started, stamped
from harness.results.plan import CellPlan, plan_cells
from harness.results.signature import signature_of_cell
from harness.results.verdict import Verdict
from harness.state.owners import settled
from harness.state.recorder import PHASES, DeviceFailed, ordered_phases
from harness.state.recordings import Recordings, machine_names, missing, planned_guests, reached, recording_plan
from harness.state.transforms import GuestMode

_POLL_S = 0.2


#: Does something and returns what is to be done next.
Job = Callable[[], "list[Job]"]


#: Takes each event of a run after it happened, from any thread.
Sink = Callable[[Event], None]


class Watcher(Protocol):
    """Told what is going on and will not last; see :class:`harness.report.progress.LiveProgress`."""

    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a matrix is asked to cover.

    :param machines: families, e.g. ``pc``, ``q35``, or versioned names
    :param profiles: every device that guests are planned with; ``devices`` are the rows to be judged
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
    profiles: tuple[Device, ...]
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
    :param started: the first event: command, host, and what the reports need beside the cells
    :param write: keeps an event before it counts, one at a time, in their order; see :class:`EventLog`
    :param sinks: take each event after that
    :param scope: closing it stops this run; the run has one of its own within it
    """

    def __init__(
        self,
        options: Options,
        *,
        guest: GuestMaker | None = None,
        watcher: Watcher,
        started: Started,
        write: Sink,
        sinks: Sequence[Sink] = (),
        scope: ProcessScope | None = None,
    ) -> None:
        self._options = options
        self._guest = guest
        self._watcher = watcher
        self._started = started
        self._write = write
        self._sinks = tuple(sinks)
        self._scope = ProcessScope(scope)
        self._lock = Lock()
        self._began = time.monotonic()
        self._fold = Fold(started)
        self._recordings = Recordings(fresh=options.fresh, stage=watcher.stage, message=self._say, scope=self._scope)

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
        :raises HostError: the host has no space left, or the like; what was judged until then is written
        """
        self._emit(self._started)
        complete = False
        pool = ThreadPoolExecutor(max_workers=self._options.jobs, thread_name_prefix="cell")
        try:
            self._finish(pool, self._jobs() if jobs is None else jobs)
            if then is not None:
                self._finish(pool, then(self.document()))
            self._scope.check()  # what was cut short by a stop ends as if it had nothing more to say
            complete = True
        except KeyboardInterrupt:
            pass
        except Stopped:
            if not self._scope.stopped:
                raise
        finally:
            self._scope.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            self._scope.close()
            pool.shutdown(wait=True)
        self._emit(Ended(complete=complete))
        return self.document()

    def document(self) -> MatrixDoc:
        """The matrix so far, cells in the order of the plan."""
        with self._lock:
            return self._fold.document()

    def tell(self, event: Event) -> None:
        """Tell an event that is the command's, such as the answer of ``postload qualify``."""
        self._emit(event)

    def _emit(self, event: Event) -> None:
        """First kept, then counted, then shown: nobody ever hears of a cell that a killed run would lose."""
        with self._lock:
            event = stamped(event, time.monotonic() - self._began)
            self._write(event)
            self._fold.add(event)
        for sink in self._sinks:
            sink(event)

    def _say(self, text: str) -> None:
        self._emit(Said(text=text))

    def _jobs(self) -> list[Job]:
        """Each machine once, though it was named twice or by its alias too, or its QEMU by two paths."""
        jobs: dict[tuple[str, str], Job] = {}
        for binary in self._options.binaries:
            for machine in self._options.machines:
                if len(self._options.machines) > 1 and architecture_of(machine).name != binary.target:
                    continue  # checked before: another QEMU of the run has it
                key = (binary.sha256, machine_names(binary, machine)[1])
                jobs.setdefault(key, partial(self._prepare, binary, machine))
        return list(jobs.values())

    def _finish(self, pool: ThreadPoolExecutor, first: Sequence[Job]) -> None:
        """Do preparations and the cells that they bring; the first error that stops a run is raised.

        What a job brings is done before what was waiting already: one machine is over, and its buffers are free,
        before the next but few begins.
        """
        due = deque(first)
        waiting: set[Future[list[Job]]] = set()
        while due or waiting:
            self._scope.check()
            while due and len(waiting) < self._options.jobs:
                waiting.add(pool.submit(due.popleft()))
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                due.extendleft(reversed(future.result()))

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
        never = {d.name: missing(d, recorder, name, family) for d in self._options.profiles}
        lacking = {d.name: never[d.name] or missing(d, binary, name, family) for d in self._options.profiles}
        planned = planned_guests(name, family, [d for d in self._options.profiles if lacking[d.name] is None])
        lacking |= planned.refused
        rows = [d for d in self._options.profiles if d.name in wanted]
        guests = {d.name: guest for guest in reversed(planned.guests) for d in guest.devices}
        plans = [
            plan
            for d in rows
            for plan in self._plan(name, [d.name], _phases_of(guests.get(d.name), self._phases(name)))
        ]
        self._add(plans, seen)
        for plan in plans:
            reason = lacking[plan.device]
            if reason is not None:
                whose = recorder if never[plan.device] else binary
                self._unsupported(
                    [plan], seen, reason.replace("this QEMU", f"QEMU {whose.version}"), never=whose is recorder
                )
        able = [plan for plan in plans if lacking[plan.device] is None]
        jobs = []
        for guest in planned.guests:
            mine = [plan for plan in able if guests[plan.device] is guest]
            jobs += self._guest_jobs(recorder, guest, seen, mine) if mine else []
        return jobs

    def _guest_jobs(
        self, recorder: QemuBinary, guest: PlannedGuest, seen: Seen, plans: Sequence[CellPlan]
    ) -> list[Job]:
        """Have one guest recorded; a device that it cannot have costs its own cells and no others."""
        try:
            self._probe(seen)
            guest, owners = settled(recorder, guest, self._options.accel, self._scope)
            for name, reason in owners.refused.items():
                self._unsupported([plan for plan in plans if plan.device == name], seen, reason, never=True)
            plans = [plan for plan in plans if plan.device not in owners.refused]
            pack = self._pack(recorder, guest) if plans else None
        except (HostError, Stopped):
            raise
        except DeviceFailed as error:
            if self._scope.stopped:
                raise Stopped("stopped") from error
            self._give_up([plan for plan in plans if plan.device == error.device], seen, error)
            left = [plan for plan in plans if plan.device != error.device]
            return self._guest_jobs(recorder, guest.without(frozenset({error.device})), seen, left) if left else []
        except (QemuError, HarnessError) as error:
            if self._scope.stopped:
                raise Stopped("stopped") from error
            self._give_up(plans, seen, error)
            return []
        came = recorder.sha256 != seen.binary.sha256
        return [] if pack is None else self._jobs_for(pack, seen, plans, came=came)

    def _unsupported(self, plans: Sequence[CellPlan], seen: Seen, reason: str, *, never: bool) -> None:
        """Cells that nothing can be said of, and why; ``never``: the QEMU that records is the reason."""
        for plan in plans:
            self._settle(plan, seen, Verdict.UNSUPPORTED, reason, {RECORDER_LACKS: reason} if never else {})

    def prepare_pack(self, pack: StatePack, binary: QemuBinary) -> list[Job]:
        """The jobs of a pack that is open already."""
        machine = pack.manifest.machine
        seen = self._see(machine, pack.manifest.family, binary, Qemu(**pack.manifest.qemu))
        plans = self._plan(machine, list(self._options.devices), self._phases(machine))
        self._add(plans, seen)
        lacking = _lacking(pack, binary)
        if lacking is not None:
            for plan in plans:
                self._settle(plan, seen, Verdict.UNSUPPORTED, lacking)
            return []
        try:
            self._probe(seen)
        except QemuError as error:
            self._give_up(plans, seen, error)
            return []
        return self._jobs_for(pack, seen, plans, came=True)

    def _give_up(self, plans: Sequence[CellPlan], seen: Seen, error: Exception) -> None:
        self._say(f"{seen.label} {seen.machine}: {error}")
        for plan in plans:
            self._settle(plan, seen, Verdict.HARNESS_ERROR, str(error))

    def _jobs_for(self, pack: StatePack, seen: Seen, plans: Sequence[CellPlan], *, came: bool) -> list[Job]:
        """The jobs that judge planned cells of one open pack; ordinary migration comes before all checkpoints."""
        assert seen.ability is not None  # probed by whoever opened the pack
        machine = replace(pack.machine, extra=self._options.overrides)
        devices = recorded_devices(pack, self._options.profiles)
        bench = Bench(
            binary=seen.binary,
            ability=seen.ability,
            buffers=Buffers(pack, machine),
            pace=Pace(run_s=self._options.run_s),
            scope=self._scope,
            devices=devices,
            came=came,
        )
        phases = [phase for phase in self._phases(seen.machine) if phase in pack.phases]
        rows = list(dict.fromkeys(plan.device for plan in plans))
        migrations = planned_migrations(self._options.migrations, phases, rows)
        self._plan_checks(migrations, seen, rows, Place.BEFORE)
        experiments = planned_checks(phases, rows, devices) if self._options.experiments else []
        self._plan_checks(experiments, seen, rows, Place.BEHIND)
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

    def _plan_checks(self, checks: Sequence[Check], seen: Seen, rows: Sequence[str], place: Place) -> None:
        """Cells of experiments stand row by row, before or behind those of the schedules."""
        for row in rows:
            names = tuple(check.cell_id(seen.label, seen.machine, row) for check in checks if row in check.rows)
            if names:
                self._emit(Planned(row=_row(seen, row), place=place, cells=names))

    def _phases(self, machine: str) -> tuple[str, ...]:
        """Those of the run that guests of a machine go through."""
        return tuple(filter(architecture_of(machine).has_phase, self._options.phases))

    def _see(self, machine: str, family: str, binary: QemuBinary, recorder: Qemu) -> Seen:
        seen = Seen(machine=machine, family=family, binary=binary, recorder=recorder)
        self._emit(MachineSeen(machine=seen.result()))
        return seen

    def _probe(self, seen: Seen) -> None:
        if seen.ability is None:
            seen.ability = probe_colo(seen.binary, self._scope)
            self._emit(MachineSeen(machine=seen.result()))

    def _plan(self, machine: str, devices: list[str], phases: Sequence[str]) -> list[CellPlan]:
        return plan_cells(
            machine=machine,
            devices=devices,
            phases=phases,
            schedules=self._options.schedules,
            guest_modes=self._options.guest_modes,
            loads=self._options.loads,
        )

    def _add(self, plans: Sequence[CellPlan], seen: Seen) -> None:
        rows: dict[str, list[str]] = {}
        for plan in plans:
            rows.setdefault(plan.device, []).append(plan.id(seen.label))
        for device, names in rows.items():
            self._emit(Planned(row=_row(seen, device), cells=tuple(names)))

    def _pack(self, binary: QemuBinary, planned: PlannedGuest) -> StatePack:
        assert self._guest is not None  # only a run over an open pack has none, and it records nothing
        plan = recording_plan(
            binary=binary,
            accel=self._options.accel,
            guest=self._guest(architecture_of(planned.plan.machine)),
            planned=planned,
            phases=ordered_phases([*PHASES, *self._options.phases]),
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
        self._emit(Judged(planned=planned, cell=cell))


def _row(seen: Seen, device: str) -> str:
    """What the cells of one device on one machine have in common."""
    return f"{seen.label}/{seen.machine}/{device}"


def _phases_of(guest: PlannedGuest | None, phases: Sequence[str]) -> Sequence[str]:
    """Those phases that a device's guest reaches."""
    return phases if guest is None else reached(guest, phases)


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
