# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night came to: ``night.json`` in its folder, and what ``postload nightly --json`` prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from harness.errors import UsageError
from harness.results.document import Qemu, plain_json, read_model, schema_of
from harness.results.verdict import Verdict
from harness.store.document import ChangedCell, CompareDoc
from harness.store.states import Reproduced


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A planted fault on a machine.

    :param red: it was told as one
    """

    machine: str
    qemu: str
    verdict: Verdict
    section: str
    red: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Excused:
    """A finding in a cell that counts for nothing until a day."""

    change: ChangedCell
    link: str
    until: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """An entry whose last day is past, and that has findings.

    :param what: pattern of the quarantined cells, or the signature of the known issue
    :param cells: that have its findings
    """

    what: str
    link: str
    until: date
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentQemu:
    """A QEMU of the night that could not be had, and why."""

    name: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproducerAnswer:
    """What a reproducer said.

    :param qemu: that was asked, by the label that cells have for it
    :param at: when, ISO 8601 in UTC
    :param script: folder of its bundle
    """

    signature: str
    qemu: Qemu
    answer: Reproduced
    at: str
    script: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NightDoc:
    """A night.

    :param compared: with the night before. What is excused, or was not seen again, stands below and not there
    :param first: there was no night before: all that fails is new
    :param once: findings of kinds that can come by chance, which did not come again when they were tried again
    :param overdue: what is excused no longer, and has to be looked at
    :param planned: cells that were to be judged, of which ``missing`` were not
    :param absent: QEMUs that were not there
    :param reproduced: what reproducers said of builds that they were not asked of before
    :param made: reproducers that were made tonight, with what each said of the build that its finding was seen on
    :param budget_s: how long the night might take; None for as long as it takes
    :param budget_over: it was, before all was judged
    :param resumed: it was cut off, and went on
    """

    schema: Literal["postload.night/1"] = "postload.night/1"
    compared: CompareDoc
    first: bool
    folder: str
    once: tuple[ChangedCell, ...] = ()
    excused: tuple[Excused, ...] = ()
    overdue: tuple[Overdue, ...] = ()
    canaries: tuple[Canary, ...] = ()
    planned: int = 0
    missing: tuple[str, ...] = ()
    absent: tuple[AbsentQemu, ...] = ()
    reproduced: tuple[ReproducerAnswer, ...] = ()
    made: tuple[ReproducerAnswer, ...] = ()
    budget_s: float | None = None
    budget_over: bool = False
    resumed: bool = False

    @property
    def is_empty(self) -> bool:
        """Nothing was judged: no cell, or none that could be."""
        counts = self.compared.after.counts
        return not any(count for verdict, count in counts.items() if verdict is Verdict.OK or verdict.is_finding)

    @property
    def counts(self) -> bool:
        """Something was judged, and each machine told of the fault that was planted there."""
        return not self.is_empty and bool(self.canaries) and all(canary.red for canary in self.canaries)

    @property
    def whole(self) -> bool:
        """Every planned cell came to something, on every QEMU."""
        return not (self.missing or self.absent or self.budget_over or self.compared.missing)

    @property
    def exit_code(self) -> int:
        """1 when something is new or back, or excused no longer; else 3 when the night does not count or is not whole;
        else 0."""
        if self.compared.new or self.compared.back or self.overdue:
            return 1
        return 0 if self.counts and self.whole else 3

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with what is derived."""
        return plain_json(self) | {"counts": self.counts, "whole": self.whole, "exit_code": self.exit_code}


def read_night(text: bytes) -> NightDoc:
    """A night by its ``night.json``.

    :raises UsageError: it is none
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from error
    return read_model(NightDoc, document, "a postload.night/1 document")


def night_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``night.json``."""
    return schema_of(NightDoc)


def as_text(doc: NightDoc) -> bytes:
    """The bytes of ``night.json``."""
    return json.dumps(doc.to_json(), indent=1).encode() + b"\n"
