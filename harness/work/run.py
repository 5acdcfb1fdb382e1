# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a matrix: record what is not recorded yet, judge every cell, tell every event as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import count
from threading import BoundedSemaphore, Lock
from typing import Protocol

from harness.colo.messages import Step
from harness.devices.phases import Missed, unreached_in
from harness.engines.admission import Admission, pack_admission
from harness.engines.probe import ColoAbility, probe_colo
from harness.engines.schedule import Schedule
from harness.errors import BudgetError, HarnessError, HostError, HostsError, QemuError, Stopped
from harness.experiments.interview import recorded_devices
from harness.guests.build import GuestMaker
from harness.guests.lack import Lack, Lacks
from harness.lanes.canary import spoilt_section
from harness.lanes.judge import Exclusion, ExclusionReason
from harness.lanes.lane import Lane, Wave
from harness.lanes.registry import LANES
from harness.names import MIGRATIONS, PLATFORM
from harness.oracles.coverage import coverage_of
from harness.oracles.load import crash_line, end_of
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbed
from harness.qemu.scope import ProcessScope
from harness.results.answer import Seen
from harness.results.cause import Cause, Side, Undecided, Unsupported, Why
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.events import (
    CanarySeen,
    CellsPlanned,
    Event,
    Fold,
    GuestBooted,
    GuestLost,
    Judged,
    MachineSeen,
    Place,
    RunEnded,
    Said,
    Started,
    StateSeen,
    stamped,
)
from harness.results.key import CellKey, labels
from harness.results.outcome import Outcome
from harness.results.plan import CellPlan
from harness.results.signature import signature_of_cell
from harness.results.verdict import Verdict
from harness.state.fitting import fitted, without_devices
from harness.state.recorder import BootTime, CutShort, Plan
from harness.state.recordings import (
    VMSTATE,
    Recordings,
    machine_names,
)
from harness.work.asked import (
    Options,
    PlannedSubject,
    Subject,
    labelled,
    phases_on,
    plan_rows,
    plan_subject,
    subjects_of,
    wanted_of,
)
from harness.work.guests import GuestDue, GuestRecorder
from harness.work.planning import Chain, by_schedule, in_waves, plan_tasks, with_causes
from harness.work.process import ProcessWorker
from harness.work.queue import Queue, Takes, most_out
from harness.work.task import RecordingFile, Task
from harness.work.worker import CellDone, Learnt, Loaded, LocalWorker, Reported, Worker

_POLL_S = 0.2
#: Ranks of what is due begin so: subjects and guests come behind the tasks of those before.
_TASK, _GUEST = 0, 1
#: All subjects come before the first guest.
_SUBJECT = (_GUEST, -1)
#: So many tasks are given out at a time when others do them; as many again of those that wait.
_REMOTE_JOBS = 64
#: And so many recordings are open then.
_REMOTE_GUESTS = 8


#: What a run has to do: a subject has guests, a guest brings tasks.
Due = Subject | PlannedSubject | GuestDue | Task
#: Takes each event of a run after it happened, from any thread.
Sink = Callable[[Event], None]


class Watcher(Protocol):
    """Told what is going on and will not last; see :class:`harness.report.progress.LiveProgress`."""

    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Judging:
    """A guest that is being judged.

    :param due: what it was recorded for; None for a pack that was open already
    :param left: cells that are not decided beside the devices that were left out
    """

    seen: Seen
    chain: Chain
    pack: StatePack
    due: GuestDue | None = None
    left: list[Cell] = field(default_factory=list)

    def culprits(self, cell: Cell) -> frozenset[str]:
        """The devices that are to be left out of a guest so that a cell can be decided; none where that is no way."""
        found = frozenset(map(self.pack.owner_of, cell.outcome.hidden_by))
        return frozenset() if self.due is None or cell.key.rest or found & {cell.device, PLATFORM} else found

    def again(self) -> list[GuestDue]:
        """The guests without those devices, and with the devices that were not decided."""
        if self.due is None:
            return []  # nothing can be recorded anew
        apart: dict[frozenset[str], list[CellPlan]] = {}
        for cell in self.left:
            plan = CellPlan(key=cell.key, loads=cell.outcome.loads_asked)
            apart.setdefault(self.culprits(cell), []).append(plan)
        due = replace(self.due, phases=None, again=True)
        return [replace(due, plans=tuple(plans)).only({plan.device for plan in plans}) for plans in apart.values()]


