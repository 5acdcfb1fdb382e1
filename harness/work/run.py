# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a matrix: record what is not recorded yet, judge every cell, tell every event as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Protocol

from harness.arch import architecture_of
from harness.devices.device import Device
from harness.devices.phases import Missed, unreached_in
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule
from harness.errors import BudgetError, GuestError, HarnessError, HostError, QemuError, Stopped
from harness.experiments.interview import recorded_devices
from harness.guests.build import GuestMaker
from harness.guests.lack import Lack, Lacks
from harness.guests.planner import PlannedGuest
from harness.lanes.judge import Exclusion
from harness.lanes.lane import Lane, Request, Wave
from harness.lanes.registry import LANES
from harness.names import MIGRATIONS, ORACLES, USUAL_PHASES
from harness.oracles.coverage import coverage_of
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.disturbance import Disturbed
from harness.qemu.scope import ProcessScope
from harness.results.answer import Seen
from harness.results.cause import Cause, Side, Undecided, Unsupported, Why
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.events import (
    CellsPlanned,
    Event,
    Fold,
    Judged,
    MachineSeen,
    Place,
    RunEnded,
    Said,
    Started,
    StateSeen,
    stamped,
)
from harness.results.key import USUAL_CPUS, CellKey, labels
from harness.results.outcome import Outcome
from harness.results.plan import CellPlan, plan_cells
from harness.results.signature import signature_of_cell
from harness.results.verdict import Verdict
from harness.state.owners import settled
from harness.state.recorder import CutShort, ordered_phases
from harness.state.recordings import (
    VMSTATE,
    Recordings,
    lacking_drivers,
    machine_names,
    missing,
    planned_guests,
    reached,
    recording_plan,
)
from harness.state.transforms import GuestMode
from harness.work.planning import Chain, Wanted, by_schedule, in_waves, plan_tasks
from harness.work.process import ProcessWorker
from harness.work.queue import Queue
from harness.work.task import QemuFile, RecordingFile, Task
from harness.work.worker import CellDone, Learnt, Loaded, LocalWorker, Reported, Worker

