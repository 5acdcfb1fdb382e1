# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix document that all reports are made from; its JSON Schema is generated from these models."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from harness import __version__
from harness.errors import UsageError
from harness.names import SCHEDULES
from harness.results.cause import Cause
from harness.results.key import PARKED, CellKey, find_by_key
from harness.results.outcome import IsolationWay, Outcome
from harness.results.verdict import FailureClass, Verdict, rank

SCHEMA = "postload.matrix/2"
#: What an oracle loads by; the others load the same bytes one at a time.
_PARKED_LANES = ("drift", "leak")
_SCHEDULES_OF = {"leak": "back-to-back"}

M = TypeVar("M")


def _finite(value: float) -> float:
    """JSON has no infinity: a rate over no time counts as 0."""
    return round(value, 6) if math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """One QEMU binary: ``version`` as it says itself, ``build`` the distribution's, ``sha256`` in hex.

    ``label`` is how cells name it.
    """

    version: str
    build: str
    path: str
    sha256: str
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "build": self.build, "path": self.path, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of the matrix, judged.

    :param engine: what brought the state in: ``colo``, ``fresh`` or ``postcopy``
    :param sections: the device's own that were loaded
    :param excluded: sections that were not sent, of this device or another, since they break or are refused
    :param beside: sections that were not sent either, since they are of the same devices as those
    :param warnings: what QEMU printed while it loaded, with the load at which it came first and how often it came
    :param shared_with: another cell that tells of the same session, which carried this device too; else empty.
        The loads count for each of these cells, and once in a total
    :param details: figures of the lane's oracle
    :param pack: path of the state pack that was loaded, empty when unknown
    :param signature: names a finding across runs and versions
    :param known: link of the known issue that it is, empty when it is none
    :param host: name of the host that judged it, empty for the run's own
    """

    key: CellKey
    record_qemu: Qemu
    load_qemu: Qemu
    outcome: Outcome
    engine: str = "colo"
    sections: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    warnings: tuple[Warned, ...] = ()
    seconds: float = 0.0
    loads_per_second: float = 0.0
    shared_with: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    pack: str = ""
    signature: str | None = None
    known: str = ""
    host: str = ""

    @property
    def id(self) -> str:
        """The key as text."""
        return str(self.key)

    @property
    def machine(self) -> str:
        return self.key.machine

    @property
    def device(self) -> str:
        return self.key.device

    @property
    def phases(self) -> tuple[str, ...]:
        return self.key.phases

    @property
    def lane(self) -> str:
        """Where it stands in a table: under its schedule, its migration, or the oracle that looked at more."""
        return self.key.lane

    @property
    def guest_mode(self) -> str:
        """What the guest does between the loads; some oracles want it parked."""
        return PARKED if self.lane in _PARKED_LANES else self.key.guest_mode

    @property
    def accel(self) -> str:
        return self.key.accel

    @property
    def slug(self) -> str:
        """The key as the name of a file or folder."""
        return self.key.slug

    @property
    def is_rest(self) -> bool:
        """A further look at a device, without the section that was blamed in the first."""
        return self.key.rest > 0

    @property
    def by_load(self) -> bool:
        """The answers of the secondary alone were looked at."""
        return self.lane in SCHEDULES

    @property
    def schedule(self) -> str:
        """How the loads followed each other."""
        return self.lane if self.by_load else _SCHEDULES_OF.get(self.lane, "same")

    @property
    def verdict(self) -> Verdict:
        return self.outcome.verdict

    @property
    def failure_class(self) -> FailureClass | None:
        return self.outcome.failure_class

    @property
    def loads_asked(self) -> int:
        return self.outcome.loads_asked

    @property
    def loads_acked(self) -> int:
        return self.outcome.loads_acked

    @property
    def own_loads(self) -> int:
        """Acknowledged loads that no other cell stands for: what a total counts."""
        return 0 if self.shared_with else self.outcome.loads_acked

    @property
    def checkpoints_acked(self) -> int:
        return self.outcome.checkpoints_acked

    @property
    def blamed(self) -> tuple[str, ...]:
        """Sections that are to blame."""
        return self.outcome.sections

    @property
    def left_out(self) -> tuple[str, ...]:
        """All sections that were not sent."""
        return (*self.excluded, *self.beside)

    @property
    def is_isolated(self) -> bool:
        """Whether the sections that are to blame break a parked guest with nothing else loaded."""
        isolation = self.outcome.isolation
        return bool(self.blamed) and isolation is not None and isolation.way is not IsolationWay.WITHOUT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``id`` is the key as text."""
        rates = {"seconds": _finite(self.seconds), "loads_per_second": _finite(self.loads_per_second)}
        return {"id": self.id, **plain_json(self), **rates}

    @classmethod
    def from_json(cls, document: object) -> Cell:
        """What :meth:`to_json` gave.

        :raises UsageError: a key missing or of the wrong type; names the key
        """
        return read_model(Cell, document, "a cell")