class Run:
    """A matrix in the making.

    :param guest: builds the guest when a recording has to be made
    :param watcher: told about progress, from several threads
    :param started: the first event: command, host, and what the reports need beside the cells
    :param write: keeps an event before it counts, one at a time, in their order; see :class:`EventLog`
    :param sinks: take each event after that
    :param scope: closing it stops this run; the run has one of its own within it
    :param earlier: what the same run told before it was cut off: none of its cells is judged again, and its time counts
    :param remote: makes the worker that has tasks done elsewhere, of this run's scope; then ``jobs`` is how many guests
        are recorded here at a time
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
        earlier: Sequence[Event] = (),
        remote: Callable[[ProcessScope], Worker] | None = None,
    ) -> None:
        self._options = options
        self._watcher = watcher
        self._started = started
        self._write = write
        self._sinks = tuple(sinks)
        self._share = options.share
        self._scope = ProcessScope(scope)
        self._lock = Lock()
        self._began = time.monotonic() - max((event.at_s for event in earlier), default=0.0)
        self._fold = Fold(started)
        self._earlier = [event for event in earlier if not isinstance(event, Started | RunEnded)]
        self._goes_on = bool(earlier)
        self._judged = {event.cell.key for event in self._earlier if isinstance(event, Judged)}
        self._canaries: dict[tuple[str, str], CanarySeen] = {}
        self._platforms: dict[tuple[str, str], set[Exclusion]] = {}
        self._builds = [(each.sha256, each.label) for each in labelled(options.binaries)]
        self._judging: dict[object, _Judging] = {}
        self._numbers = count()
        self._here = LocalWorker(self._scope)
        self._worker: Worker = ProcessWorker(self._scope) if options.processes else self._here
        self._at_a_time = self._guests = options.jobs
        self._recording = BoundedSemaphore(options.jobs)
        if remote is not None:
            self._worker, self._at_a_time, self._guests = remote(self._scope), _REMOTE_JOBS, _REMOTE_GUESTS
        self._recorder = None if guest is None else self._guest_recorder(guest)

    def _guest_recorder(self, make: GuestMaker) -> GuestRecorder:
        options, watcher = self._options, self._watcher
        recordings = Recordings(
            fresh=options.fresh, stage=watcher.stage, message=self._say, scope=self._scope, booted=self._booted
        )
        return GuestRecorder(
            recordings=recordings,
            make=make,
            accel=options.accel,
            phases=options.phases,
            scope=self._scope,
            stage=watcher.stage,
        )

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
        self._begin()
        complete = False
        pool = ThreadPoolExecutor(max_workers=most_out(self._at_a_time), thread_name_prefix="cell")
        try:
            self._finish(pool, subjects_of(self._options) if subjects is None else subjects)
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

    def _begin(self) -> None:
        """Tell the start; of a run that goes on, its sinks what it has told before."""
        if not self._goes_on:
            self._emit(self._started)
            return
        told: list[Event] = [self._started, *self._earlier]
        for event in told:
            self._fold.add(event)
            for sink in self._sinks:
                sink(event)

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

    def _booted(self, plan: Plan, time: BootTime) -> None:
        with self._lock:
            qemu = labels(self._builds)[plan.binary.sha256]
        self._emit(
            GuestBooted(
                machine=plan.machine,
                qemu=qemu,
                processor_s=round(time.processor_s, 3),
                yardstick_s=round(time.yardstick_s, 6),
            )
        )

    def _say(self, text: str) -> None:
        self._emit(Said(text=text))

    def _finish(self, pool: ThreadPoolExecutor, first: Sequence[Subject]) -> None:
        """Do what is due and what that brings; the first error that stops a run is raised.

        Guests are recorded beside the loads of those before, but not many of them ahead: each that waits to be judged
        holds the state of all its phases.
        """
        queue: Queue[Due] = Queue(self._at_a_time)
        for subject in first:
            queue.add(self._announced(subject), _SUBJECT, Takes.HALF)
        out: dict[Future[Sequence[Due]], Takes] = {}
        while queue:
            self._scope.check()
            ahead = len(self._judging) > self._guests
            out |= {pool.submit(self._do, due): takes for due, takes in queue.take(hold=ahead)}
            for future in wait(out, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                queue.done(out.pop(future))
                for due in future.result():
                    self._enqueue(queue, due)

    def _enqueue(self, queue: Queue[Due], due: Due) -> None:
        order = self._options.order
        if isinstance(due, Task):
            rank = (_TASK, order.of(due.answers) if order else 0, *self._judging[due.place].chain.rank(due))
            queue.add(due, rank, Takes.NOTHING if LANES[due.request.lane].waits else Takes.CORE)
        elif isinstance(due, GuestDue):
            queue.add(due, (_GUEST, order.of(plan.key for plan in due.plans) if order else 0), Takes.HALF)
        else:
            queue.add(due, _SUBJECT, Takes.HALF)

    def _do(self, due: Due) -> Sequence[Due]:
        if isinstance(due, Task):
            return self._carry_out(due)
        with self._recording:
            self._scope.check()
            if isinstance(due, GuestDue):
                return self._guest_tasks(due)
            if isinstance(due, PlannedSubject):
                return self._prepare(due)
            assert due.pack is not None  # all others were planned
            return self._prepare_pack(due.pack, due.loader)

    def _announced(self, subject: Subject) -> Subject | PlannedSubject:
        """Tell of a machine and its cells, here, in their order: threads take them in any."""
        if subject.pack is not None:
            manifest = subject.pack.manifest
            self._see(manifest.machine, manifest.family, subject.loader, manifest.qemu)
            return subject
        recorder = subject.recorder or subject.loader
        family, name = machine_names(recorder, subject.machine)
        planned = plan_subject(self._options, subject, self._see(name, family, subject.loader, recorder.identity()))
        self._add(planned.plans)
        return planned

    def _prepare(self, planned: PlannedSubject) -> list[GuestDue]:
        """The guests of a machine."""
        for plan in planned.plans:
            lack = planned.lacking.get(plan.device)
            if lack is not None:
                self._unsupported([plan], planned.seen, lack, never=plan.device in planned.never)
        return list(planned.guests)

    def _guest_tasks(self, due: GuestDue) -> list[Due]:
        """Have one guest recorded; the first tasks that judge it, and guests that are to be recorded in its place."""
        if not self._has_any(due):
            return []
        assert self._recorder is not None  # only a run over an open pack has none, and it records nothing
        if due.no_colo is not None and not self._migrations():
            self._unsupported(due.plans, due.seen, due.no_colo, never=False)
            return []
        try:
            self._probe(due.seen)
        except QemuError as error:
            self._scope.check()
            self._give_up(due.plans, due.seen, error)
            return []
        outcome = self._recorder.record(due)
        if outcome.guest is not None:
            self._emit(GuestLost(guest=outcome.guest))
        for plans, lack in outcome.refused:
            self._unsupported(plans, due.seen, lack, never=True)
        for plans, reason in outcome.lost:
            self._give_up(plans, due.seen, reason)
        came = due.recorder.sha256 != due.seen.binary.sha256
        tasks = []
        if outcome.pack is not None:
            tasks = self._tasks_for(outcome.pack, due.seen, outcome.plans, came=came, no_colo=due.no_colo, due=due)
            if not tasks:
                self._release(outcome.pack)
        return [*tasks, *outcome.more]

    def _migrations(self) -> tuple[Lane, ...]:
        """The lanes that COLO has no part in."""
        return tuple(lane for lane in self._options.lanes if lane.name in MIGRATIONS)

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
        plans = plan_rows(self._options, seen, self._options.devices, self._phases(machine), accel=accel, cpus=cpus)
        if self._options.checkpoints:
            self._add(plans)
        try:
            fit = fitted(pack, binary)
            for name, why in fit.lacking.items():
                self._unsupported([plan for plan in plans if plan.device == name], seen, why, never=False)
            plans = [plan for plan in plans if plan.device not in fit.lacking]
            if fit.pack is None or not plans:
                return []
            pack = fit.pack
            ability = self._probe(seen)
            found = pack_admission(binary, ability, pack, self._scope) if self._options.checkpoints else Admission()
            others, gone = without_devices(pack, {*found.refused, *found.breaking})
        except QemuError as error:
            self._give_up(plans, seen, error)
            return []
        names = tuple(found.refused)
        lack = replace(found.refused[names[0]], names=names) if names else None
        tasks = self._tasks_for(pack, seen, [p for p in plans if p.device in gone], came=True, no_colo=lack)
        rest = [plan for plan in plans if plan.device not in gone]
        return tasks + self._tasks_for(others, seen, rest, came=True, no_colo=None)

    def _give_up(self, plans: Sequence[CellPlan], seen: Seen, error: Exception) -> None:
        self._say(f"{seen.route} {seen.machine}: {error}")
        cut = error if isinstance(error, CutShort) and _alone(plans) else None
        if cut is not None and cut.refused:
            recorder = seen.recorder.version
            lack = Lack(what=Lacks.MIGRATION, machine=seen.machine, qemu=recorder, said=cut.refused)
            self._unsupported(plans, seen, lack, never=True)
        elif cut is not None and cut.died is not None and cut.died.crashed:
            at = {"step": Step.SAVE if cut.saving else Step.RECORD, "load": None, "phase": cut.phase}
            cause = end_of(cut.log, cut.died, at, crash_line(cut.log) or "")
            for plan in plans:
                self._settle(plan, seen, Verdict.CRASH, cause)
        else:
            for plan in plans:
                self._fail(plan, seen, error)

    def _tasks_for(
        self,
        pack: StatePack,
        seen: Seen,
        plans: Sequence[CellPlan],
        *,
        came: bool,
        no_colo: Lack | None,
        due: GuestDue | None = None,
    ) -> list[Task]:
        """The first tasks of one open pack; ordinary migration comes before all checkpoints.

        :param no_colo: why COLO does not start with it, so that migrations alone are left
        :param due: what the pack was recorded for
        """
        plans, lanes = self._reached(pack, seen, plans), self._options.lanes
        if no_colo is not None:
            self._unsupported(plans, seen, no_colo, never=False)
            lanes = self._migrations()
        if not plans or not lanes:
            return []
        devices = tuple(dict.fromkeys(plan.device for plan in plans))
        phases = tuple(phase for phase in self._phases(seen.machine) if phase in pack.phases)
        wanted = wanted_of(
            self._options,
            seen,
            plans[0].key,
            recording=RecordingFile(path=str(pack.source), content=pack.content),
            guest=recorded_devices(pack, self._options.profiles or None),
            reached={name: [phase for phase in phases if phase not in pack.unreached(name)] for name in devices},
            phases=phases,
            lanes=lanes,
            came=came,
        )
        planned = {plan.key for plan in plans}
        if due is not None and due.again:
            tasks = [part for task in plan_tasks(wanted) if (part := task.only(planned)).answers]
        else:
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
        tasks = self._mine(tasks)
        if not tasks:
            return []
        assert seen.ability is not None  # probed by whoever opened the pack
        if self._options.canary and no_colo is None:
            canary = self._canary(wanted.like, plans[0].key, seen, pack)
            if not canary.is_red:
                self._distrust(tasks, seen, canary)
                return []
        self._here.lend(pack, seen.binary, seen.ability)
        with self._lock:
            known = self._platforms.get((seen.machine, str(seen.route)), ())
            chain = Chain(in_waves(tasks, LANES), next(self._numbers), known)
            self._judging[wanted.like.place] = _Judging(seen=seen, chain=chain, pack=pack, due=due)
        return chain.ready()

    def _canary(self, like: Task, key: CellKey, seen: Seen, pack: StatePack) -> CanarySeen:
        """What becomes of a planted fault on a machine; it is loaded once for each."""
        known = self._canaries.get((seen.machine, str(seen.route)))
        if known is not None:
            return known
        phase = next(phase for phase in self._phases(seen.machine) if phase in pack.phases)
        request = replace(like.request, lane=str(Schedule.SAME), phases=(phase,), devices=(PLATFORM,), loads=1)
        answer = replace(key, device=PLATFORM, phases=(phase,), lane=request.lane, guest_mode=str(request.guest_mode))
        task = replace(like, request=request, answers=(answer,), canary=True, controls=False)
        found: list[Cell] = []

        def tell(said: Reported) -> None:
            found.extend([said.cell] if isinstance(said, CellDone) else [])

        assert seen.ability is not None
        self._here.lend(pack, seen.binary, seen.ability)
        try:
            self._worker.run(task, tell)
        except (HostError, Stopped):
            raise
        except HarnessError as error:
            self._scope.check()
            self._say(f"{seen.route} {seen.machine}: {error}")
        finally:
            self._here.clear(task)
        self._scope.check()
        canary = CanarySeen(
            machine=seen.machine,
            qemu=str(seen.route),
            verdict=found[0].verdict if found else Verdict.HARNESS_ERROR,
            section=spoilt_section(pack, phase),
        )
        self._canaries[seen.machine, canary.qemu] = canary
        self._emit(canary)
        return canary

    def _distrust(self, tasks: Sequence[Task], seen: Seen, canary: CanarySeen) -> None:
        """Nothing is judged on a machine where a planted fault was not told as one."""
        cause = Undecided(why=Why.CANARY, said=str(canary.verdict))
        for key in dict.fromkeys(key for task in tasks for key in task.answers):
            self._settle(CellPlan(key=key, loads=0), seen, Verdict.HARNESS_ERROR, cause)

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
        return phases_on(self._options, machine)

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

    def _probe(self, seen: Seen) -> ColoAbility:
        if seen.ability is None:
            seen.ability = probe_colo(seen.binary, self._scope)
            self._emit(MachineSeen(machine=seen.result()))
        return seen.ability

    def _add(self, plans: Sequence[CellPlan]) -> None:
        rows: dict[str, list[str]] = {}
        for plan in plans:
            rows.setdefault(plan.key.row, []).append(str(plan.key))
        for row, names in rows.items():
            self._emit(CellsPlanned(row=row, cells=tuple(names)))

    def _carry_out(self, task: Task) -> list[Due]:
        """Let a worker do a task; what may be done next comes back."""
        self._scope.check()
        judging = self._judging[task.place]
        begun: set[str] = set()
        judged: set[tuple[str, str]] = set()
        learnt: list[Exclusion] = []

        def tell(said: Reported) -> None:
            match said:
                case Loaded():
                    if said.cell not in begun:
                        begun.add(said.cell)
                        self._start_cell(said.cell)
                    self._watcher.loads(said.cell, said.total)
                case CellDone():
                    judged.update({(said.planned, ""), (said.planned, said.cell.host)})
                    if judging.culprits(said.cell):
                        judging.left.append(said.cell)
                    elif said.cell.device != PLATFORM or PLATFORM in self._options.devices:
                        self._keep(said.planned, said.cell)
                case Learnt():
                    learnt.extend(said.exclusions)

        if not by_schedule(LANES[task.request.lane]):
            self._start_cell(str(task.answers[0]))  # it stands for all, and tells no loads
        try:
            self._worker.run(task, tell)
        except (HostError, Stopped):
            raise
        except HarnessError as error:
            self._scope.check()
            for host, reason in (error.errors if isinstance(error, HostsError) else {"": error}).items():
                for key in task.answers:
                    if (str(key), host) not in judged:
                        self._fail(CellPlan(key=key, loads=task.request.loads), judging.seen, reason, host)
        self._scope.check()
        with self._lock:
            if PLATFORM in task.request.devices:
                self._pass_on(judging, learnt)
            following: list[Due] = [*judging.chain.done(task, learnt)]
            over = judging.chain.over
        if over:
            del self._judging[task.place]
            self._here.clear(task)
            self._release(judging.pack)
            following += judging.again()
        return following

    def _pass_on(self, judging: _Judging, learnt: Iterable[Exclusion]) -> None:
        """What breaks of the platform, found where the platform is judged: all guests of the machine have it, and need
        not find it again."""
        pack, seen = judging.pack, judging.seen
        known = self._platforms.setdefault((seen.machine, str(seen.route)), set())
        known.update(
            each for each in learnt if each.reason is ExclusionReason.BROKE and pack.owner_of(each.section) == PLATFORM
        )

    def _has_any(self, due: GuestDue) -> bool:
        """Whether a cell of a guest is judged here: of its schedules, or of another lane."""
        devices = {plan.device for plan in due.plans}
        return self._share is None or self._share.has_row(due.plans[0].key, devices)

    def _mine(self, tasks: Sequence[Task]) -> list[Task]:
        """Those whose cells are judged here, and those whose findings they leave out."""
        share = self._share
        if share is None:
            return list(tasks)
        return with_causes(tasks, LANES, lambda task: any(share.has(str(key)) for key in task.answers))

    def _start_cell(self, cell: str) -> None:
        if self._share is None or self._share.has(cell):
            self._watcher.start_cell(cell)

    def _release(self, pack: StatePack) -> None:
        """A guest is judged: what was held for it is let go, so that memory does not grow with the guests of a run."""
        if self._recorder is not None:
            self._recorder.recordings.release(pack)

    def _fail(self, plan: CellPlan, seen: Seen, error: Exception, host: str = "") -> None:
        """Nothing can be said: the host did not let it be tried, or this program could not.

        :param host: of those that judge each cell, the one that did not
        """
        if isinstance(error, Disturbed):
            self._settle(plan, seen, Verdict.HOST, *error.hindered, host=host)
        elif isinstance(error, BudgetError):
            cause = Undecided(why=Why.BUDGET, seconds=error.seconds)
            self._settle(plan, seen, Verdict.HARNESS_ERROR, cause, host=host)
        else:
            self._settle(plan, seen, Verdict.HARNESS_ERROR, Undecided(why=Why.ERROR, said=str(error)), host=host)

    def _settle(self, plan: CellPlan, seen: Seen, verdict: Verdict, *causes: Cause, host: str = "") -> None:
        if not self._options.checkpoints and by_schedule(LANES[plan.key.lane]):
            self._add([plan])  # it was not announced, since it is there for this alone
        cell = Cell(
            key=plan.key,
            record_qemu=seen.recorder,
            load_qemu=seen.loader,
            outcome=Outcome(verdict=verdict, causes=causes, loads_asked=plan.loads),
            host=host,
        )
        self._keep(str(plan.key), cell)

    def _keep(self, planned: str, cell: Cell) -> None:
        if self._share is not None and not self._share.has(planned):
            return  # judged for what it says of others
        if cell.key in self._judged:
            return  # told before the run was cut off
        signature = signature_of_cell(cell)
        cell = replace(cell, signature=None if signature is None else signature.name)
        self._emit(Judged(planned=planned, cell=cell))


def _place_of(lane: Lane) -> Place:
    if by_schedule(lane):
        return Place.IN
    return Place.BEFORE if lane.wave < Wave.WHOLE else Place.BEHIND


def _alone(plans: Sequence[CellPlan]) -> bool:
    """Whether all cells are one device's, so that what became of them is its doing."""
    return len({plan.device for plan in plans}) == 1


def load_pack_rows(run: Run, pack: StatePack) -> MatrixDoc:
    """Judge the rows of an open pack with every binary of the run."""
    return run.execute([Subject(loader=binary, pack=pack) for binary in run.binaries])
