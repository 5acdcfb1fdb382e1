# SPDX-License-Identifier: GPL-2.0-or-later
"""Two builds of QEMU cell by cell: both loaded the same recordings, and only what differs counts. Pure.

A cell and the further looks at it, without what was blamed, are one place. What a build shows there is a set of
signatures; a finding that has none is told by its verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.results.document import Cell, MatrixDoc, Qemu, plain_json, schema_of
from harness.results.signature import name_of
from harness.results.verdict import Verdict, rank, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCells:
    """What one build shows in one place.

    :param cells: as the document of the run names them
    :param findings: signatures, sorted
    """

    verdict: Verdict
    cells: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbCell:
    """One place under both builds.

    :param cell: ``MACHINE/DEVICE/PHASES/LANE[/MODE]``
    :param known: link of the known issue that all of B's further findings are; empty where they are none
    """

    cell: str
    a: BuildCells
    b: BuildCells
    known: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbDoc:
    """What differs between two builds.

    :param breaks: B has a finding, and A has none
    :param differs: both have findings, and not the same
    :param mends: A has a finding, and B has none
    :param undecided: one of them was not judged, so that nothing can be said
    :param same: how many places are alike
    :param complete: the run came to its end
    """

    schema: Literal["postload.ab/1"] = "postload.ab/1"
    a: Qemu
    b: Qemu
    breaks: tuple[AbCell, ...]
    differs: tuple[AbCell, ...]
    mends: tuple[AbCell, ...]
    undecided: tuple[AbCell, ...]
    same: int
    complete: bool

    @property
    def exit_code(self) -> int:
        """1 when B breaks what A does not, or breaks worse; else 3 when something was not decided; else 4 when nothing
        was compared; else 0."""
        worse = [each for each in self.differs if rank(each.b.verdict) < rank(each.a.verdict)]
        if any(not each.known for each in (*self.breaks, *worse)):
            return 1
        if self.undecided or not self.complete:
            return 3
        return 0 if self.same or self.breaks or self.differs or self.mends else 4

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)


def compare_builds(doc: MatrixDoc, a: Qemu, b: Qemu) -> AbDoc:
    """The cells of a run in which both loaded what A had recorded.

    Places that neither could judge, for a device that neither has for example, are left out.
    """
    places: dict[str, tuple[list[Cell], list[Cell]]] = {}
    for cell in doc.cells:
        mine = places.setdefault(_place(cell), ([], []))
        mine[cell.load_qemu.sha256 == b.sha256].append(cell)
    found: dict[str, list[AbCell]] = {"breaks": [], "differs": [], "mends": [], "undecided": [], "same": []}
    for name, (ours, theirs) in places.items():
        kind = _kind(ours, theirs)
        if kind:
            found[kind].append(_pair(name, ours, theirs))
    same = found.pop("same")
    return AbDoc(
        a=a,
        b=b,
        breaks=tuple(found["breaks"]),
        differs=tuple(found["differs"]),
        mends=tuple(found["mends"]),
        undecided=tuple(found["undecided"]),
        same=len(same),
        complete=doc.complete,
    )


def _place(cell: Cell) -> str:
    key = str(replace(cell.key, rest=0))
    return key.partition("/")[2]


def _kind(a: list[Cell], b: list[Cell]) -> str:
    """The list that a place belongs to; empty for none."""
    judged = [_judged(a), _judged(b)]
    if not any(judged):
        return "undecided" if any(cell.verdict.is_undecided for cell in (*a, *b)) else ""
    if not all(judged):
        return "undecided"
    ours, theirs = _findings(a), _findings(b)
    if ours == theirs:
        return "same"
    if ours and theirs:
        return "differs"
    return "breaks" if theirs else "mends"


def _judged(cells: Iterable[Cell]) -> bool:
    """Whether something can be said of a place: a finding stands whatever became of the looks behind it."""
    verdicts = {cell.verdict for cell in cells}
    if any(verdict.is_finding for verdict in verdicts):
        return True
    return verdicts == {Verdict.OK}


def _findings(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(sorted({_finding(cell) for cell in cells if cell.verdict.is_finding}))


def _finding(cell: Cell) -> str:
    return name_of(cell) or str(cell.verdict)


def _pair(name: str, a: list[Cell], b: list[Cell]) -> AbCell:
    ours = _findings(a)
    new = [cell for cell in b if cell.verdict.is_finding and _finding(cell) not in ours]
    known = {cell.known for cell in new}
    return AbCell(cell=name, a=_shown(a), b=_shown(b), known=next(iter(known)) if known and "" not in known else "")


def _shown(cells: list[Cell]) -> BuildCells:
    verdict = worst(cell.verdict for cell in cells) if cells else Verdict.UNSUPPORTED
    return BuildCells(verdict=verdict, cells=tuple(cell.id for cell in cells), findings=_findings(cells))


def ab_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``ab.json``, made from the models."""
    return schema_of(AbDoc)
