# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a list of events, ``cells.jsonl`` in its folder; the document and all reports are folds of it.

One event a line, JSON, in the order in which things happened::

    {"event": "started", "at_s": 0.0, "schema": "postload.events/1", "command": ["postload", "matrix"], ...}
    {"event": "machine", "at_s": 0.1, "machine": {"machine": "pc-q35-7.2", ...}}
    {"event": "planned", "at_s": 0.1, "row": "...", "place": "in", "cells": ["...", ...]}
    {"event": "judged", "at_s": 4.2, "planned": "...", "cell": {...}}
    {"event": "ended", "at_s": 31.5, "complete": true}

``started`` is the first and names the schema. A machine comes once when it is met and again when it was probed. What is
planned is grouped by rows, so that the document has the order of the plan whoever was judged first. A run that was
killed has no ``ended``.

What is guaranteed: each line goes to the kernel in one write before anybody else hears of the event. A run that is
killed at any moment loses at most the line that was being written. Nothing is forced to the disk: after a power cut
the end may be missing or damaged. A line that does not fit on the disk is taken back; what was there stays.

Cells and plans are named by texts that nobody here looks into.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from harness.errors import HostError, UsageError
from harness.results.answer import machine_result
from harness.results.coverage import covered
from harness.results.document import (
    Cell,
    DeviceCoverage,
    LostGuest,
    MachineResult,
    MatrixDoc,
    Program,
    Weight,
    weight_of,
)
from harness.results.key import CellKey
from harness.results.onhosts import cells_on_hosts, weight_on_hosts
from harness.results.reset import reset_table
from harness.results.verdict import Verdict

