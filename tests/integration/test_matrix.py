# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload matrix`` on both machines, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from harness.cache import cache_root
from harness.engines.probe import ColoAbility
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.schemas import shipped
from harness.results.key import release_line
from harness.store.compare import compare
from harness.store.nights import read_nights
from harness.store.read import open_history
from harness.store.speeds import curves
from harness.store.states import read_rules
from harness.store.write import RateKind, RunState

LOADS = 10
CULPRIT = "0000:00:1f.0/ICH9LPC"
ASSERTION = "!subregion->container"
STORE = "history.db"
ROWS = {"ahci", "virtio-blk", "virtio-net", "platform"}
#: For each row: six phases with two schedules each, alternate, walk.
CELLS_PER_ROW = 14

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run over both machines.

    :param packs: names in the cache of recordings, before and after
    """

    done: subprocess.CompletedProcess[str]
    out: Path
    doc: dict[str, Any]
    packs: tuple[list[str], list[str]]

    def machine(self, family: str) -> dict[str, Any]:
        (found,) = (entry for entry in self.doc["machines"] if entry["alias"] == family)
        return dict(found)

    def cells(self, family: str, *devices: str) -> list[Cell]:
        name = self.machine(family)["machine"]
        return [
            c
            for c in self.doc["cells"]
            if c["key"]["machine"] == name and (not devices or c["key"]["device"] in devices)
        ]


@pytest.fixture(scope="module")
def outcome(
    postload: Callable[..., subprocess.CompletedProcess[str]],
    pc_pack: StatePack,
    q35_pack: StatePack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    return _run(postload, tmp_path_factory.mktemp("matrix") / "out")


@pytest.fixture(scope="module")
def at_7_2(
    request: pytest.FixtureRequest,
    postload: Callable[..., subprocess.CompletedProcess[str]],
    binary: QemuBinary,
    qemu_7_2: QemuBinary,
    q35_pack_7_2: StatePack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    """A run of QEMU 7.2 with q35 in it: the one above where that is the host's."""
    if qemu_7_2 is binary:
        whole: Outcome = request.getfixturevalue("outcome")
        return whole
    return _run(postload, tmp_path_factory.mktemp("at-7.2") / "out", "--qemu", qemu_7_2.path, "--machine", "q35")


def _run(postload: Callable[..., subprocess.CompletedProcess[str]], out: Path, *words: str) -> Outcome:
    before = _kept_packs()
    kept = ("--store", out.parent / STORE)
    done = postload("matrix", "--quick", "--loads", LOADS, *words, *kept, "--out", out, "--json")
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return Outcome(done=done, out=out, doc=json.loads(done.stdout), packs=(before, _kept_packs()))


def _kept_packs() -> list[str]:
    return sorted(f"{p.name} {p.stat().st_ino}" for p in (cache_root() / "packs").iterdir())


def test_a_run_that_records_keeps_how_long_its_guest_took_to_boot(
    postload: Callable[..., subprocess.CompletedProcess[str]], binary: QemuBinary, scratch: Path
) -> None:
    words = ("--quick", "--machine", "pc", "--device", "virtio-net", "--phase", "kernel", "--schedule", "same")
    store = scratch / STORE
    for fresh in (["--fresh"], []):
        done = postload("matrix", *words, "--loads", 2, *fresh, "--store", store, "--out", scratch / "out")
        assert done.returncode == 0, done.stderr[-4000:]
    with open_history(str(store)) as history:
        _, recorded = history.runs()
        (boot,) = history.rates(kind=RateKind.BOOT)  # what was recorded before did not boot
        (curve,) = (each for each in curves(read_nights(history, last=30), history) if each.kind is RateKind.BOOT)
    assert (boot.run, boot.samples) == (recorded.name, 1)
    assert boot.subject == f"{release_line(binary.version)}/{binary.machine('pc').name}"  # type: ignore[union-attr]
    # a guest of Linux takes more than firmware alone, and more than this host to pack some kilobytes
    assert boot.value > 0.1
    assert boot.ratio > 1
    assert [point.ratio for point in curve.points] == [boot.ratio]


