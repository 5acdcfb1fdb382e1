# SPDX-License-Identifier: GPL-2.0-or-later
"""Spreads the cells of a run over shards: runs of the same command line on hosts that do not talk to each other.

Pure: nothing is started. Each shard works out the same plan and takes its part of it, so that all parts together are
the run. What is not divided is a request to a lane: a guest, its phases, and the devices that are loaded together.
A shard that has a request records its guest, and repeats the requests of earlier waves in the same phases, for what
these break on is left out; so a guest is divided only where that ends the run sooner.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.devices.device import Device
from harness.errors import UsageError
from harness.lanes.registry import LANES
from harness.results.events import ShardOf
from harness.results.key import CellKey
from harness.work.asked import Options, Subject, phases_on, plan_subject, seen_before, subjects_of, wanted_of
from harness.work.guests import GuestDue
from harness.work.planning import by_schedule, plan_tasks, with_causes
from harness.work.share import Share
from harness.work.task import RecordingFile, Task

#: What it takes to record a guest and to begin a request, in seconds; the loads that the lanes' own figures are for.
_RECORDING_S, _REQUEST_S = 25.0, 0.7
_LOADS = 100
_SHARD = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of several runs that are one run together.

    :param number: 1 for the first
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/5``.

        :raises UsageError: it is none
        """
        match = _SHARD.fullmatch(text)
        number, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= of:
            raise UsageError(f"--shard {text!r}: expected NUMBER/SHARDS, from 1/5 to 5/5")
        return cls(number=number, of=of)

    def share(self, options: Options) -> tuple[Share, ShardOf]:
        """The part of a run that this shard has, and how its events name it."""
        guests = foresee(options)
        every = [key for guest in guests for key in guest.cells]
        mine = spread(guests, self.of)[self.number - 1]
        return Share(mine, every), ShardOf(number=self.number, of=self.of, plan=_name_of(options, every))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeseenGuest:
    """A guest of a run, before it is recorded, and what it will be asked.

    :param tasks: without a recording; empty where no device of it can be had
    :param cells: of the devices that are to be judged in it, those of the tasks among them
    """

    tasks: tuple[Task, ...]
    cells: tuple[CellKey, ...]


def foresee(options: Options) -> list[ForeseenGuest]:
    """The guests of a run and their cells, in the order of a report. A guest that is lost, or a device that fails on
    its way to a phase, brings other cells."""
    return [guest for subject in subjects_of(options) for guest in _guests(options, subject)]


def _guests(options: Options, subject: Subject) -> Iterator[ForeseenGuest]:
    planned = plan_subject(options, subject, seen_before(options, subject))
    for due in planned.guests:
        tasks = tuple(_tasks(options, due))
        keys = (*(plan.key for plan in due.plans), *(key for task in tasks for key in task.answers))
        yield ForeseenGuest(tasks=tasks, cells=tuple(dict.fromkeys(keys)))
    refused = tuple(plan.key for plan in planned.plans if plan.device in planned.lacking)
    if refused:
        yield ForeseenGuest(tasks=(), cells=refused)


def _tasks(options: Options, due: GuestDue) -> list[Task]:
    """What a guest is asked when all goes well."""
    phases, devices = phases_on(options, due.seen.machine), {device.name: device for device in due.guest.devices}
    judged = dict.fromkeys(plan.device for plan in due.plans)
    wanted = wanted_of(
        options,
        due.seen,
        due.plans[0].key,
        recording=RecordingFile(path="", content=""),
        guest=due.guest.devices,
        reached={name: _reached(devices[name], phases) for name in judged},
        phases=[phase for phase in phases if any(device.reaches(phase) for device in due.guest.devices)],
        lanes=options.lanes,
    )
    return plan_tasks(wanted)


def _reached(device: Device, phases: Sequence[str]) -> list[str]:
    return [phase for phase in phases if device.reaches(phase)]


def spread(guests: Sequence[ForeseenGuest], shards: int) -> list[list[CellKey]]:
    """The cells of each shard, so that the longest is done as soon as may be.

    Guests stay whole at first. Then one of the longest shard is divided into one part more, as long as that helps.
    """
    parts = [1] * len(guests)
    best = _laid(guests, parts, shards)
    while True:
        longest = max(best, key=lambda lot: lot.seconds)
        tries = [
            [count + (number == other) for other, count in enumerate(parts)]
            for number in sorted(longest.guests)
            if parts[number] < min(shards, len(guests[number].tasks))
        ]
        found = [(each, _laid(guests, each, shards)) for each in tries]
        parts, laid = min(found, key=lambda each: _length(each[1]), default=(parts, best))
        if _length(laid) >= _length(best):
            return [lot.cells for lot in best]
        best = laid


@dataclass(slots=True)
class _Lot:
    """What lies in one shard so far."""

    seconds: float
    cells: list[CellKey]
    guests: set[int]


def _length(lots: Sequence[_Lot]) -> list[float]:
    """The longest first; of two guests that are equally long both have to be divided before the run is shorter."""
    return sorted((lot.seconds for lot in lots), reverse=True)


def _laid(guests: Sequence[ForeseenGuest], parts: Sequence[int], shards: int) -> list[_Lot]:
    """The longest part first, each into the shard that has least; no shard gets two parts of one guest."""
    lots = [_Lot(0.0, [], set()) for _ in range(shards)]
    pieces = [
        (seconds, number, cells) for number, guest in enumerate(guests) for seconds, cells in _cut(guest, parts[number])
    ]
    for seconds, number, cells in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
        lot = min((lot for lot in lots if number not in lot.guests), key=lambda lot: lot.seconds)
        lot.seconds += seconds
        lot.cells += cells
        lot.guests.add(number)
    return lots


def _cut(guest: ForeseenGuest, count: int) -> list[tuple[float, list[CellKey]]]:
    """A guest in so many parts of about the same length, with how long each takes."""
    if count == 1:
        return [(_seconds(guest.tasks), list(guest.cells))]
    bins: list[list[Task]] = [[] for _ in range(count)]
    for task in sorted(guest.tasks, key=lambda task: -_cost(task)):
        costs = [_part_s(guest, [*mine, task]) for mine in bins]
        bins[costs.index(min(costs))].append(task)
    answered = {key for task in guest.tasks for key in task.answers}
    rest = [key for key in guest.cells if key not in answered]
    cells = [[key for task in mine for key in task.answers] for mine in bins]
    return [
        (_part_s(guest, mine), own + (rest if not at else []))
        for at, (mine, own) in enumerate(zip(bins, cells, strict=True))
    ]


def _part_s(guest: ForeseenGuest, mine: Sequence[Task]) -> float:
    """How long a part takes, with what it has to repeat."""
    own = {task.answers for task in mine}
    return _seconds(with_causes(guest.tasks, LANES, lambda task: task.answers in own))


def _seconds(tasks: Sequence[Task]) -> float:
    return (_RECORDING_S if tasks else 0.0) + sum(map(_cost, tasks))


def _cost(task: Task) -> float:
    lane = LANES[task.request.lane]
    loads = task.request.loads / _LOADS if by_schedule(lane) else 1.0
    return _REQUEST_S + lane.seconds * len(task.answers) * loads


def _name_of(options: Options, every: Sequence[CellKey]) -> str:
    """A name of the plan: the same for shards of one run, on whichever hosts."""
    builds = [binary.sha256 for binary in options.binaries]
    asked = [options.loads, options.run_s, options.controls, options.pair, builds, [str(key) for key in every]]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
