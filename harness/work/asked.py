# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is asked for, and what is known of it before anything is started: machines, guests, cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.arch import architecture_of
from harness.devices.device import Device
from harness.engines.schedule import LoadCount, Schedule
from harness.guests.lack import Lack
from harness.guests.planner import PlannedGuest
from harness.lanes.lane import Lane, Reached, Request
from harness.lanes.registry import LANES
from harness.names import ADOPTED, MIGRATIONS, ORACLES, RESET, USUAL_LOADS
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.results.answer import Seen
from harness.results.document import Qemu
from harness.results.key import USUAL_CPUS, CellKey, labels
from harness.results.plan import CellPlan, plan_cells
from harness.state.recordings import machine_names, missing, planned_guests, reached
from harness.state.transforms import GuestMode
from harness.work.guests import GuestDue
from harness.work.order import Order
from harness.work.planning import Wanted
from harness.work.share import Share
from harness.work.task import QemuFile, RecordingFile, Task


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
    :param reset: the lane ``reset`` is asked for
    :param oracles: the experiments that look at more than the answers are made
    :param overrides: further options of the QEMU that loads, such as ``-global``
    :param cpus: of the guests that are recorded
    :param processes: each task is carried out by a process of its own, instead of a thread
    :param budget_s: how long one task may take; None: however long it takes
    :param share: the cells that are judged here, all when None
    :param order: which cells come first, that of the report when None
    :param checkpoints: COLO is asked; without, of the schedules' cells only those are there that nothing can be said of
    :param canary: nothing of a machine is judged before a planted fault was told as one
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
    reset: bool = False
    oracles: bool = True
    overrides: tuple[Option, ...] = ()
    cpus: int = USUAL_CPUS
    processes: bool = False
    derived: Mapping[tuple[str, str], tuple[Device, ...]] = field(default_factory=dict)
    budget_s: float | None = None
    share: Share | None = None
    order: Order | None = None
    canary: bool = False
    checkpoints: bool = True

    @property
    def experiments(self) -> bool:
        """Whether there is more than loads."""
        return self.oracles and not self.quick

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """What is varied, in the order of a report."""
        looks = (*(ORACLES if self.experiments else ()), *((RESET,) if self.reset else ()))
        of_colo = (*map(str, self.schedules), *looks) if self.checkpoints else ()
        names = (*(name for name in MIGRATIONS if name in self.migrations), *of_colo)
        return tuple(LANES[name] for name in names)

    @property
    def load_count(self) -> LoadCount:
        """Those of each cell that loads by a schedule; as many as were asked for, where somebody said so."""
        return LoadCount(each=self.loads, once=self.quick and self.loads == USUAL_LOADS)

    @property
    def controls(self) -> bool:
        """Whether findings get a class."""
        return not self.quick


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSubject:
    """What is known of a subject that is to be recorded, before anything is started.

    :param plans: the cells of its schedules, in the order of a report
    :param lacking: device to why it is not to be had there
    :param never: those that the QEMU that records has not
    :param guests: with the cells of the devices that are to be judged in each
    """

    seen: Seen
    plans: tuple[CellPlan, ...]
    lacking: Mapping[str, Lack]
    never: frozenset[str]
    guests: tuple[GuestDue, ...]


def subjects_of(options: Options) -> list[Subject]:
    """Each machine once, though it was named twice or by its alias too, or its QEMU by two paths."""
    subjects: dict[tuple[str, str], Subject] = {}
    for binary in options.binaries:
        for machine in options.machines:
            if len(options.machines) > 1 and architecture_of(machine).name != binary.target:
                continue  # checked before: another QEMU of the run has it
            key = (binary.sha256, machine_names(binary, machine)[1])
            subjects.setdefault(key, Subject(loader=binary, machine=machine))
    return list(subjects.values())


def seen_before(options: Options, subject: Subject) -> Seen:
    """A subject without a pack, as a run over these options will name it."""
    recorder = subject.recorder or subject.loader
    family, name = machine_names(recorder, subject.machine)
    named = {each.sha256: each for each in reversed(labelled(options.binaries))}
    return Seen(
        machine=name,
        family=family,
        binary=subject.loader,
        recorder=named[recorder.sha256],
        loader=named[subject.loader.sha256],
    )