def test_the_history_has_what_the_document_has(outcome: Outcome) -> None:
    with open_history(str(outcome.out.parent / STORE)) as history:
        (run,) = history.runs()
        kept = {row.cell: (row.verdict, row.signature or None, row.loads_acked) for row in history.cells(run)}
        logs = {cell: history.log(run, cell) for cell in kept}
        doc = compare(history, run, run, read_rules())
    cells = outcome.doc["cells"]
    assert kept == {c["id"]: (c["outcome"]["verdict"], c["signature"], c["outcome"]["loads_acked"]) for c in cells}
    assert (run.state, run.folder, run.planned) == (RunState.ENDED, str(outcome.out), len(cells))
    # whole where it is not plainly ok
    whole = {cell: log.to_json() for cell, log in logs.items() if log is not None}
    assert whole == {c["id"]: c for c in cells if c["outcome"]["verdict"] != "ok"}
    broken = {c["id"] for c in cells if c["outcome"]["verdict"] == "crash"}
    assert {change.cell for change in doc.still} == broken
    assert (doc.new, doc.back, doc.unseen, doc.not_run, doc.exit_code) == ((), (), (), (), 0)


def test_pc_is_ok_in_every_cell(outcome: Outcome) -> None:
    cells = outcome.cells("pc")
    assert {c["key"]["device"] for c in cells} == ROWS
    assert len(cells) == CELLS_PER_ROW * len(ROWS)
    for cell in cells:
        assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"], cell["outcome"]["loads_asked"]) == (
            "ok",
            LOADS,
            LOADS,
        ), cell["id"]
        assert cell["outcome"]["causes"] == []
        assert cell["excluded"] == []
    assert outcome.machine("pc")["colo"] in ("safe", "remarks")
    assert outcome.machine("pc")["because"] == []


def test_the_document_says_which_qemu_recorded_and_which_loaded(outcome: Outcome, binary: QemuBinary) -> None:
    for cell in outcome.doc["cells"]:
        named = {**binary.identity(), "label": binary.version}
        assert cell["load_qemu"] == named
        # kept recordings are found by the build, which may have more than one path
        assert cell["record_qemu"] == {**named, "path": cell["record_qemu"]["path"]}
        assert cell["key"]["route"] == {"recorder": binary.version, "loader": binary.version}
        assert cell["key"]["accel"] in ("tcg", "kvm")
    assert outcome.machine("pc")["machine"].startswith("pc-i440fx-")
    assert outcome.machine("q35")["machine"].startswith("pc-q35-")


def test_q35_crashes_at_the_first_load_and_the_section_is_named(at_7_2: Outcome) -> None:
    assert at_7_2.done.returncode == 1
    first = [c for c in at_7_2.cells("q35", "platform") if not c["key"]["rest"]]
    assert len(first) == CELLS_PER_ROW
    for cell in first:
        assert cell["outcome"]["verdict"] == "crash", cell["id"]
        assert cell["outcome"]["loads_acked"] == 0
        outcome_ = cell["outcome"]
        (cause,) = outcome_["causes"]
        assert (outcome_["sections"], cause["load"], cause["signal"]) == ([CULPRIT], 1, "SIGABRT"), cell["id"]
        assert cause["assertion"]["expression"] == "!subregion->container"
        assert ASSERTION in outcome_["log"]
        assert outcome_["isolation"]["way"] == "alone"
    assert at_7_2.machine("q35")["colo"] == "unsafe"
    (reason,) = at_7_2.machine("q35")["because"]
    assert (reason["sections"], reason["verdict"]) == ([CULPRIT], "crash")


def test_the_other_rows_of_q35_are_judged_without_the_culprit(at_7_2: Outcome) -> None:
    cells = at_7_2.cells("q35", *(ROWS - {"platform"}))
    cells += [c for c in at_7_2.cells("q35", "platform") if c["key"]["rest"]]
    assert len(cells) == CELLS_PER_ROW * len(ROWS)
    for cell in cells:
        assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"], cell["outcome"]["loads_asked"]) == (
            "ok",
            LOADS,
            LOADS,
        ), cell["id"]
        assert cell["excluded"] == [CULPRIT]
        assert CULPRIT not in cell["sections"]


