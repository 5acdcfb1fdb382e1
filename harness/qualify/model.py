# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of ``postload qualify``: go, no-go or unknown, for each device and for the host, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from harness import __version__
from harness.results.document import Qemu

SCHEMA = "postload.qualify/1"
#: What a guest is asked to survive; the columns of the table.
USES = ("migration", "postcopy", "colo")
#: Which of them decide, when nothing else is asked for. Postcopy is told apart and decides only when asked.
DECIDING = ("migration", "colo")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something is not a go.

    :param use: one of :data:`USES`
    :param section: the section to blame, when there is one
    :param field: field of it, where the evidence goes that deep
    :param text: what happened, in one line
    :param cause: in the words of the cause: which feature bit, which property, which values on both sides
    :param remedy: what to set or to do, empty when nothing is known
    :param log: QEMU's own words
    :param at_home: whether the QEMU that recorded breaks by its own state in the same way; None when it was not tried
    :param changes: which of the pair's changes explain it, by their ``what``
    :param confirmed: what a migration between two real QEMUs gave, empty when it was not made
    :param known: link of the known issue that it is, empty when it is none
    """

    use: str
    verdict: str
    text: str
    section: str | None = None
    field: str | None = None
    phase: str | None = None
    cause: str = ""
    remedy: str = ""
    log: str = ""
    at_home: bool | None = None
    changes: tuple[str, ...] = ()
    confirmed: str = ""
    known: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """One device of one pair.

    :param uses: an answer for each of :data:`USES`
    :param loads: acknowledged, of both kinds
    :param static: what the static comparison of the device's sections says next to the loads, a sentence each
    """

    device: str
    answer: Answer
    uses: dict[str, Answer]
    loads: int
    because: tuple[Reason, ...] = ()
    static: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAnswer:
    """One machine type from one QEMU to another.

    :param home: the recorder's own loads of its state, there for comparison only
    :param endings: where the machine type is deprecated or removed, a sentence each
    :param changes: what differs between the two sides, as :class:`harness.facts.Change` tells it
    :param loads: acknowledged, each once; a migration counts for every device in their own ``loads``
    :param notes: further sentences: what could not be tried, what was left out
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
    endings: tuple[str, ...] = ()
    changes: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QualifyDoc:
    """The whole answer.

    :param deciding: the uses that count for ``answer``
    :param notes: what could not be tried on this host
    """

    command: tuple[str, ...]
    started: str
    seconds: float
    complete: bool
    answer: Answer
    deciding: tuple[str, ...]
    loads: int
    pairs: tuple[PairAnswer, ...]
    notes: tuple[str, ...] = ()
    program: dict[str, str] = field(default_factory=lambda: {"name": "postload", "version": __version__})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": SCHEMA, **asdict(self)}