SCHEMA: Literal["postload.events/1"] = "postload.events/1"
EVENTS_NAME = "cells.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """What all events have: when it was, in seconds since the run began."""

    at_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, ``event`` first."""
        values = {item.name: _plain(getattr(self, item.name)) for item in fields(self)}
        return {"event": values.pop("event"), **values}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_name() -> str:
    """A name for a run that begins now: ``20260105-093012-1f3a9c``, date and time in UTC, then what nobody else has."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOf:
    """Which part of a run the events are of.

    :param number: 1 for the first
    :param plan: names what all parts together are asked for
    """

    number: int
    of: int
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    """A run began; the first event of all.

    :param started: ISO 8601 in UTC
    :param known: the known issues that the run is held against, as plain data; None when it is held against none
    :param qualify: what ``postload qualify`` was asked beside the cells; None for other commands
    :param run: names the run in a history, as :func:`new_run_name` gives it; see :attr:`name`
    :param shard: the part of the run that this is; None for a whole one
    :param night: what ``postload nightly`` is asked for, by a name: one that was cut off goes on when it is asked for
        the same again; empty for other commands
    :param hosts: each cell is to be judged on each of these; empty: by any host
    """

    event: Literal["started"] = "started"
    schema: Literal["postload.events/1"] = SCHEMA
    command: tuple[str, ...]
    host: dict[str, Any]
    started: str = field(default_factory=_now)
    program: Program = field(default_factory=Program)
    known: list[dict[str, Any]] | None = None
    qualify: dict[str, Any] | None = None
    run: str = ""
    shard: ShardOf | None = None
    night: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name; of one that was given none always the same, made of when it began and what it was asked."""
        if self.run:
            return self.run
        asked = json.dumps([self.started, self.command, self.host], sort_keys=True, default=str)
        when = re.sub("[-:]", "", self.started)[:15].replace("T", "-")
        return f"{when}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSeen(_Event):
    """A machine under one QEMU, or a pair of them; comes again when more is known of it. It has no answer yet."""

    event: Literal["machine"] = "machine"
    machine: MachineResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSeen(_Event):
    """A recording was opened: what it holds of the state that its devices can have."""

    event: Literal["state"] = "state"
    devices: tuple[DeviceCoverage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLost(_Event):
    """A guest was lost while it was recorded, and it is known who did it."""

    event: Literal["lost"] = "lost"
    guest: LostGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBooted(_Event):
    """A guest was recorded, and booted for that. One whose recording was kept from an earlier run does not boot.

    :param qemu: how cells name the QEMU that recorded it
    :param processor_s: of QEMU, from the first instruction to the guest's first prompt
    :param yardstick_s: processor time of this host for a fixed piece of work, just behind that
    """

    event: Literal["booted"] = "booted"
    machine: str
    qemu: str
    processor_s: float
    yardstick_s: float


class Place(StrEnum):
    """Where cells stand in their row; members stand in that order."""

    BEFORE = "before"
    IN = "in"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsPlanned(_Event):
    """Cells that are to be judged, in the order in which the document shall have them.

    :param row: rows stand in the order in which they are first named
    """

    event: Literal["planned"] = "planned"
    row: str
    place: Place = Place.IN
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(_Event):
    """A cell was judged.

    :param planned: what was planned; a second look at a row has the plan of the first, and stands behind it
    """

    event: Literal["judged"] = "judged"
    planned: str
    cell: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySeen(_Event):
    """State with a planted fault was loaded into a machine before any of its cells was judged.

    :param qemu: the route, as cells name it
    :param verdict: what became of it
    :param section: that has the fault
    """

    event: Literal["canary"] = "canary"
    machine: str
    qemu: str
    verdict: Verdict
    section: str = ""

    @property
    def is_red(self) -> bool:
        """It was told as what it is: a finding in the section with the fault, or QEMU was gone before it came to it."""
        return self.verdict in (Verdict.REJECT, Verdict.CRASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(_Event):
    """Something to be told that belongs to no cell."""

    event: Literal["said"] = "said"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(_Event):
    """The run came to its end, or was stopped before it."""

    event: Literal["ended"] = "ended"
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(_Event):
    """The answer of ``postload qualify``, which asked more than the cells; its document as plain data."""

    event: Literal["answered"] = "answered"
    qualify: dict[str, Any]


Event = (
    Started
    | MachineSeen
    | StateSeen
    | GuestLost
    | GuestBooted
    | CanarySeen
    | CellsPlanned
    | Judged
    | Said
    | RunEnded
    | Answered
)


def _plain(value: object) -> object:
    if isinstance(value, Cell | MachineResult):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


class Fold:
    """The state of a run after some of its events. Not thread-safe: whoever shares it has a lock.

    :param started: the first of them; it may come once more
    """

    def __init__(self, started: Started) -> None:
        self.started = started
        self._ended: RunEnded | None = None
        self._machines: dict[tuple[str, str, str], MachineResult] = {}
        self._coverage: dict[str, DeviceCoverage] = {}
        self._lost: list[LostGuest] = []
        self._rows: dict[str, int] = {}
        self._order: dict[str, tuple[int, int, int]] = {}
        self._cells: dict[str, list[Cell]] = {}
        self._seconds = 0.0
        self.answer: dict[str, Any] | None = None

    @property
    def complete(self) -> bool:
        """Whether the run came to its end, and its answer too when it has one."""
        ended = self._ended is not None and self._ended.complete
        return ended and (self.answer is None or bool(self.answer.get("complete")))

    def add(self, event: Event) -> None:
        """Take the next event."""
        self._seconds = max(self._seconds, event.at_s)
        match event:
            case MachineSeen(machine=machine):
                recorder = machine.record_qemu or machine.qemu
                self._machines[machine.machine, recorder.sha256, machine.qemu.sha256] = machine
            case StateSeen(devices=devices):
                self._coverage |= {device.row: device for device in devices}
            case GuestLost(guest=guest):
                self._lost += [] if guest in self._lost else [guest]
            case CellsPlanned():
                self._plan(event)
            case Judged(planned=planned, cell=cell):
                self._cells.setdefault(planned, []).append(cell)
            case RunEnded():
                self._ended = event
            case Answered(qualify=answer):
                self.answer = answer
            case Started() | GuestBooted() | CanarySeen() | Said():
                pass

    def document(self) -> MatrixDoc:
        """The matrix so far, cells in the order of the plan."""
        last = (len(self._rows), 0, 0)
        planned = sorted(self._cells, key=lambda name: self._order.get(name, last))
        weight = weight_on_hosts if self.started.hosts else weight_of
        cells = tuple(cell for name in planned for cell in _worst_of_each(self._cells[name], weight))
        return MatrixDoc(
            program=self.started.program,
            command=self.started.command,
            started=self.started.started,
            seconds=self._seconds,
            complete=self.complete,
            host=self.started.host,
            machines=tuple(
                machine_result(machine, cells, complete=self.complete) for machine in self._machines.values()
            ),
            cells=cells,
            coverage=covered(self._coverage.values(), cells),
            resets=reset_table(self._machines.values(), cells),
            lost=tuple(self._lost),
            each_host=cells_on_hosts(self.started.hosts, (self._cells[name] for name in planned)),
        )

    def _plan(self, event: CellsPlanned) -> None:
        row = self._rows.setdefault(event.row, len(self._rows))
        for name in event.cells:
            self._order.setdefault(name, (row, list(Place).index(event.place), len(self._order)))


def _worst_of_each(cells: Iterable[Cell], weight: Callable[[Cell], Weight]) -> list[Cell]:
    """One cell for each key."""
    found: dict[CellKey, Cell] = {}
    for cell in cells:
        known = found.get(cell.key)
        found[cell.key] = cell if known is None or weight(cell) < weight(known) else known
    return list(found.values())


class EventLog:
    """Writes the events of one run.

    The file is made with the first event: a run that does not begin leaves the events of the one before. It is this
    run's alone until it is closed, or its process has ended.

    :param folder: where reports go; made when it is not there
    :param goes_on: the events that are there stay; they are of the same run, which was cut off
    """

    def __init__(self, folder: Path, *, goes_on: bool = False) -> None:
        self.folder = folder
        self._goes_on = goes_on
        self.path = folder / EVENTS_NAME
        self.size_bytes = 0
        self._fd: int | None = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def write(self, event: Event) -> None:
        """Append one event; calls must not overlap.

        :raises HostError: it cannot be written, and the file is as it was before; or another run is writing there
        """
        line = encode(event)
        with self._told():
            if self._fd is None:
                self._fd = self._opened()
            try:
                written = os.write(self._fd, line)
                if written < len(line):
                    # a disk that is nearly full takes a part; the rest says why it cannot be taken
                    os.write(self._fd, line[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self.size_bytes)
                raise
        self.size_bytes += len(line)

    def _opened(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(fd, self.path)
            if self._goes_on:
                self.size_bytes = os.fstat(fd).st_size - cut_bytes(self.path)
            os.ftruncate(fd, self.size_bytes)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "no space left" if error.errno in _FULL else error.strerror or str(error)
            raise HostError(f"cannot write {self.path}: {why}; what is in it stays") from error


def write_events(events: Iterable[Event], folder: Path) -> Fold:
    """Write the events of a run that has ended; what they come to, as whoever reads the file will find it.

    :raises HostError: see :meth:`EventLog.write`
    """
    with EventLog(folder) as log:
        for event in events:
            log.write(event)
    return fold_file(log.path)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostError(f"{path}: another run is writing there; name another folder with --out") from error
    except OSError:
        pass  # a file system without locks


def encode(event: Event) -> bytes:
    """One line. Bytes of a log that were no UTF-8 become question marks."""
    text = json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False, default=str, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


@cache
def _reader() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_events(path: Path) -> Iterator[Event]:
    """The events of a file, one after the other. A last line without its end was being written, and is left out.

    :raises UsageError: it cannot be read, does not begin as a run does, or a line is damaged; names file and line
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _event(line, f"{path}:{number}", first=number == 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected the folder that a run wrote with --out") from error


def is_being_written(path: Path) -> bool:
    """Whether the run that writes a file still goes on, as far as its file system can tell."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def cut_bytes(path: Path) -> int:
    """How many bytes of a last line there are that was being written when the run was killed.

    :raises OSError: it cannot be read
    """
    with path.open("rb") as file:
        data = b""
        for line in file:
            data = line
    return 0 if data.endswith(b"\n") else len(data)


def event_of(line: bytes) -> Event:
    """One line of a run that goes on.

    :raises ValueError: it is no event
    """
    return _reader().validate_json(line, strict=True)


def _event(line: bytes, where: str, *, first: bool) -> Event:
    try:
        event = _reader().validate_json(line, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        part = ".".join(str(name) for name in problem["loc"])
        text = f"{part}: {problem['msg']}" if part else problem["msg"]
        wanted = f"; expected the first event of {SCHEMA}" if first else ""
        raise UsageError(f"{where}: damaged event: {text}{wanted}") from error
    if first is not isinstance(event, Started):
        raise UsageError(f'{where}: a run has one event "started", in its first line')
    return event


def fold_file(path: Path) -> Fold:
    """The run whose events a file holds, killed or not.

    :raises UsageError: as :func:`read_events`, and for a file without a whole line
    """
    events = read_events(path)
    started = next(events, None)
    if not isinstance(started, Started):
        raise UsageError(f"{path}: no run in it; expected events of {SCHEMA}")
    fold = Fold(started)
    for event in events:
        fold.add(event)
    return fold


def stamped(event: Event, at_s: float) -> Event:
    """The same event at a time."""
    return replace(event, at_s=round(at_s, 3))