_POLL_S = 0.2
#: Rank of a subject; see :meth:`harness.work.planning.Chain.rank`.
_BEHIND_TASKS = (2, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A machine to be judged under one QEMU: recorded by itself, by another one, or long ago.

    :param recorder: who records; the one that loads when None
    :param machine: family or versioned name
    :param devices: those to be judged, all of the run when None
    :param pack: is open already; then nothing is recorded
    """

    loader: QemuBinary
    recorder: QemuBinary | None = None
    machine: str = ""
    devices: frozenset[str] | None = None
    pack: StatePack | None = None


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
    :param derived: by hash of a QEMU and versioned machine type, what else is judged there: devices without a recipe
    :param run_s: how long the guest runs after each load
    :param fresh: record anew even when a recording is kept
    :param pair: breaks are repeated with a real primary and a real secondary
    :param quick: loads only: no control, no oracle beyond the answers of the secondary
    :param migrations: ordinary migrations to be made before the checkpoints: ``plain``, ``postcopy``
    :param oracles: the experiments that look at more than the answers are made
    :param overrides: further options of the QEMU that loads, such as ``-global``
    :param cpus: of the guests that are recorded
    :param processes: each task is carried out by a process of its own, instead of a thread
    :param budget_s: how long one task may take; None: however long it takes
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
    cpus: int = USUAL_CPUS
    processes: bool = False
    derived: Mapping[tuple[str, str], tuple[Device, ...]] = field(default_factory=dict)
    budget_s: float | None = None

    @property
    def experiments(self) -> bool:
        """Whether there is more than loads."""
        return self.oracles and not self.quick

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """What is varied, in the order of a report."""
        looks = ORACLES if self.experiments else ()
        names = (*(name for name in MIGRATIONS if name in self.migrations), *map(str, self.schedules), *looks)
        return tuple(LANES[name] for name in names)

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
        self._builds = [(each.sha256, each.label or each.version) for each in options.binaries]
        self._chains: dict[object, tuple[Seen, Chain]] = {}
        self._here = LocalWorker(self._scope)
        self._worker: Worker = ProcessWorker(self._scope) if options.processes else self._here
        self._recordings = Recordings(fresh=options.fresh, stage=watcher.stage, message=self._say, scope=self._scope)

    def stop(self) -> None:
        """End it from another thread: its QEMUs are killed, and :meth:`execute` returns what was judged."""
        self._scope.close()

    @property
    def binaries(self) -> tuple[QemuBinary, ...]:
        """The QEMUs of the run, each build once."""
        return tuple({binary.sha256: binary for binary in reversed(self._options.binaries)}.values())[::-1]

    def execute(
        self, subjects: Sequence[Subject] | None = None, then: Callable[[MatrixDoc], Sequence[Subject]] | None = None
    ) -> MatrixDoc:
        """Judge everything; Ctrl-C, or :meth:`stop`, gives what was judged until then, ``complete`` false.

        :param subjects: what to begin with, by default every machine of every QEMU with its own recording
        :param then: what is still to be done when all of that is judged
        :raises HostError: the host has no space left, or the like; what was judged until then is written
        """
        self._emit(self._started)
        complete = False
        pool = ThreadPoolExecutor(max_workers=2 * self._options.jobs, thread_name_prefix="cell")
        try:
            self._finish(pool, self._subjects() if subjects is None else subjects)
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
        self._emit(RunEnded(complete=complete))
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

    def _subjects(self) -> list[Subject]:
        """Each machine once, though it was named twice or by its alias too, or its QEMU by two paths."""
        subjects: dict[tuple[str, str], Subject] = {}
        for binary in self._options.binaries:
            for machine in self._options.machines:
                if len(self._options.machines) > 1 and architecture_of(machine).name != binary.target:
                    continue  # checked before: another QEMU of the run has it
                key = (binary.sha256, machine_names(binary, machine)[1])
                subjects.setdefault(key, Subject(loader=binary, machine=machine))
        return list(subjects.values())

    def _finish(self, pool: ThreadPoolExecutor, first: Sequence[Subject]) -> None:
        """Prepare subjects and do the tasks that they bring; the first error that stops a run is raised.

        Subjects come behind the tasks of those before: one machine is over, and its buffers are free, before the next
        but few begins.
        """
        queue: Queue[Subject | Task] = Queue(self._options.jobs)
        for subject in first:
            queue.add(subject, _BEHIND_TASKS)
        out: dict[Future[list[Task]], bool] = {}
        while queue:
            self._scope.check()
            out |= {pool.submit(self._do, due): waits for due, waits in queue.take()}
            for future in wait(out, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                queue.done(waits=out.pop(future))
                for task in future.result():
                    self._enqueue(queue, task)

    def _enqueue(self, queue: Queue[Subject | Task], task: Task) -> None:
        _, chain = self._chains[task.place]
        queue.add(task, chain.rank(task), waits=LANES[task.request.lane].waits)

    def _do(self, due: Subject | Task) -> list[Task]:
        if isinstance(due, Task):
            return self._carry_out(due)
        if due.pack is not None:
            return self._prepare_pack(due.pack, due.loader)
        return self._prepare(due.recorder or due.loader, due.loader, due.machine, due.devices)

    def _prepare(
        self, recorder: QemuBinary, binary: QemuBinary, machine: str, devices: frozenset[str] | None
    ) -> list[Task]:
        """Have one QEMU's recording of a machine; returns the first tasks that judge it, loaded by that or another."""
        family, name = machine_names(recorder, machine)
        seen = self._see(name, family, binary, recorder.identity())
        derived = self._options.derived.get((recorder.sha256, name), ())
        profiles = (*derived, *self._options.profiles)
        wanted = devices or {*self._options.devices, *(d.name for d in derived)}
        never = {d.name: missing(d, recorder, name, family) for d in profiles}
        lacking = {d.name: never[d.name] or missing(d, binary, name, family) for d in profiles}
        planned = planned_guests(name, family, [d for d in profiles if lacking[d.name] is None])
        lacking |= planned.refused
        rows = [d for d in profiles if d.name in wanted]
        guests = {d.name: guest for guest in reversed(planned.guests) for d in guest.devices}
        plans = [
            plan
            for d in rows
            for plan in self._plan(
                seen,
                [d.name],
                _phases_of(guests.get(d.name), self._phases(name)),
                self._options.accel,
                self._options.cpus,
            )
        ]
        self._add(plans)
        for plan in plans:
            lack = lacking[plan.device]
            if lack is not None:
                self._unsupported([plan], seen, lack, never=never[plan.device] is not None)
        able = [plan for plan in plans if lacking[plan.device] is None]
        tasks = []
        for guest in planned.guests:
            mine = [plan for plan in able if guests[plan.device] is guest]
            tasks += self._guest_tasks(recorder, guest, seen, mine) if mine else []
        return tasks

    def _guest_tasks(
        self,
        recorder: QemuBinary,
        guest: PlannedGuest,
        seen: Seen,
        plans: Sequence[CellPlan],
        phases: tuple[str, ...] | None = None,
    ) -> list[Task]:
        """Have one guest recorded; a device that it cannot have costs its own cells and no others.

        :param phases: those to be recorded, by default all up to the last one that is wanted
        """
        try:
            self._probe(seen)
            guest, plans = self._able(recorder, guest, seen, plans)
            pack = self._pack(recorder, guest, phases) if plans else None
        except (HostError, Stopped):
            raise
        except HarnessError as error:
            self._scope.check()
            return self._apart(recorder, guest, seen, plans, error)
        came = recorder.sha256 != seen.binary.sha256
        return [] if pack is None else self._tasks_for(pack, seen, plans, came=came)

    def _able(
        self, recorder: QemuBinary, guest: PlannedGuest, seen: Seen, plans: Sequence[CellPlan]
    ) -> tuple[PlannedGuest, list[CellPlan]]:
        """The guest without those that QEMU does not start with or save, or that it has no drivers for."""
        guest, owners = settled(recorder, guest, self._options.accel, self._scope)
        for name, lack in owners.refused.items():
            self._unsupported([plan for plan in plans if plan.device == name], seen, lack, never=True)
        left = [plan for plan in plans if plan.device not in owners.refused]
        undriven = self._undriven(guest) if left else {}
        for name, reason in undriven.items():
            self._give_up([plan for plan in left if plan.device == name], seen, GuestError(f"{name}: {reason}"))
        return guest.without(frozenset(undriven)), [plan for plan in left if plan.device not in undriven]

    def _undriven(self, planned: PlannedGuest) -> dict[str, str]:
        """Devices that the guest has no driver for, and what to do about that."""
        assert self._guest is not None  # only a run over an open pack has none, and it records nothing
        guest = self._guest(architecture_of(planned.plan.machine))
        reasons = {device.name: lacking_drivers(device, guest) for device in planned.devices}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _apart(
        self, recorder: QemuBinary, guest: PlannedGuest, seen: Seen, plans: Sequence[CellPlan], error: HarnessError
    ) -> list[Task]:
        """A guest that was lost: who did it is recorded alone, as far as that goes, and the others without it."""
        culprit = self._culprit(recorder, guest, error)
        if culprit is None:
            self._give_up(plans, seen, error)
            return []
        split, many = frozenset({culprit}), len(guest.names) > 1
        reason = self._lost(recorder, guest.only(split)) if many else error
        if reason is None and not _named(error):
            # it is well without the others: they do not get on with each other
            split = frozenset(guest.names[: len(guest.names) // 2])
        mine = [plan for plan in plans if plan.device in split]
        rest = [plan for plan in plans if plan.device not in split]
        tasks = self._as_far_as_it_goes(recorder, guest.only(split), seen, mine, reason)
        return [*tasks, *(self._guest_tasks(recorder, guest.without(split), seen, rest) if rest else [])]

    def _as_far_as_it_goes(
        self,
        recorder: QemuBinary,
        guest: PlannedGuest,
        seen: Seen,
        plans: Sequence[CellPlan],
        reason: HarnessError | None,
    ) -> list[Task]:
        """The tasks of a guest with the phases before it is lost.

        :param reason: how it is; None for one that is not
        """
        kept = None if reason is None else reason.kept if isinstance(reason, CutShort) else ()
        early = [plan for plan in plans if kept is None or set(plan.phases) <= set(kept)]
        lost = [plan for plan in plans if plan not in early]
        if reason is not None and lost:
            self._give_up(lost, seen, reason)
        return self._guest_tasks(recorder, guest, seen, early, kept) if early else []

    def _culprit(self, recorder: QemuBinary, guest: PlannedGuest, error: HarnessError) -> str | None:
        """The device that a guest was lost by, found by halving; None where the machine is lost without any."""
        names = guest.names
        if isinstance(error, Disturbed) or not names:
            return None
        if _named(error) in names:
            return _named(error)
        until = error.phase if isinstance(error, CutShort) else ""
        if self._lost(recorder, guest.only(()), until):
            return None
        while names[1:]:
            half = names[: len(names) // 2]
            names = half if self._lost(recorder, guest.only(half), until) else names[len(half) :]
        return names[0]

    def _lost(self, recorder: QemuBinary, guest: PlannedGuest, until: str = "") -> HarnessError | None:
        """How a guest is lost on its way to a phase; None for one that gets there."""
        phases = _until(self._options.phases)
        try:
            self._pack(recorder, guest, phases[: 1 + phases.index(until)] if until else phases)
        except Stopped:
            raise
        except HarnessError as error:
            self._scope.check()
            return error
        return None

    def _unsupported(self, plans: Sequence[CellPlan], seen: Seen, lack: Lack, *, never: bool) -> None:
        """Cells that nothing can be said of, and why; ``never``: the QEMU that records is the reason."""
        cause = Unsupported(side=Side.RECORDER if never else Side.LOADER, lack=lack)
        for plan in plans:
            self._settle(plan, seen, Verdict.UNSUPPORTED, cause)

    def _prepare_pack(self, pack: StatePack, binary: QemuBinary) -> list[Task]:
        """The first tasks of a pack that is open already."""
        machine = pack.manifest.machine
        seen = self._see(machine, pack.manifest.family, binary, pack.manifest.qemu)
        accel, cpus = pack.manifest.accel, pack.manifest.plan.cpus
        plans = self._plan(seen, list(self._options.devices), self._phases(machine), accel, cpus)
        self._add(plans)
        lacking = _lacking(pack, binary)
        if lacking is not None:
            self._unsupported(plans, seen, lacking, never=False)
            return []
        try:
            self._probe(seen)
        except QemuError as error:
            self._give_up(plans, seen, error)
            return []
        return self._tasks_for(pack, seen, plans, came=True)

    def _give_up(self, plans: Sequence[CellPlan], seen: Seen, error: Exception) -> None:
        self._say(f"{seen.route} {seen.machine}: {error}")
        for plan in plans:
            self._fail(plan, seen, error)

    def _tasks_for(self, pack: StatePack, seen: Seen, plans: Sequence[CellPlan], *, came: bool) -> list[Task]:
        """The first tasks of one open pack; ordinary migration comes before all checkpoints."""
        plans = self._reached(pack, seen, plans)
        if not plans:
            return []
        devices = tuple(dict.fromkeys(plan.device for plan in plans))
        phases = tuple(phase for phase in self._phases(seen.machine) if phase in pack.phases)
        like = Task(
            recording=RecordingFile(path=str(pack.source), content=pack.content),
            loader=QemuFile(path=seen.binary.path, sha256=seen.binary.sha256),
            request=Request(lane="", machine=seen.machine, phases=(), devices=()),
            answers=(),
            guest=recorded_devices(pack, self._options.profiles or None),
            came=came,
            run_s=self._options.run_s,
            controls=self._options.controls,
            pair=self._options.pair,
            overrides=self._options.overrides,
            budget_s=self._options.budget_s,
        )
        wanted = Wanted(
            key=plans[0].key,
            reached={name: [phase for phase in phases if phase not in pack.unreached(name)] for name in devices},
            phases=phases,
            lanes=self._options.lanes,
            modes=self._options.guest_modes,
            loads=self._options.loads,
            like=like,
        )
        planned = {plan.key for plan in plans}
        # of a recording that ended early, the cells of all phases together were given up
        tasks = [
            task
            for task in plan_tasks(wanted)
            if planned.issuperset(task.answers) or not by_schedule(LANES[task.request.lane])
        ]
        self._plan_more(tasks, plans[0].key, devices, Place.BEFORE)
        self._plan_more(tasks, plans[0].key, devices, Place.BEHIND)
        dump = pack.manifest.host.get(VMSTATE, {})
        self._emit(StateSeen(devices=coverage_of(pack, plans[0].key, devices, dump)))
        assert seen.ability is not None  # probed by whoever opened the pack
        self._here.lend(pack, seen.binary, seen.ability)
        with self._lock:
            chain = Chain(in_waves(tasks, LANES), len(self._chains))
            self._chains[like.place] = seen, chain
        return chain.ready()

    def _reached(self, pack: StatePack, seen: Seen, plans: Sequence[CellPlan]) -> list[CellPlan]:
        """The cells of phases that their devices have reached; of the others it is known why."""
        left = []
        for plan in plans:
            lacks = unreached_in(pack.unreached(plan.device), plan.phases)
            failed = any(lack.how is Missed.FAILED for lack in lacks)
            if lacks:
                self._settle(plan, seen, Verdict.HARNESS_ERROR if failed else Verdict.UNSUPPORTED, *lacks)
            else:
                left.append(plan)
        return left

    def _plan_more(self, tasks: Sequence[Task], like: CellKey, devices: Sequence[str], place: Place) -> None:
        """Cells of migrations stand before, and those of experiments behind, the schedules' of a device."""
        chosen = [task for task in tasks if _place_of(LANES[task.request.lane]) is place]
        for device in devices:
            names = tuple(str(key) for task in chosen for key in task.answers if key.device == device)
            if names:
                self._emit(CellsPlanned(row=replace(like, device=device).row, place=place, cells=names))

    def _phases(self, machine: str) -> tuple[str, ...]:
        """Those of the run that guests of a machine go through."""
        return tuple(filter(architecture_of(machine).has_phase, self._options.phases))

    def _see(self, machine: str, family: str, binary: QemuBinary, recorder: Mapping[str, str]) -> Seen:
        loader = binary.identity()
        with self._lock:
            self._builds += [(each["sha256"], each["version"]) for each in (recorder, loader)]
            names = labels(self._builds)
        seen = Seen(
            machine=machine,
            family=family,
            binary=binary,
            recorder=Qemu(**recorder, label=names[recorder["sha256"]]),
            loader=Qemu(**loader, label=names[loader["sha256"]]),
        )
        self._emit(MachineSeen(machine=seen.result()))
        return seen

    def _probe(self, seen: Seen) -> None:
        if seen.ability is None:
            seen.ability = probe_colo(seen.binary, self._scope)
            self._emit(MachineSeen(machine=seen.result()))

    def _plan(self, seen: Seen, devices: list[str], phases: Sequence[str], accel: str, cpus: int) -> list[CellPlan]:
        return plan_cells(
            route=seen.route,
            machine=seen.machine,
            devices=devices,
            phases=phases,
            schedules=self._options.schedules,
            guest_modes=self._options.guest_modes,
            loads=self._options.loads,
            accel=accel,
            cpus=cpus,
        )

    def _add(self, plans: Sequence[CellPlan]) -> None:
        rows: dict[str, list[str]] = {}
        for plan in plans:
            rows.setdefault(plan.key.row, []).append(str(plan.key))
        for row, names in rows.items():
            self._emit(CellsPlanned(row=row, cells=tuple(names)))

    def _pack(self, binary: QemuBinary, planned: PlannedGuest, phases: Sequence[str] | None = None) -> StatePack:
        assert self._guest is not None  # only a run over an open pack has none, and it records nothing
        plan = recording_plan(
            binary=binary,
            accel=self._options.accel,
            guest=self._guest(architecture_of(planned.plan.machine)),
            planned=planned,
            phases=_until(self._options.phases) if phases is None else phases,
        )
        return self._recordings.pack(plan)

    def _carry_out(self, task: Task) -> list[Task]:
        """Let a worker do a task; what may be done next comes back."""
        self._scope.check()
        seen, chain = self._chains[task.place]
        begun: set[str] = set()
        judged: set[str] = set()
        learnt: list[Exclusion] = []

        def tell(said: Reported) -> None:
            match said:
                case Loaded():
                    if said.cell not in begun:
                        begun.add(said.cell)
                        self._watcher.start_cell(said.cell)
                    self._watcher.loads(said.cell, said.total)
                case CellDone():
                    judged.add(said.planned)
                    self._keep(said.planned, said.cell)
                case Learnt():
                    learnt.extend(said.exclusions)

        if not by_schedule(LANES[task.request.lane]):
            self._watcher.start_cell(str(task.answers[0]))  # it stands for all, and tells no loads
        try:
            self._worker.run(task, tell)
        except (HostError, Stopped):
            raise
        except HarnessError as error:
            self._scope.check()
            for key in task.answers:
                if str(key) not in judged:
                    self._fail(CellPlan(key=key, loads=task.request.loads), seen, error)
        self._scope.check()
        with self._lock:
            return chain.done(task, learnt)

    def _fail(self, plan: CellPlan, seen: Seen, error: Exception) -> None:
        """Nothing can be said: the host did not let it be tried, or this program could not."""
        if isinstance(error, Disturbed):
            self._settle(plan, seen, Verdict.HOST, *error.hindered)
        elif isinstance(error, BudgetError):
            self._settle(plan, seen, Verdict.HARNESS_ERROR, Undecided(why=Why.BUDGET, seconds=error.seconds))
        else:
            self._settle(plan, seen, Verdict.HARNESS_ERROR, Undecided(why=Why.ERROR, said=str(error)))

    def _settle(self, plan: CellPlan, seen: Seen, verdict: Verdict, *causes: Cause) -> None:
        cell = Cell(
            key=plan.key,
            record_qemu=seen.recorder,
            load_qemu=seen.loader,
            outcome=Outcome(verdict=verdict, causes=causes, loads_asked=plan.loads),
        )
        self._keep(str(plan.key), cell)

    def _keep(self, planned: str, cell: Cell) -> None:
        signature = signature_of_cell(cell)
        cell = replace(cell, signature=None if signature is None else signature.name)
        self._emit(Judged(planned=planned, cell=cell))


def _named(error: HarnessError) -> str:
    """The device whose command was under way when a guest was lost; empty where none was."""
    return error.device if isinstance(error, CutShort) else ""


def _until(wanted: Sequence[str]) -> list[str]:
    """The phases to be recorded: a guest goes through them in their order, and stops behind the last that is wanted."""
    last = ordered_phases(wanted)[-1]
    usual = ordered_phases([*USUAL_PHASES, last])
    return usual[: 1 + usual.index(last)]


def _place_of(lane: Lane) -> Place:
    if by_schedule(lane):
        return Place.IN
    return Place.BEFORE if lane.wave < Wave.WHOLE else Place.BEHIND


def _phases_of(guest: PlannedGuest | None, phases: Sequence[str]) -> Sequence[str]:
    """Those phases that a device's guest reaches."""
    return phases if guest is None else reached(guest, phases)


def _lacking(pack: StatePack, binary: QemuBinary) -> Lack | None:
    """Why a build cannot be the machine of a pack, or None when it can. It was asked for the pack's device types."""
    machine = pack.manifest.machine
    if binary.machine(machine) is None:
        return Lack(what=Lacks.MACHINE, machine=machine, qemu=binary.version)
    absent = tuple(name for name in pack.device_types if name not in binary.devices)
    return Lack(what=Lacks.RECORDED_TYPES, names=absent, machine=machine, qemu=binary.version) if absent else None


def load_pack_rows(run: Run, pack: StatePack) -> MatrixDoc:
    """Judge the rows of an open pack with every binary of the run."""
    return run.execute([Subject(loader=binary, pack=pack) for binary in run.binaries])
