# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cell a user means, and where it failed."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.results.document import Cell, Finding, MatrixDoc, Qemu, find_cell
from harness.results.verdict import Verdict
from harness.triage.cells import at_start, phase_of

QEMU = Qemu(version="7.2.22", build="", path="/q", sha256="1a2b3c4d")


def cell(place: str, verdict: Verdict = Verdict.OK, **more: object) -> Cell:
    given: dict[str, object] = {"phases": ("bound",), "finding": None if verdict is Verdict.OK else Finding(text="t")}
    return Cell(
        id=f"7.2.22-1a2b3c4d/pc-q35-7.2/{place}",
        record_qemu=QEMU,
        load_qemu=QEMU,
        machine="pc-q35-7.2",
        accel="tcg",
        device="d",
        schedule="same",
        verdict=verdict,
        **{**given, **more},  # type: ignore[arg-type]
    )


def doc(*cells: Cell) -> MatrixDoc:
    return MatrixDoc(command=(), started="", seconds=0, complete=True, host={}, machines=(), cells=cells)


ROWS = [cell(f"{row}/{phase}/same", Verdict.CRASH if row == "platform" else Verdict.OK)
        for row in ("ahci", "platform") for phase in ("bound", "unbound", "rebound")]  # fmt: skip


def test_a_phase_is_not_the_end_of_another_ones_name() -> None:
    """All of unbound, rebound and bound fail, as they do in a run over all phases."""
    run = doc(*ROWS, cell("platform/bound/same+rest"))
    assert find_cell(run, "bound/same").id.endswith("/platform/bound/same")
    assert find_cell(run, "unbound/same").id.endswith("/platform/unbound/same")
    assert find_cell(run, "/ahci/bound/same/").id.endswith("/ahci/bound/same")


def test_a_part_of_a_word_still_names_the_only_one() -> None:
    run = doc(*ROWS)
    assert find_cell(run, "form/bound").id.endswith("/platform/bound/same")
    assert find_cell(run, ROWS[0].id) is ROWS[0]


@pytest.mark.parametrize("text", ["same", "platform", "nobody"])
def test_what_names_none_or_several_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cell"):
        find_cell(doc(*ROWS), text)


@pytest.mark.parametrize(
    ("finding", "phase"),
    [
        (Finding(text="phase bound: load 1, by an incoming stream: x; phase busy: y"), "bound"),
        (Finding(text="reject in 1 of 2 runs, ok in the other: x"), "rebound"),
        (Finding(text="phase nowhere: x; phase busy: y"), "busy"),
        (Finding(text="phase bound: x", phase="busy"), "busy"),
        (None, "rebound"),
    ],
)
def test_a_migration_over_all_phases_says_in_its_text_where_it_failed(finding: Finding | None, phase: str) -> None:
    one = cell("d/all/plain", Verdict.REJECT, phases=("kernel", "bound", "busy", "rebound"), finding=finding)
    assert phase_of(one) == phase


def test_what_fails_before_any_checkpoint() -> None:
    assert at_start(cell("d/all/plain", Verdict.REJECT, oracle="plain"))
    assert at_start(cell("d/all/postcopy", Verdict.REJECT, oracle="postcopy"))
    assert at_start(cell("d/bound/same", Verdict.REJECT, finding=Finding(text="t", load=0)))
    assert not at_start(cell("d/bound/same", Verdict.REJECT, finding=Finding(text="t", load=1)))