def labelled(binaries: Sequence[QemuBinary]) -> tuple[Qemu, ...]:
    """QEMUs as the cells of a run over them name them."""
    names = labels((binary.sha256, binary.label or binary.version) for binary in binaries)
    return tuple(Qemu(**binary.identity(), label=names[binary.sha256]) for binary in binaries)


def plan_subject(options: Options, subject: Subject, seen: Seen) -> PlannedSubject:
    """The cells and the guests of a machine that one QEMU is to record, for that or another one to load."""
    recorder, binary = subject.recorder or subject.loader, subject.loader
    family, name = machine_names(recorder, subject.machine)
    derived = options.derived.get((recorder.sha256, name), ())
    profiles = (*derived, *options.profiles)
    wanted = subject.devices or {*options.devices, *(d.name for d in derived)}
    never = {d.name: missing(d, recorder, name, family) for d in profiles}
    lacking = {d.name: never[d.name] or missing(d, binary, name, family) for d in profiles}
    planned = planned_guests(name, family, [d for d in profiles if lacking[d.name] is None], options.phases)
    lacking |= planned.refused
    guests = {d.name: guest for guest in reversed(planned.guests) for d in guest.devices}
    plans = tuple(
        plan
        for d in profiles
        if d.name in wanted
        for plan in plan_rows(options, seen, [d.name], _phases_of(guests.get(d.name), phases_on(options, name)))
    )
    able = [plan for plan in plans if lacking[plan.device] is None]
    dues = (
        GuestDue(recorder=recorder, guest=guest, seen=seen, plans=tuple(p for p in able if guests[p.device] is guest))
        for guest in planned.guests
    )
    return PlannedSubject(
        seen=seen,
        plans=plans,
        lacking={name: lack for name, lack in lacking.items() if lack is not None},
        never=frozenset(name for name, lack in never.items() if lack is not None),
        guests=tuple(due for due in dues if due.plans),
    )


def plan_rows(
    options: Options, seen: Seen, devices: Sequence[str], phases: Sequence[str], **how: Any
) -> list[CellPlan]:
    """The cells of the schedules.

    :param how: accelerator and CPUs of a pack, where they are not the run's
    """
    return plan_cells(
        route=seen.route,
        machine=seen.machine,
        devices=devices,
        phases=phases,
        schedules=options.schedules,
        guest_modes=modes_on(options, seen.machine),
        loads=options.load_count,
        **{"accel": options.accel, "cpus": options.cpus, **how},
    )


def wanted_of(
    options: Options,
    seen: Seen,
    key: CellKey,
    *,
    recording: RecordingFile,
    guest: Sequence[Device],
    reached: Reached,
    phases: Sequence[str],
    lanes: Sequence[Lane],
    came: bool = False,
) -> Wanted:
    """What a guest is asked.

    :param key: of any of its cells
    :param guest: the devices that it has
    :param reached: by each device to be judged, those of the phases that it has reached
    :param came: it came from elsewhere: another QEMU, or another host
    """
    like = Task(
        recording=recording,
        loader=QemuFile(path=seen.binary.path, sha256=seen.binary.sha256),
        request=Request(lane="", machine=seen.machine, phases=(), devices=()),
        answers=(),
        guest=tuple(guest),
        came=came,
        run_s=options.run_s,
        controls=options.controls,
        pair=options.pair,
        overrides=options.overrides,
        budget_s=options.budget_s,
    )
    return Wanted(
        key=key,
        reached=reached,
        phases=tuple(phases),
        lanes=tuple(lanes),
        modes=modes_on(options, seen.machine),
        loads=options.load_count,
        like=like,
    )


def phases_on(options: Options, machine: str) -> tuple[str, ...]:
    """Those of the run that guests of a machine go through."""
    return tuple(filter(architecture_of(machine).has_phase, options.phases))


def modes_on(options: Options, machine: str) -> tuple[GuestMode, ...]:
    """Those of the run, on a machine whose guests live: without a kernel they end by themselves, loaded or not, and
    their CPUs are halted. An adopted guest is not to run without its disks."""
    alive = machine not in architecture_of(machine).without_kernel and ADOPTED not in options.phases
    return options.guest_modes if alive else (GuestMode.PARKED,)


def _phases_of(guest: PlannedGuest | None, phases: Sequence[str]) -> Sequence[str]:
    """Those phases that a device's guest reaches."""
    return phases if guest is None else reached(guest, phases)
