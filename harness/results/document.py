# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix document that all reports are made from; its JSON Schema is ``schema/matrix-1.schema.json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from harness import __version__
from harness.errors import UsageError
from harness.results.verdict import FailureClass, Verdict

SCHEMA = "postload.matrix/1"
PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound", "reconfigured", "io-error")
SCHEDULES = ("same", "alternate", "walk", "back-to-back")
#: Ordinary migration, before any checkpoint.
MIGRATIONS = ("plain", "postcopy")
ORACLES = ("drift", "leak", "guest", "io-error")
LANES = MIGRATIONS + SCHEDULES + ORACLES
REST_SUFFIX = "+rest"
#: In the details of an unsupported cell: why the QEMU that records has no such guest, whatever the other one has.
RECORDER_LACKS = "recorder_lacks"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.+_-]+")


def _finite(value: float) -> float:
    """JSON has no infinity: a rate over no time counts as 0."""
    return round(value, 6) if math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """One QEMU binary: ``version`` as it says itself, ``build`` the distribution's, ``sha256`` in hex."""

    version: str
    build: str
    path: str
    sha256: str

    @property
    def short(self) -> str:
        """Version and eight digits of the hash, as in cell ids."""
        return f"{self.version}-{self.sha256[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "build": self.build, "path": self.path, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What went wrong in a cell.

    ``section`` is the one to blame (``idstr``, with its bus path), ``load`` the 1-based load that did it,
    ``text`` one line, ``log`` an excerpt of QEMU's stderr, ``exit`` the signal's name or exit status,
    ``isolated`` one sentence on how the section was found.
    """

    text: str
    section: str | None = None
    phase: str | None = None
    load: int | None = None
    log: str = ""
    exit: str | None = None
    isolated: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "phase": self.phase,
            "load": self.load,
            "text": self.text,
            "log": self.log,
            "exit": self.exit,
            "isolated": self.isolated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of the matrix, judged. ``failure_class`` is ``class`` in JSON.

    ``oracle`` says what was looked at: ``load`` (the answers of the secondary), ``plain`` and ``postcopy`` (an
    ordinary migration into a new process), or ``drift``, ``leak``, ``guest``;
    ``details`` are that oracle's figures. ``controls`` says in one sentence which controls were run and what they gave.
    ``pack`` is the path of the state pack that was loaded, empty when unknown; ``signature`` names a finding across
    runs and versions; ``known`` says which known issue it is, empty when it is none.
    """

    id: str
    record_qemu: Qemu
    load_qemu: Qemu
    machine: str
    accel: str
    device: str
    phases: tuple[str, ...]
    schedule: str
    verdict: Verdict
    engine: str = "colo"
    guest_mode: str = "running"
    sections: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    loads_asked: int = 0
    loads_acked: int = 0
    checkpoints_acked: int = 0
    failure_class: Annotated[FailureClass | None, Field(alias="class")] = None
    finding: Finding | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    loads_per_second: float = 0.0
    oracle: str = "load"
    controls: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    pack: str = ""
    signature: str | None = None
    known: str = ""

    @property
    def lane(self) -> str:
        """Where it stands in a table: under its schedule, or under the oracle that looked at more than the load."""
        return self.schedule if self.oracle == "load" else self.oracle

    @property
    def is_rest(self) -> bool:
        """True for the second look at a row, without the section that was blamed in the first."""
        return REST_SUFFIX in self.id.rpartition("/")[2]

    @property
    def slug(self) -> str:
        """The id as the name of a file or folder."""
        return _NOT_IN_NAMES.sub("_", self.id.replace("/", "_")).strip("._") or "cell"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "record_qemu": self.record_qemu.to_json(),
            "load_qemu": self.load_qemu.to_json(),
            "machine": self.machine,
            "accel": self.accel,
            "device": self.device,
            "phases": list(self.phases),
            "schedule": self.schedule,
            "engine": self.engine,
            "guest_mode": self.guest_mode,
            "sections": list(self.sections),
            "excluded": list(self.excluded),
            "loads_asked": self.loads_asked,
            "loads_acked": self.loads_acked,
            "checkpoints_acked": self.checkpoints_acked,
            "verdict": self.verdict.value,
            "class": None if self.failure_class is None else self.failure_class.value,
            "finding": None if self.finding is None else self.finding.to_json(),
            "warnings": list(self.warnings),
            "seconds": _finite(self.seconds),
            "loads_per_second": _finite(self.loads_per_second),
            "oracle": self.oracle,
            "controls": self.controls,
            "details": self.details,
            "pack": self.pack,
            "signature": self.signature,
            "known": self.known,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineResult:
    """The answer for one machine type on one QEMU; ``colo_safe`` is None when it could not be decided.

    ``record_qemu`` is the QEMU that recorded, None when it is the one that loads.
    ``dialect`` and ``resets_before_load`` are what the probe learnt of the QEMU as a secondary; None where it was
    not probed. A build that resets the machine before each load hides what only a used device shows.
    """

    machine: str
    qemu: Qemu
    record_qemu: Qemu | None = None
    alias: str | None = None
    colo_safe: bool | None = None
    because: tuple[str, ...] = ()
    dialect: str | None = None
    resets_before_load: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "alias": self.alias,
            "qemu": self.qemu.to_json(),
            "record_qemu": None if self.record_qemu is None else self.record_qemu.to_json(),
            "colo_safe": self.colo_safe,
            "because": list(self.because),
            "dialect": self.dialect,
            "resets_before_load": self.resets_before_load,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program that wrote the document."""

    name: str = "postload"
    version: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDoc:
    """The whole document.

    ``started`` is ISO 8601 in UTC; ``complete`` is False during the run and after an early stop.
    """

    command: tuple[str, ...]
    started: str
    seconds: float
    complete: bool
    host: dict[str, Any]
    machines: tuple[MachineResult, ...]
    cells: tuple[Cell, ...]
    program: Program = field(default_factory=Program)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in the order in which they are documented."""
        return {
            "schema": SCHEMA,
            "program": {"name": self.program.name, "version": self.program.version},
            "command": list(self.command),
            "started": self.started,
            "seconds": _finite(self.seconds),
            "complete": self.complete,
            "host": self.host,
            "machines": [result.to_json() for result in self.machines],
            "cells": [cell.to_json() for cell in self.cells],
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
        return _validated(document)


def find_cell(doc: MatrixDoc, text: str) -> Cell:
    """The cell of this id, or the only one, else the only failing one, whose id holds the text.

    Whole parts of an id go first: ``bound/same`` is not meant to be ``unbound/same`` as well.

    :raises UsageError: there is none, or several; names some
    """
    wanted = f"/{text.strip('/')}/"
    whole = [cell for cell in doc.cells if wanted in f"/{cell.id}/"]
    parts = [cell for cell in doc.cells if text in cell.id]
    for found in (whole, _failing(whole), parts, _failing(parts)):
        if len(found) == 1:
            return found[0]
    if not parts:
        known = [cell.id for cell in _failing(doc.cells)] or [cell.id for cell in doc.cells]
        raise UsageError(f"no cell {text!r} in this run: {_some(known) or 'it has no cells'}")
    several = whole or parts
    ids = [cell.id for cell in _failing(several) or several]
    raise UsageError(f"{text!r} is part of {len(several)} cells: {_some(ids)}")


def _failing(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.verdict.is_finding]


def read_matrix(run: Path) -> MatrixDoc:
    """The document of a run: ``matrix.json`` in a folder, or that file itself.

    :raises UsageError: there is none, or it is not a matrix document
    """
    path = run / "matrix.json" if run.is_dir() else run
    try:
        return MatrixDoc.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected the folder that a run wrote with --out") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error


def _some(ids: list[str], limit: int = 6) -> str:
    return ", ".join(ids[:limit]) + (f" and {len(ids) - limit} more" if len(ids) > limit else "")


def _validated(document: dict[str, Any]) -> MatrixDoc:
    try:
        return TypeAdapter(MatrixDoc).validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        more = error.error_count() - 1
        rest = f" (and {more} more)" if more else ""
        raise UsageError(f"not a {SCHEMA} document: {where}: {first['msg']}{rest}") from error