def test_every_machine_answer_follows_from_its_cells(outcome: Outcome, ability: ColoAbility) -> None:
    for family in ("pc", "q35"):
        cells, machine = outcome.cells(family), outcome.machine(family)
        assert {c["key"]["device"] for c in cells} == ROWS
        assert all(c["outcome"]["loads_acked"] == LOADS for c in cells if c["outcome"]["verdict"] == "ok")
        assert all((c["outcome"]["causes"] == []) is (c["outcome"]["verdict"] == "ok") for c in cells)
        # under a reset before each load, a section that stands twice in one buffer is not what a checkpoint does
        counted = [c for c in cells if not (ability.resets_before_load and c["key"]["lane"] == "back-to-back")]
        safe = all(c["outcome"]["verdict"] == "ok" for c in counted)
        assert (machine["colo"] in ("safe", "remarks")) is safe
        assert machine["colo"] == "safe" or machine["because"]
    findings = [c["id"] for c in outcome.doc["cells"] if c["outcome"]["causes"]]
    assert outcome.done.returncode == (1 if findings else 0), findings


def test_one_document_on_stdout_and_the_same_in_the_folder(outcome: Outcome) -> None:
    jsonschema.validate(outcome.doc, shipped("matrix-2.schema.json"))
    assert outcome.doc["complete"] is True
    assert json.loads((outcome.out / "matrix.json").read_text()) == outcome.doc
    assert "Traceback" not in outcome.done.stderr


def test_reports_hold_the_findings(outcome: Outcome) -> None:
    assert sorted(path.name for path in outcome.out.iterdir()) == [
        "cells.jsonl",
        "junit.xml",
        "matrix.html",
        "matrix.json",
        "matrix.md",
        "matrix.tap",
        "summary.md",
    ]
    suite = ElementTree.parse(outcome.out / "junit.xml").getroot()
    assert len(list(suite.iter("testcase"))) == len(outcome.doc["cells"])
    findings = [c for c in outcome.doc["cells"] if c["outcome"]["causes"]]
    assert len(list(suite.iter("failure"))) == len(findings)
    texts = [(outcome.out / name).read_text() for name in ("matrix.html", "matrix.md", "junit.xml")]
    for section in {name for c in findings for name in c["outcome"]["sections"]}:
        assert all(section in text for text in texts), section
    html = texts[0].lower()
    assert "<script src" not in html
    assert "<link" not in html


def test_recordings_are_kept_and_used_again(outcome: Outcome) -> None:
    before, after = outcome.packs
    assert before == after


def test_a_selection_judges_only_what_was_asked_for(
    postload: Callable[..., subprocess.CompletedProcess[str]], pc_pack: StatePack, tmp_path: Path
) -> None:
    words = ["--machine", "pc", "--device", "virtio-net", "--phase", "busy", "--schedule", "back-to-back"]
    done = postload(
        "matrix", *words, "--quick", "--loads", "250", "--guest-mode", "parked", "--out", tmp_path, "--json"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (cell,) = json.loads(done.stdout)["cells"]
    assert (cell["key"]["device"], cell["key"]["phases"], cell["key"]["lane"]) == (
        "virtio-net",
        ["busy"],
        "back-to-back",
    )
    assert (cell["key"]["guest_mode"], cell["outcome"]["loads_acked"], cell["outcome"]["checkpoints_acked"]) == (
        "parked",
        250,
        3,
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--machine", "microwave"], "microwave"),
        (["--device", "floppy9"], "floppy9"),
        (["--phase", "nap"], "nap"),
        (["--schedule", "random"], "random"),
        (["--guest-mode", "asleep"], "asleep"),
        (["--guest", "nobody"], "nobody"),
        (["--qemu", "/nonexistent/qemu"], "/nonexistent/qemu"),
        (["--qemu", "/bin/true"], "/bin/true"),
    ],
)
def test_a_wrong_word_is_named(
    postload: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, words: list[str], named: str
) -> None:
    done = postload("matrix", *words, "--out", tmp_path / "out", "--json")
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
