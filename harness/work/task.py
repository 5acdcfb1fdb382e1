# SPDX-License-Identifier: GPL-2.0-or-later
"""A task: what a worker is asked for, as pure data that goes to JSON and back.

A task names everything by what it is, so that any worker on any host can do it: the recording by the hash of its
content, the QEMU that loads by its own hash, the cells that it answers by their keys, and what is left out with the
reason. Paths say only where these were found on the host that made the task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache

from pydantic import TypeAdapter, ValidationError

from harness.devices.device import Device
from harness.errors import UsageError
from harness.lanes.judge import Exclusion
from harness.lanes.lane import Request
from harness.qemu.cmdline import Option
from harness.results.key import CellKey


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuFile:
    """The QEMU that loads.

    :param sha256: of the program, in hex
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFile:
    """The recording that is loaded.

    :param content: its hash; see :attr:`harness.packs.pack.StatePack.content`
    """

    path: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request to a lane, with all that it takes to carry it out.

    :param answers: the cells that it judges, one for each device of the request
    :param excluded: what is known to break or to be refused, from the waves before
    :param guest: the devices that it has, as their recipes tell
    :param came: the guest came from elsewhere: another QEMU, or another host
    :param run_s: how long the guest runs after each load
    :param controls: findings get a class
    :param pair: and are tried with a real primary
    :param overrides: further options of the QEMU that loads
    :param canary: a fault is planted into what is loaded; see :mod:`harness.lanes.canary`
    :param budget_s: what is not judged after so many seconds of work is given up; None: however long it takes
    """

    recording: RecordingFile
    loader: QemuFile
    request: Request
    answers: tuple[CellKey, ...]
    excluded: tuple[Exclusion, ...] = ()
    guest: tuple[Device, ...] = ()
    came: bool = False
    run_s: float = 0.0
    controls: bool = True
    pair: bool = False
    overrides: tuple[Option, ...] = ()
    canary: bool = False
    budget_s: float | None = None

    def to_json(self) -> str:
        """One line."""
        return _tasks().dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Task:
        """What :meth:`to_json` gave.

        :raises UsageError: not a task; names the first part that is wrong
        """
        try:
            return _tasks().validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            part = ".".join(map(str, problem["loc"]))
            raise UsageError(f"not a task: {part}: {problem['msg']}") from error

    @property
    def place(self) -> tuple[str, str, tuple[str, ...], bool, bool]:
        """What tasks have in common that are carried out with the same things open."""
        overrides = tuple(word for option in self.overrides for word in option.argv())
        return (self.recording.content, self.loader.sha256, overrides, self.pair, self.canary)

    def only(self, keys: Collection[CellKey]) -> Task:
        """The part of it that answers these cells; one without an answer where there is none."""
        answers = tuple(key for key in self.answers if key in keys)
        devices = tuple(key.device for key in answers)
        return replace(self, answers=answers, request=replace(self.request, devices=devices))

    def cell_of(self, device: str) -> CellKey:
        """The cell of one device; of the platform too, which is judged in another guest of the machine."""
        return next((key for key in self.answers if key.device == device), replace(self.answers[0], device=device))


@cache
def _tasks() -> TypeAdapter[Task]:
    return TypeAdapter(Task)


def in_order(exclusions: Iterable[Exclusion]) -> tuple[Exclusion, ...]:
    """The same task is the same text, whoever found out first."""
    return tuple(sorted(exclusions, key=lambda e: (e.section, e.phase, e.twice, e.reason)))
