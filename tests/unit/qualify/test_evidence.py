# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked beyond the cells: which sections passed, what became of a witness that is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import made_cell, symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.errors import Stopped
from harness.packs.pack import StatePack
from harness.qemu.binary import MachineType, QemuBinary
from harness.qemu.disturbance import TRIES, Disturbance, Hindered, current_account
from harness.qemu.process import Exit
from harness.qualify import evidence as evidence_module
from harness.qualify.answer import Leg
from harness.qualify.evidence import GuestWitness, passed_sections
from harness.qualify.model import Reason
from harness.report.reasons import reason_remedy_text
from harness.results.document import Cell, Qemu
from harness.results.verdict import Verdict

OLD = Qemu(version="7.2.22", build="", path="/old", sha256="a" * 64)
NEW = Qemu(version="10.0.13", build="", path="/new", sha256="b" * 64)
MACHINE = "pc-i440fx-7.2"
NET = "0000:00:05.0/virtio-net"


def cell(device: str, *sections: str, verdict: Verdict = Verdict.OK, **more: Any) -> Cell:
    known = {"loads_asked": 1, "loads_acked": 1, "record_qemu": OLD, "load_qemu": NEW, "sections": sections}
    return made_cell(f"{MACHINE}/{device}/bound/plain", verdict, **{**known, **more})


def leg(*cells: Cell) -> Leg:
    return Leg(machine=MACHINE, recorder=OLD, loader=NEW, cells=cells)


def test_a_section_that_other_rows_loads_brought_along_passed() -> None:
    net = cell("virtio-net", NET, "slirp", verdict=Verdict.REJECT, loads_acked=0, blamed=(NET,))
    rest = cell("platform", "i8259", excluded=(NET,))
    assert passed_sections(leg(net, rest)) == {NET: False, "slirp": True, "i8259": True}


def test_what_no_load_brought_is_not_said_to_have_passed() -> None:
    net = cell("virtio-net", NET, "slirp", verdict=Verdict.REJECT, loads_acked=0, blamed=(NET,))
    assert passed_sections(leg(net)) == {NET: False}
    undecided = cell("platform", "i8259", verdict=Verdict.HARNESS_ERROR)
    assert passed_sections(leg(undecided)) == {}


def test_a_stopped_witness_asks_nobody(binary: QemuBinary) -> None:
    witness = GuestWitness(binaries={NEW.sha256: binary})
    witness.scope.stop()
    with pytest.raises(Stopped):
        witness.explain(cell("ahci"), Reason(use="migration", verdict="reject"))


def test_a_machine_type_that_is_gone_comes_with_a_remedy(binary: QemuBinary) -> None:
    machines = (MachineType(name="pc-i440fx-9.0", alias="pc", deprecated=False),)
    witness = GuestWitness(binaries={NEW.sha256: replace(binary, machines=machines)})
    told = witness.explain(cell("ahci", verdict=Verdict.UNSUPPORTED), Reason(use="colo", verdict="unsupported"))
    assert [explained.kind for explained in told.explained] == ["other-types"]
    assert "pc-i440fx-9.0" in reason_remedy_text(told)


def test_a_confirmation_that_the_host_disturbs_each_time_is_the_hosts(
    binary: QemuBinary, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Hindered(how=Disturbance.ENDED, signal="SIGKILL")
    gone = Break(step=Step.INCOMING, kind="closed", symptom=symptom("x"), load=1, phase="bound")
    runs: list[int] = []

    def run() -> Evidence:
        runs.append(1)
        current_account().ended(ended)
        killed = Exit(status=-9, signal="SIGKILL")
        return Evidence(loads_asked=1, loads_acked=0, checkpoints_acked=0, broken=gone, exit=killed, log="")

    monkeypatch.setattr(evidence_module, "RealMigration", lambda **_: SimpleNamespace(run=run))
    with StatePack(make_pack()) as pack:
        outcome = GuestWitness(binaries={})._migrated(binary, binary, pack, "bound")
    assert (outcome.verdict, outcome.causes, len(runs)) == (Verdict.HOST, (ended,), TRIES)
