# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells made by hand, by the names of what they hold: key, outcome and the rest in one call."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from harness.colo.messages import Step
from harness.colo.symptom import Sign, Symptom
from harness.report import sentences
from harness.results.cause import Cause, Ended, Refused
from harness.results.document import Cell, Qemu
from harness.results.key import CellKey, Route
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

QEMU = Qemu(version="7.2.22", build="", path="/q", sha256="12" * 32, label="7.2.22")
_KEY = {field.name for field in fields(CellKey)}
_OUTCOME = {field.name for field in fields(Outcome)} - {"sections"}


def changed(cell: Cell, **changes: Any) -> Cell:
    """The cell with fields of its key, its outcome (``blamed`` for its sections) or itself changed."""
    of_key = {name: value for name, value in changes.items() if name in _KEY}
    of_outcome = {name: value for name, value in changes.items() if name in _OUTCOME}
    if "blamed" in changes:
        of_outcome["sections"] = changes["blamed"]
    taken = {*of_key, *(of_outcome.keys() - {"sections"}), "blamed"}
    rest = {name: value for name, value in changes.items() if name not in taken}
    key = replace(cell.key, **of_key)
    found = replace(cell, key=key, outcome=replace(cell.outcome, **of_outcome), **rest)
    if "route" in of_key:
        return found
    return replace(
        found, key=replace(key, route=Route(recorder=_name(found.record_qemu), loader=_name(found.load_qemu)))
    )


def _name(qemu: Qemu) -> str:
    return qemu.label or qemu.version


def made_cell(place: str = "pc-q35-7.2/ahci/bound/same", verdict: Verdict = Verdict.OK, **changes: Any) -> Cell:
    """A cell by the end of its key, ok unless told otherwise; one that broke has a cause all the same."""
    key = CellKey.parse(f"7.2.22/{place}")
    causes = () if verdict is Verdict.OK else (ended(),)
    cell = Cell(
        key=key,
        record_qemu=changes.pop("record_qemu", QEMU),
        load_qemu=changes.pop("load_qemu", QEMU),
        outcome=Outcome(verdict=verdict, causes=causes),
    )
    return changed(cell, **changes)


def words(judged: Any) -> str:
    """What an oracle's judgement is in words; empty when all is well."""
    causes = judged.causes if hasattr(judged, "causes") else (judged.cause,)
    known = tuple(cause for cause in causes if cause is not None)
    return sentences.outcome_text(Outcome(verdict=judged.verdict, causes=known))


def ended(line: str = "died", **more: Any) -> Cause:
    """QEMU crashed in the first load."""
    given: dict[str, Any] = {"step": Step.LOAD, "load": 1, "signal": "SIGABRT", "words": line, **more}
    return Ended(line=line, **given)


def symptom(said: str = "x") -> Symptom:
    """Something that was seen, told by the text of an error."""
    return Symptom(sign=Sign.ERROR, said=said)


def refused(line: str = "no", **more: Any) -> Cause:
    """QEMU refused the first load."""
    given: dict[str, Any] = {"step": Step.LOAD, "load": 1, "reason": line, **more}
    return Refused(line=line, **given)
