# SPDX-License-Identifier: GPL-2.0-or-later
"""Which state was there to be loaded, and which of it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell

from harness.oracles.coverage import coverage_of
from harness.packs.pack import StatePack
from harness.report.coverage import coverage_text
from harness.results.coverage import Sum, covered, sum_of
from harness.results.document import DescribedState, DeviceCoverage
from harness.results.events import Fold, Judged, Started, StateSeen
from harness.results.key import CellKey
from harness.results.verdict import Verdict

LIKE = CellKey.parse("7.2.22/pc-i440fx-7.2/x/bound/same")
ROW = "7.2.22/pc-i440fx-7.2/ahci"


def described(name: str, *subsections: dict[str, Any], fields: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A ``Description`` of the dump."""
    head = {"name": name, "version_id": 1, "minimum_version_id": 1}
    return {**head, "Fields": fields or [], "Subsections": list(subsections)}


def test_what_is_attached_can_be_saved_and_what_a_phase_has_was(make_pack: Callable[..., Path], handmade: Any) -> None:
    inner = {"field": "drive", "version_id": 0, "size": 1, "Description": described("drive", described("drive/tray"))}
    dump = {
        "vmschkmachine": {"Name": "pc"},
        "virtio-blk-pci": {"Description": described("a", described("a/b", described("a/c")), fields=[inner])},
    }
    with StatePack(make_pack("pack", "kernel", "bound")) as pack:
        # the hand-made pack says nothing of who brought its device
        pack.manifest.plan.devices[0].__dict__["owner"] = "virtio-blk"
        blk, ahci = coverage_of(pack, LIKE, ["virtio-blk", "ahci"], dump)
    never = {(s.part_of, s.name) for s in blk.states if not s.saved}
    assert never >= {("", "a"), ("a", "a/b"), ("a", "a/c"), ("a", "drive/tray")}
    assert all(s.saved == ("kernel", "bound") and s.sections == (handmade.ahci,) for s in ahci.states if not s.part_of)
    assert ahci.row == ROW
    assert ahci.device == "ahci"


STATE = DescribedState(name="ahci", sections=("a/ahci",), saved=("bound", "busy"))
THERE = DeviceCoverage(
    row=ROW,
    machine="pc-i440fx-7.2",
    device="ahci",
    states=(STATE, DescribedState(name="ahci/error", part_of="ahci", type="ich9-ahci")),
)


@pytest.mark.parametrize(
    ("phases", "acked", "sections", "loaded"),
    [
        ("bound", 5, ("a/ahci",), ("bound",)),
        ("bound", 1, ("a/ahci",), ("bound",)),
        ("bound", 0, ("a/ahci",), ()),
        ("bound", 5, (), ()),
        ("bound+busy", 5, ("a/ahci",), ("bound", "busy")),
        ("bound+busy", 4, ("a/ahci",), ()),
        ("kernel", 5, ("a/ahci",), ()),
    ],
)
def test_a_section_counts_only_where_its_load_was_acknowledged(
    phases: str, acked: int, sections: tuple[str, ...], loaded: tuple[str, ...]
) -> None:
    verdict = Verdict.OK if acked == 5 else Verdict.CRASH
    cell = made_cell(f"pc-i440fx-7.2/ahci/{phases}/same", verdict, loads_asked=5, loads_acked=acked, sections=sections)
    (found,) = covered([THERE], [cell])
    assert [state.loaded for state in found.states] == [loaded, ()]


def test_another_row_loads_nothing_of_a_device() -> None:
    other = made_cell("pc-i440fx-7.2/platform/bound/same", loads_asked=5, loads_acked=5, sections=("a/ahci",))
    (found,) = covered([THERE], [other])
    assert not found.states[0].loaded


def test_the_same_state_on_two_machines_counts_once() -> None:
    loaded = replace(THERE, row="other", states=(replace(STATE, loaded=("bound",)), THERE.states[1]))
    assert sum_of([THERE, loaded]) == Sum(descriptions=1, descriptions_loaded=1, subsections=1, subsections_loaded=0)
    assert coverage_text([THERE, loaded]).startswith("state loaded: 1 of 1 descriptions, 0 of 1 subsections")
    assert coverage_text([]) == ""


def test_the_fold_of_a_run_has_it(tmp_path: Path) -> None:
    fold = Fold(Started(command=(), host={}))
    fold.add(StateSeen(devices=(THERE,)))
    cell = made_cell("pc-i440fx-7.2/ahci/bound/same", loads_asked=5, loads_acked=5, sections=("a/ahci",))
    fold.add(Judged(planned="x", cell=cell))
    assert fold.document().coverage[0].states[0].loaded == ("bound",)