#: See :func:`weight_of`.
Weight: TypeAlias = tuple[int, bool, str, str]


def weight_of(cell: Cell) -> Weight:
    """Which of several outcomes of one cell stands for it, the lowest: the platform is in all guests of a machine, and
    each of them tells of it.

    The worst verdict, then one that has a class. What is left is parted by name, not by who came first: threads and
    hosts come in any order, and a document, a history and what is merged of shards are to say the same.
    """
    known = cell.failure_class
    return rank(cell.verdict), known is None, cell.signature or "", known or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A line that QEMU printed while it loaded.

    :param load: at which it came first; 0 is before the first load
    :param times: how often it came
    """

    text: str
    load: int
    times: int = 1


class Colo(StrEnum):
    """Can a machine type live under COLO? Worst first."""

    UNSAFE = "unsafe"
    REFUSED = "refused"
    UNDECIDED = "undecided"
    REMARKS = "remarks"
    SAFE = "safe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColoReason:
    """Why the answer is no plain ``safe``.

    :param device: empty where it speaks of the whole machine
    :param verdict: of the cell that says so; None where no cell does
    :param hidden: it is seen only because the loads stand in one buffer: the build resets the machine before each
    """

    device: str = ""
    sections: tuple[str, ...] = ()
    verdict: Verdict | None = None
    causes: tuple[Cause, ...] = ()
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ColoAnswer:
    """The answer for one device of a machine: may a COLO guest have it?

    :param verdict: the worst of its cells
    """

    device: str
    colo: Colo
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineResult:
    """The answer for one machine type on one QEMU.

    ``record_qemu`` is the QEMU that recorded, None when it is the one that loads.
    ``dialect`` and ``resets_before_load`` are what the probe learnt of the QEMU as a secondary; None where it was
    not probed. A build that resets the machine before each load hides what only a used device shows.
    """

    machine: str
    qemu: Qemu
    record_qemu: Qemu | None = None
    alias: str | None = None
    colo: Colo = Colo.UNDECIDED
    because: tuple[ColoReason, ...] = ()
    devices: tuple[ColoAnswer, ...] = ()
    dialect: str | None = None
    resets_before_load: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return plain_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedState:
    """A description of state, as ``-dump-vmstate`` has it, or a subsection of one.

    :param name: of its vmsd
    :param part_of: the description that it is a subsection of, at whatever depth; empty for a description
    :param type: QEMU's device type; empty where its code writes the state by hand, or no type has it
    :param sections: the sections that were saved with it
    :param saved: phases whose recording has it
    :param loaded: those of them in which one of these sections was loaded
    """

    name: str
    part_of: str = ""
    type: str = ""
    sections: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCoverage:
    """The state that a device can have on a machine, and how much of it was loaded.

    :param row: what the cells of the device have in common
    """

    row: str
    machine: str
    device: str
    states: tuple[DescribedState, ...]

    @property
    def missing(self) -> tuple[DescribedState, ...]:
        """What was never loaded."""
        return tuple(state for state in self.states if not state.loaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """A median with its 99 % interval."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReset:
    """What a reset costs the guest that a device is in, in processor time of QEMU.

    :param phase: that was loaded
    :param samples: of each figure
    :param reset: of the loaded machine
    :param load: a checkpoint that comes without a reset
    :param added: what a reset makes a checkpoint longer by: itself, and what the load behind it takes longer
    """

    phase: str
    samples: int
    reset: Milliseconds
    load: Milliseconds
    added: Milliseconds


