# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``postload claims`` answers: the document, and the bench that every question works on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import Any, Literal, TypeVar

from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.errors import PostloadError, Stopped
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbed, Hindrances, only_slow, undisturbed
from harness.qemu.scope import ProcessScope
from harness.results.document import Qemu, plain_json, read_model, schema_of
from harness.studies.findings import StudyFinding

SCHEMA = "postload.claims/1"

T = TypeVar("T")
R = TypeVar("R")


def spoilt(_: object, hindered: Hindrances) -> bool:
    """What was seen of a QEMU that was stopped or ended is no answer. One that merely got little CPU was waited for."""
    return not only_slow(hindered)


def whole(work: Callable[[], R], void: Callable[[R, Hindrances], bool] = spoilt) -> R:
    """What comes of some work when the host leaves it alone.

    :param void: whether a result says nothing after what the host did
    :raises Disturbed: the host disturbed each try
    """
    return undisturbed(work, void)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done for a question; the defaults give the whole answer, tests ask for less.

    :param loads: for each phase, of question 1
    :param boundaries: every n-th boundary between sections is cut at
    :param inside: cuts inside of sections
    :param sections: sections framed in question 3, None for all
    :param intervals_ms: guest time between checkpoints, of question 4
    :param watch_s: how long each interval is watched
    :param pairs: run the cases with a real primary
    """

    loads: int = 100
    boundaries: int = 1
    inside: int = 8
    sections: int | None = None
    intervals_ms: tuple[float, ...] = (1.0, 5.0, 20.0, 100.0)
    watch_s: float = 4.0
    pairs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One machine of one QEMU, ready for experiments.

    :param excluded: labels of sections left out of every buffer, because they break a healthy secondary
    :param before: phase of the last whole checkpoint, N
    :param after: phase of the checkpoint that goes wrong, N+1
    :param scope: of the run: owns its processes, and is told when it shall end
    :param stage: told what is going on
    """

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    excluded: frozenset[str] = frozenset()
    before: str = "bound"
    after: str = "busy"
    workers: int = 2
    effort: Effort = Effort()
    scope: ProcessScope = field(default_factory=ProcessScope)
    stage: Callable[[str], None] = lambda _: None

    @property
    def family(self) -> str:
        """``pc`` or ``q35``."""
        return self.buffers.pack.manifest.family

    @property
    def resets(self) -> bool:
        """The machine is reset before each load."""
        return bool(self.ability.resets_before_load)

    def each(
        self, work: Callable[[T], R], items: Iterable[T], void: Callable[[R, Hindrances], bool] = spoilt
    ) -> list[R]:
        """``work`` of every item, some at a time; results in the order of the items.

        :param void: see :func:`whole`
        :raises Stopped: the run was told to stop
        :raises Disturbed: the host disturbed each try of an item
        """

        failed = Event()

        def one(item: T) -> R:
            if self.scope.stopped or failed.is_set():
                raise Stopped("stopped")
            return whole(partial(work, item), void)

        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="claim") as pool:
            try:
                return list(pool.map(one, items))
            except BaseException as error:
                # the others in the queue end at once; what is at work ends by itself, or with its QEMU
                failed.set()
                if not isinstance(error, PostloadError):
                    self.scope.close()
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFinding:
    """What a question came to on one machine, which is named by its family."""

    machine: str
    found: StudyFinding


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFailure:
    """A machine that could not say, and why; the name is empty where there was none to ask.

    :param hindered: what the host did, where it disturbed each try
    """

    machine: str
    said: str
    hindered: Hindrances = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAnswer:
    """One question, answered.

    :param failed: the machines that could not say; the others count all the same
    """

    number: int
    machines: tuple[MachineFinding, ...] = ()
    failed: tuple[MachineFailure, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsDoc:
    """``claims.json``.

    :param created: ISO 8601 in UTC
    :param complete: every question was answered
    """

    schema: Literal["postload.claims/1"] = "postload.claims/1"
    qemu: Qemu
    created: str
    command: tuple[str, ...]
    seconds: float
    complete: bool
    questions: tuple[StudyAnswer, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ClaimsDoc:
        """Read a document back.

        :raises UsageError: it is none, or of another version
        """
        return read_model(cls, document, "a document of postload claims")


def claims_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``claims.json``, made from the models."""
    return schema_of(ClaimsDoc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question and how to answer it on one machine; its text is :data:`harness.report.claims.QUESTIONS`.

    :param ask: raises :class:`PostloadError` when it cannot be answered
    """

    number: int
    ask: Callable[[Lab], StudyFinding]

    def answer(self, labs: Sequence[Lab]) -> StudyAnswer:
        """Ask every machine; what one cannot say is kept in ``failed``, and the others still count."""
        started = time.monotonic()
        machines, failed = [], []
        for lab in labs:
            try:
                machines.append(MachineFinding(machine=lab.family, found=self.ask(lab)))
            except Stopped:
                raise
            except PostloadError as error:
                hindered = error.hindered if isinstance(error, Disturbed) else ()
                failed.append(MachineFailure(machine=lab.family, said=str(error), hindered=hindered))
        return StudyAnswer(
            number=self.number,
            machines=tuple(machines),
            failed=tuple(failed) if labs else (MachineFailure(machine="", said=""),),
            seconds=round(time.monotonic() - started, 1),
        )


def document(binary: QemuBinary, answers: Sequence[StudyAnswer], command: Sequence[str], seconds: float) -> ClaimsDoc:
    """``claims.json``."""
    return ClaimsDoc(
        qemu=Qemu(**binary.identity()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command),
        seconds=round(seconds, 1),
        complete=all(not answer.failed for answer in answers),
        questions=tuple(answers),
    )
