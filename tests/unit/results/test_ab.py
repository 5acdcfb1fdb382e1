# SPDX-License-Identifier: GPL-2.0-or-later
"""Two builds on the same recordings: what differs, and what that ends with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from made_cells import changed, ended, made_cell, refused

from harness.report.ab import ab_text
from harness.results.ab import AbDoc, ab_schema, compare_builds
from harness.results.cause import Assertion
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.key import Route
from harness.results.verdict import Verdict

A = Qemu(version="10.0.0", build="base", path="/a", sha256="a" * 64, label="10.0.0")
B = Qemu(version="10.0.0", build="patched", path="/b", sha256="b" * 64, label="10.0.0~2")
HOME, ABROAD = Route(recorder=A.label, loader=A.label), Route(recorder=A.label, loader=B.label)

LANES = ("same", "walk", "back-to-back")


def cell(build: Qemu, verdict: Verdict = Verdict.OK, line: str = "x", place: str = "bound/same", **more: Any) -> Cell:
    cause = ended(line, assertion=Assertion(function="load", expression=line, file="x.c"))
    broken: dict[str, Any] = {} if verdict is Verdict.OK else {"causes": (cause,), "blamed": ("ahci",)}
    made = made_cell(f"pc-q35-7.2/ahci/{place}", verdict, record_qemu=A, load_qemu=build, **broken)
    route = HOME if build is A else ABROAD
    return replace(made, key=replace(made.key, route=route), **more)


def refusing(build: Qemu) -> Cell:
    return changed(cell(build), verdict=Verdict.REJECT, causes=(refused("no"),), blamed=("ahci",))


def compared(*cells: Cell, complete: bool = True) -> AbDoc:
    doc = MatrixDoc(
        command=(), started="2026-01-01T00:00:00+00:00", seconds=0.0, complete=complete, host={}, machines=(),
        cells=cells,
    )  # fmt: skip
    return compare_builds(doc, A, B)


@pytest.mark.parametrize(
    ("cells", "kind", "code"),
    [
        ([cell(A), cell(B)], "same", 0),
        ([cell(A), cell(B, Verdict.CRASH)], "breaks", 1),
        ([cell(A, Verdict.CRASH), cell(B)], "mends", 0),
        ([cell(A, Verdict.CRASH), cell(B, Verdict.CRASH)], "same", 0),
        ([cell(A, Verdict.CRASH), cell(B, Verdict.CRASH, "y")], "differs", 0),
        ([refusing(A), cell(B, Verdict.CRASH)], "differs", 1),
        ([cell(A), cell(B, Verdict.HOST)], "undecided", 3),
        ([cell(A, Verdict.HARNESS_ERROR), cell(B, Verdict.CRASH)], "undecided", 3),
        ([cell(A), cell(B, Verdict.UNSUPPORTED)], "undecided", 3),
        ([cell(A)], "undecided", 3),
        ([cell(A, Verdict.UNSUPPORTED), cell(B, Verdict.UNSUPPORTED)], "", 4),
        ([cell(A, Verdict.UNSUPPORTED), cell(B, Verdict.HOST)], "undecided", 3),
        ([cell(A), cell(B, Verdict.CRASH, known="https://example.org/1")], "breaks", 0),
    ],
)
def test_a_place_is_in_one_list(cells: list[Cell], kind: str, code: int) -> None:
    found = compared(*cells)
    lists = {name: getattr(found, name) for name in ("breaks", "differs", "mends", "undecided")}
    assert {name for name, each in lists.items() if each} == ({kind} - {"same", ""})
    assert found.same == (kind == "same")
    assert found.exit_code == code


def test_a_further_look_belongs_to_its_cell() -> None:
    first = [cell(build, Verdict.CRASH) for build in (A, B)]
    rest = cell(B, Verdict.HANG, "y", place="bound/same+rest")
    [found] = compared(*first, cell(A, place="bound/same+rest"), rest).differs
    assert found.cell == "pc-q35-7.2/ahci/bound/same"
    assert len(found.b.findings) == 2
    assert found.b.cells == (first[1].id, rest.id)


def test_a_finding_counts_though_the_look_behind_it_failed() -> None:
    rest = cell(B, Verdict.HOST, place="bound/same+rest")
    assert compared(cell(A), cell(B, Verdict.CRASH), rest).exit_code == 1


def test_a_run_that_was_stopped_is_not_decided() -> None:
    assert compared(cell(A), cell(B), complete=False).exit_code == 3
    assert compared(cell(A), cell(B, Verdict.CRASH), complete=False).exit_code == 1


def test_the_text_tells_what_differs_and_counts_the_rest() -> None:
    places = [f"{phase}/{lane}" for phase in ("kernel", "bound", "busy") for lane in LANES]
    well = [cell(build, place=place) for build in (A, B) for place in places[2:]]
    broken = [cell(A, place=place) for place in places[:2]] + [
        cell(B, Verdict.CRASH, place=place) for place in places[:2]
    ]
    text = ab_text(compared(*well, *broken), "out")
    assert text.startswith("A  10.0.0 /a base sha256 aaaaaaaaaaaa\nB  10.0.0 /b patched sha256 bbbbbbbbbbbb\n")
    assert "B breaks what A does not: 2 cells\n  A ok; B crash (crash:load:" in text
    assert "    pc-q35-7.2/ahci/kernel/same\n    pc-q35-7.2/ahci/kernel/walk\n    next: postload explain " in text
    assert text.endswith("2 broken by B, 0 different, 0 not broken by B any more, 7 the same\n")
    assert "busy" not in text


def test_its_document_has_a_schema() -> None:
    import jsonschema

    jsonschema.validate(compared(cell(A), cell(B, Verdict.CRASH)).to_json(), ab_schema())
