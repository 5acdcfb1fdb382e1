# SPDX-License-Identifier: GPL-2.0-or-later
"""The shards of a run put together again: their events become the events of one run.

Every shard plans all cells and judges its own. So what is missing can be told: a shard that did not come, one that did
not get to its end, and each cell that was planned and that nobody judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from harness.errors import UsageError
from harness.results.document import LostGuest, MachineResult
from harness.results.events import (
    EVENTS_NAME,
    CellsPlanned,
    Event,
    GuestLost,
    Judged,
    MachineSeen,
    RunEnded,
    ShardOf,
    Started,
    read_events,
)
from harness.results.known import Issue

_OPTION = "--shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardRun:
    """The events of one shard, and which it is."""

    path: Path
    shard: ShardOf
    started: Started
    events: tuple[Event, ...]

    @property
    def complete(self) -> bool:
        return any(isinstance(event, RunEnded) and event.complete for event in self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A run that was made in parts.

    :param events: as if it had been made in one
    :param absent: numbers of the shards that are not among them
    :param cut: folders of those that did not come to their end
    :param missing: cells that were planned and not judged
    """

    events: tuple[Event, ...]
    of: int
    absent: tuple[int, ...]
    cut: tuple[Path, ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not (self.absent or self.cut or self.missing)


def merge(folders: Sequence[Path], known: Sequence[Issue] | None = None, *, whole: bool = True) -> Merged:
    """Put shards together.

    :param folders: of their reports, or the event files in them, in any order
    :param known: issues that the run is held against, in place of those of its shards
    :param whole: every planned cell is to be there; else some were not asked for
    :raises UsageError: one cannot be read, is no shard, is of another run, or comes twice
    """
    runs = sorted(map(_read, folders), key=lambda run: run.shard.number)
    _check(runs)
    planned: dict[str, None] = {}
    judged: set[str] = set()
    for event in (event for run in runs for event in run.events):
        match event:
            case CellsPlanned(cells=cells):
                planned |= dict.fromkeys(cells)
            case Judged(planned=name):
                judged.add(name)
    there = {run.shard.number for run in runs}
    merged = Merged(
        events=(),
        of=runs[0].shard.of,
        absent=tuple(number for number in range(1, runs[0].shard.of + 1) if number not in there),
        cut=tuple(run.path for run in runs if not run.complete),
        missing=tuple(name for name in planned if name not in judged and whole),
    )
    return replace(merged, events=tuple(_events(runs, known, complete=merged.complete)))


def _read(folder: Path) -> _ShardRun:
    path = folder / EVENTS_NAME if folder.is_dir() else folder
    events = tuple(read_events(path))
    started = events[0] if events else None
    if not isinstance(started, Started) or started.shard is None:
        raise UsageError(f"{path}: no shard of a run; expected the folder of a run with {_OPTION} NUMBER/SHARDS")
    return _ShardRun(path=path.parent, shard=started.shard, started=started, events=events[1:])


def _check(runs: Sequence[_ShardRun]) -> None:
    first = runs[0]
    for before, run in pairwise(runs):
        if (run.shard.of, run.shard.plan) != (first.shard.of, first.shard.plan):
            raise UsageError(
                f"{run.path} and {first.path} are shards of different runs: {' '.join(run.started.command)}, and "
                f"{' '.join(first.started.command)}; all have to have the same options, QEMUs and accelerator"
            )
        if run.shard.number == before.shard.number:
            raise UsageError(f"{run.path} and {before.path} are both shard {run.shard.number} of {run.shard.of}")


def _events(runs: Sequence[_ShardRun], known: Sequence[Issue] | None, *, complete: bool) -> Iterator[Event]:
    """The first shard's start, then what all of them say, each thing once, and one end."""
    started = min((run.started for run in runs), key=lambda each: each.started)
    yield replace(
        runs[0].started,
        command=_without_shard(runs[0].started.command),
        started=started.started,
        known=started.known if known is None else [issue.model_dump(mode="json") for issue in known],
        run="",
        shard=None,
    )
    probed: set[tuple[str, str]] = set()
    lost: set[LostGuest] = set()
    at_s = 0.0
    for event in (event for run in runs for event in run.events):
        at_s = max(at_s, event.at_s)
        if isinstance(event, RunEnded):
            continue
        if isinstance(event, MachineSeen):
            # a shard that has no cell of a machine does not probe its QEMU
            if event.machine.dialect is None and _which(event.machine) in probed:
                continue
            probed.add(_which(event.machine))
        if isinstance(event, GuestLost):
            if event.guest in lost:
                continue
            lost.add(event.guest)
        yield event
    yield RunEnded(complete=complete, at_s=at_s)


def _which(machine: MachineResult) -> tuple[str, str]:
    recorder = machine.record_qemu or machine.qemu
    return machine.machine, f"{recorder.sha256} {machine.qemu.sha256}"


def _without_shard(command: Sequence[str]) -> tuple[str, ...]:
    """The command line without the option that says which shard it is."""
    words = list(command)
    while _OPTION in words:
        at = words.index(_OPTION)
        del words[at : at + 2]
    return tuple(word for word in words if not word.startswith(f"{_OPTION}="))