class ResetNeed(StrEnum):
    """Does a device need a reset before each load? The value is what is stored."""

    YES = "yes"  # it breaks or drifts without one, and behind one it does not
    NO_HELP = "no-help"  # it does so behind one too
    UNKNOWN = "unknown"  # one of the two was not judged
    NO = "no"  # it does neither without one


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReset:
    """A device on one machine: loads into what was used, and loads behind a reset.

    :param row: what the cells of the device have in common
    :param resets: the QEMU resets the machine before each COLO load by itself; None where that is not known
    :param without: the worst verdict of its loads without a reset; None where there were none
    :param failure_class: of that verdict
    :param sections: that broke or drifted without a reset
    :param leaks: it leaks when it is loaded without a reset, whatever else it does
    :param behind: the worst verdict of its loads behind a reset; None where there were none
    :param part: what its use makes a reset longer by; None where that was not measured
    :param guest: the reset of the guest that it is in; None where that was not measured
    """

    row: str
    machine: str
    device: str
    resets: bool | None
    need: ResetNeed
    without: Verdict | None
    behind: Verdict | None
    failure_class: FailureClass | None = None
    sections: tuple[str, ...] = ()
    leaks: bool = False
    part: Milliseconds | None = None
    guest: GuestReset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGuest:
    """A guest of several devices that was lost while it was recorded: who did it, and what became of the others.

    :param recorder: how cells name the QEMU that recorded it
    :param devices: those that it was recorded with
    :param phase: that it was on its way to; empty where that is not known
    :param by: the device that it was lost by; empty where the machine is lost without any, or the host did it
    :param alone: it is lost with that device alone too; else the others are recorded apart from it
    :param said: what was seen
    """

    machine: str
    recorder: str
    devices: tuple[str, ...]
    phase: str = ""
    by: str = ""
    alone: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program that wrote the document."""

    name: str = "postload"
    version: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOutcome:
    """What a cell came to on one host.

    :param verdict: the worst there; None where it was not judged
    """

    host: str
    verdict: Verdict | None
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOnHosts:
    """A cell of a run that had each one judged on each host."""

    cell: str
    outcomes: tuple[HostOutcome, ...]

    @property
    def differs(self) -> bool:
        """Whether the hosts do not agree."""
        return len({(each.verdict, each.signature) for each in self.outcomes}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDoc:
    """The whole document.

    ``started`` is ISO 8601 in UTC; ``complete`` is False during the run and after an early stop. ``resets`` is empty
    unless the run was asked for the lane ``reset``, ``each_host`` unless for each cell on each host.
    """

    schema: Literal["postload.matrix/2"] = "postload.matrix/2"
    program: Program = field(default_factory=Program)
    command: tuple[str, ...]
    started: str
    seconds: float
    complete: bool
    host: dict[str, Any]
    machines: tuple[MachineResult, ...]
    cells: tuple[Cell, ...]
    coverage: tuple[DeviceCoverage, ...] = ()
    resets: tuple[DeviceReset, ...] = ()
    lost: tuple[LostGuest, ...] = ()
    each_host: tuple[CellOnHosts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in the order in which they are documented."""
        return {
            "schema": self.schema,
            "program": {"name": self.program.name, "version": self.program.version},
            "command": list(self.command),
            "started": self.started,
            "seconds": _finite(self.seconds),
            "complete": self.complete,
            "host": self.host,
            "machines": [result.to_json() for result in self.machines],
            "cells": [cell.to_json() for cell in self.cells],
            "coverage": list(map(plain_json, self.coverage)),
            "resets": list(map(plain_json, self.resets)),
            "lost": list(map(plain_json, self.lost)),
            "each_host": list(map(plain_json, self.each_host)),
        }

    @classmethod
    def from_json(cls, document: object) -> MatrixDoc:
        """Read what :meth:`to_json` gave, after ``json.load``. Keys that are not known are passed over.

        :raises UsageError: another schema, a key missing or of the wrong type; names the key
        """
        if not isinstance(document, dict) or "schema" not in document:
            raise UsageError(f'not a matrix document: expected an object with "schema": "{SCHEMA}"')
        if document["schema"] != SCHEMA:
            raise UsageError(f'not a matrix document: schema is {document["schema"]!r}, expected "{SCHEMA}"')
        return read_model(MatrixDoc, document, f"a {SCHEMA} document")


def find_cell(doc: MatrixDoc, text: str) -> Cell:
    """The cell of this key, or the only one, else the only failing one, whose key holds the text.

    :raises UsageError: there is none, or several; names some
    """
    return find_by_key(doc.cells, lambda cell: cell.key, text, lambda cell: cell.verdict.is_finding)


def matrix_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``matrix.json``, made from the models."""
    schema = schema_of(MatrixDoc)
    cell = schema["$defs"]["Cell"]
    cell["properties"] = {"id": {"type": "string", "title": "Id"}, **cell["properties"]}
    cell["required"] = ["id", *cell["required"]]
    return schema


def plain_json(document: Any) -> dict[str, Any]:
    """A document as plain JSON types."""
    found: dict[str, Any] = _adapter(cast(Any, type(document))).dump_python(document, mode="json", by_alias=True)
    return found


def json_text(document: dict[str, Any]) -> str:
    """A document as a file has it; bytes that were no UTF-8 become question marks."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def schema_of(model: Any) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document, made from its model."""
    schema = _adapter(model).json_schema(mode="serialization", by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def read_model(model: type[M], document: object, what: str) -> M:
    """A document as the model that wrote it.

    :param what: what it should be, for the message
    :raises UsageError: it is none
    """
    try:
        found: M = _adapter(cast(Any, model)).validate_json(json.dumps(document), strict=True)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        more = error.error_count() - 1
        rest = f" (and {more} more)" if more else ""
        raise UsageError(f"not {what}: {where}: {first['msg']}{rest}") from error
