# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of ``postload qualify``: go, no-go or unknown, for each device and for the host, with the reasons."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from harness import __version__
from harness.facts.compare import FactChange
from harness.facts.kvm import KvmTried
from harness.guests.lack import Lacks
from harness.qualify.explained import Explained
from harness.qualify.pairs import EndingState
from harness.qualify.static import StaticNote
from harness.results.cause import Cause, Unsupported
from harness.results.document import Qemu, plain_json, read_model, schema_of
from harness.results.outcome import Outcome, Repeats

SCHEMA = "postload.qualify/1"


class Answer(StrEnum):
    """Members stand worst first; ``-`` is what was not asked."""

    NO_GO = "no-go"
    UNKNOWN = "unknown"
    GO = "go"
    NONE = "-"


_ORDER = list(Answer)
_EXIT = {Answer.NO_GO: 1, Answer.UNKNOWN: 3, Answer.GO: 0, Answer.NONE: 3}


def worst(answers: Iterable[Answer]) -> Answer:
    """The worst; ``-`` when there is none."""
    return min(answers, key=_ORDER.index, default=Answer.NONE)


def exit_code(answer: Answer) -> int:
    """0 go, 1 no-go, 3 unknown."""
    return _EXIT[answer]


class Confirms(StrEnum):
    """What a migration between two real QEMUs shows of a reason."""

    SAME = "same"
    #: The whole guest is migrated, and ends with the first section that breaks: what stands behind that was not tried.
    OTHER = "other-failure"
    PASSED = "passed"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The same guest in a migration between two real QEMUs, without this program between them.

    :param outcome: what it came to; None where it was not made, because the recorder is not here
    :param shows: of the reason that has it
    """

    recorder: str
    loader: str
    phase: str
    outcome: Outcome | None = None
    shows: Confirms = Confirms.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something is not a go.

    :param use: one of :data:`USES`
    :param section: the section to blame, when there is one
    :param field: field of it, where the evidence goes that deep
    :param causes: what happened
    :param repeats: how often it came back, where it was tried again
    :param explained: why: which feature bit, which property, which values on both sides; empty where nobody knows
    :param log: QEMU's own words
    :param at_home: whether the QEMU that recorded breaks by its own state in the same way; None when it was not tried
    :param changes: which of the pair's changes explain it
    :param confirmed: a migration between two real QEMUs, None where none makes sense
    :param known: link of the known issue that it is, empty when it is none
    """

    use: str
    verdict: str
    causes: tuple[Cause, ...] = ()
    repeats: Repeats | None = None
    section: str | None = None
    field: str | None = None
    phase: str | None = None
    explained: tuple[Explained, ...] = ()
    log: str = ""
    at_home: bool | None = None
    changes: tuple[FactChange, ...] = ()
    confirmed: Confirmation | None = None
    known: str = ""
    cells: tuple[str, ...] = ()

    @property
    def lacking(self) -> list[tuple[str, ...]]:
        """Of each cause that is such a lack, the device types or properties that the QEMU that loads has not."""
        lacks = [cause.lack for cause in self.causes if isinstance(cause, Unsupported)]
        return [lack.names for lack in lacks if lack.what is Lacks.RECORDED_TYPES]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """One device of one pair.

    :param uses: an answer for each of :data:`USES`
    :param loads: acknowledged, of both kinds
    :param static: where the static comparison of the device's sections and the loads disagree
    """

    device: str
    answer: Answer
    uses: dict[str, Answer]
    loads: int
    because: tuple[Reason, ...] = ()
    static: tuple[StaticNote, ...] = ()

    def against(self, deciding: Collection[str]) -> list[Reason]:
        """What makes it a no-go, where these uses decide."""
        return [r for r in self.because if r.use in deciding and self.uses.get(r.use) is Answer.NO_GO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A machine type that a QEMU has not for long, no more, or not yet."""

    state: EndingState
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A section that breaks, was left out of the loads, and belongs to no device that is judged.

    :param uses: what it breaks in, of :data:`USES`
    """

    section: str
    uses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAnswer:
    """One machine type from one QEMU to another.

    :param home: the recorder's own loads of its state, there for comparison only
    :param endings: where the machine type is deprecated or removed
    :param changes: what differs between the two sides
    :param loads: acknowledged, each once; a migration counts for every device in their own ``loads``
    :param deciding: the uses that count for ``answer``
    :param strays: sections that were left out because they break, and that no device which is judged owns
    :param kvm_refused: what this host's KVM refused, to the number of cells
    :param no_static: why the static comparison could not be made, "" where it was
    """

    machine: str
    family: str
    recorder: Qemu
    loader: Qemu
    answer: Answer
    uses: dict[str, Answer]
    devices: tuple[DeviceAnswer, ...]
    loads: int = 0
    home: bool = False
    endings: tuple[Ending, ...] = ()
    changes: tuple[FactChange, ...] = ()
    deciding: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()
    kvm_refused: dict[str, int] = field(default_factory=dict)
    no_static: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualifyDoc:
    """The whole answer.

    :param deciding: the uses that count for ``answer`` in one pair or another
    :param kvm: whether state that KVM refuses could be seen on this host; None when nobody looked
    """

    schema: Literal["postload.qualify/1"] = "postload.qualify/1"
    command: tuple[str, ...]
    started: str
    seconds: float
    complete: bool
    answer: Answer
    deciding: tuple[str, ...]
    loads: int
    pairs: tuple[PairAnswer, ...]
    kvm: KvmTried | None = None
    program: dict[str, str] = field(default_factory=lambda: {"name": "postload", "version": __version__})

    @property
    def abroad(self) -> list[PairAnswer]:
        """The pairs that count."""
        return [pair for pair in self.pairs if not pair.home]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> QualifyDoc:
        """Read a document back.

        :raises UsageError: it is none, or of another version
        """
        return read_model(cls, document, "an answer of postload qualify")


def qualify_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``qualify.json``, made from the models."""
    return schema_of(QualifyDoc)
