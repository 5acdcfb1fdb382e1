# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload report`` of a qualify run: the answer as it was given, or what the cells alone say when it was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell, refused

from harness.commands.declared import report
from harness.facts import KvmTried
from harness.qemu.binary import AccelSeen, AccelState
from harness.qualify.run import Context, qualify_doc
from harness.report.qualify import qualify_plain
from harness.results.document import Cell, MachineResult, Qemu
from harness.results.events import Answered, CellsPlanned, Event, EventLog, Fold, Judged, MachineSeen, RunEnded, Started
from harness.results.verdict import Verdict

OLD = Qemu(version="7.2.22", build="", path="/old", sha256="a" * 64)
NEW = Qemu(version="10.0.13", build="", path="/new", sha256="b" * 64)
MACHINE = "pc-q35-7.2"
FILES = [
    "cells.jsonl", "junit.xml", "matrix.html", "matrix.json", "matrix.md", "matrix.tap", "qualify.json", "qualify.md",
    "summary.md",
]  # fmt: skip
ASKED: dict[str, Any] = {
    "deciding": ["migration", "colo"],
    "travelled": False,
    "kvm": {"state": {"name": "kvm", "usable": False, "seen": "not-tried", "said": "", "seconds": 0.0}, "silent": []},
}


def cell(lane: str, verdict: Verdict) -> Cell:
    broken: dict[str, Any] = {"causes": (refused("no"),), "blamed": ("ich9_ahci",)}
    return made_cell(
        f"{MACHINE}/ahci/bound/{lane}", verdict, record_qemu=OLD, load_qemu=NEW, loads_asked=5, loads_acked=5,
        **({} if verdict is Verdict.OK else broken),
    )  # fmt: skip


def events(verdict: Verdict = Verdict.OK) -> list[Event]:
    return [
        Started(command=("postload", "qualify"), host={}, qualify=ASKED),
        MachineSeen(machine=MachineResult(machine=MACHINE, qemu=NEW, record_qemu=OLD)),
        CellsPlanned(row="ahci", cells=("plain", "same")),
        Judged(planned="plain", cell=cell("plain", verdict)),
        Judged(planned="same", cell=cell("same", Verdict.OK)),
    ]


def reported(folder: Path, kept: list[Event]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, ``qualify.json`` and ``matrix.json``."""
    with EventLog(folder) as log:
        for event in kept:
            log.write(event)
    code = report.main([str(folder)], standalone_mode=False)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return code, json.loads((folder / "qualify.json").read_text()), json.loads((folder / "matrix.json").read_text())


@pytest.mark.parametrize("ended", [[], [RunEnded(complete=False)], [RunEnded(complete=True)]])
def test_without_its_answer_a_run_is_no_go_at_most(tmp_path: Path, ended: list[Event]) -> None:
    """Killed among its cells, or behind them, while it asked the QEMUs for causes."""
    code, answer, matrix = reported(tmp_path, [*events(), *ended])
    assert (code, answer["answer"], answer["complete"], matrix["complete"]) == (3, "unknown", False, False)
    assert answer["kvm"] == ASKED["kvm"]
    assert answer["pairs"][0]["devices"][0]["uses"] == {"migration": "go", "postcopy": "-", "colo": "unknown"}
    code, answer, _ = reported(tmp_path, [*events(Verdict.REJECT), *ended])
    assert (code, answer["answer"]) == (3, "no-go")
    assert "unknown" not in (tmp_path / "qualify.md").read_text().splitlines()[2]


@pytest.mark.parametrize(("verdict", "said", "code"), [(Verdict.OK, "go", 0), (Verdict.REJECT, "no-go", 1)])
def test_the_answer_that_was_given_is_told_again(tmp_path: Path, verdict: Verdict, said: str, code: int) -> None:
    kept = [*events(verdict), RunEnded(complete=True)]
    fold = Fold(Started(command=(), host={}))
    for event in kept:
        fold.add(event)
    plain = qualify_plain(
        qualify_doc(
            fold.document(),
            Context(binaries={}, kvm=KvmTried(state=AccelState(name="kvm", usable=True, seen=AccelSeen.BOOTED))),
        )
    )
    ended, answer, matrix = reported(tmp_path, [*kept, Answered(qualify=plain)])
    assert (ended, answer["answer"], matrix["complete"]) == (code, said, True)
    assert answer == plain
    assert "KVM state: could be tried: booted in" in (tmp_path / "matrix.html").read_text()
