# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between two builds, for a terminal and as Markdown for a reply to a patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.report.text import number, plural
from harness.report.view import explain_cell
from harness.results.ab import AbCell, AbDoc, BuildCells
from harness.results.document import Qemu
from harness.text import one_line

JSON_NAME = "ab.json"
TEXT_NAME = "ab.txt"
_MOST = 20
#: What each list means, in the order in which they are told.
_TITLES = {
    "breaks": "B breaks what A does not",
    "differs": "Both break, and differ",
    "mends": "B does not break what A does",
    "undecided": "Not decided",
}


def ab_text(doc: AbDoc, run: str = "") -> str:
    """All of it, a finding once with the cells that have it.

    :param run: folder for ``postload explain``
    """
    return "\n".join(_lines(doc, run)) + "\n"


def _lines(doc: AbDoc, run: str) -> Iterator[str]:
    yield f"A  {_build(doc.a)}"
    yield f"B  {_build(doc.b)}"
    yield ""
    for name, title in _TITLES.items():
        cells: Sequence[AbCell] = getattr(doc, name)
        if cells:
            yield f"{title}: {plural(len(cells), 'cell')}"
            yield from _groups(cells, run)
            yield ""
    yield _answer(doc)


def _build(qemu: Qemu) -> str:
    return one_line(f"{qemu.version}  {qemu.path}  {qemu.build}  sha256 {qemu.sha256[:12]}")


def _groups(cells: Sequence[AbCell], run: str) -> Iterator[str]:
    groups: dict[tuple[object, ...], list[AbCell]] = {}
    for cell in cells:
        key = (cell.a.verdict, cell.a.findings, cell.b.verdict, cell.b.findings, cell.known)
        groups.setdefault(key, []).append(cell)
    for mine in groups.values():
        first = mine[0]
        yield f"  A {_seen(first.a)}; B {_seen(first.b)}" + (f"; known, {first.known}" if first.known else "")
        yield from (f"    {each.cell}" for each in mine[:_MOST])
        if len(mine) > _MOST:
            yield f"    and {number(len(mine) - _MOST)} more"
        shown = first.b if first.b.findings else first.a
        if shown.cells:
            yield f"    next: {explain_cell(shown.cells[0], run)}"


def _seen(build: BuildCells) -> str:
    names = [name for name in build.findings if name != build.verdict]
    return f"{build.verdict}" + (f" ({', '.join(names)})" if names else "")


def _answer(doc: AbDoc) -> str:
    counts = [
        f"{number(len(doc.breaks))} broken by B",
        f"{number(len(doc.differs))} different",
        f"{number(len(doc.mends))} not broken by B any more",
        *([f"{number(len(doc.undecided))} not decided"] if doc.undecided else []),
        f"{number(doc.same)} the same",
    ]
    return ", ".join(counts) + ("" if doc.complete else "; the run has not come to its end")
