# SPDX-License-Identifier: GPL-2.0-or-later
"""``-dump-vmstate`` of a real QEMU against the sections that it records."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest

from harness.errors import QemuError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.vmstate import dump_vmstate
from harness.qualify.static import (
    Disagreement,
    StaticNote,
    StaticState,
    check_sections,
    compare_static_dynamic,
    sections_at_hand,
)


def test_a_build_against_itself(
    binary: QemuBinary, pc_pack: StatePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    machine = pc_pack.manifest.machine
    dump = dump_vmstate(binary, machine)
    # the second time no QEMU is needed
    assert dump_vmstate(dataclasses.replace(binary, path="/nowhere"), machine) == dump

    at_hand = sections_at_hand(pc_pack.recordings["bound"])
    found = check_sections(dump, dump, at_hand)
    states = {label: finding.state for label, finding in found.items()}
    assert StaticState.ALARM not in states.values()
    assert states["0000:00:03.0/ich9_ahci"] is StaticState.CLEAN
    assert states["0000:00:05.0/virtio-net"] is StaticState.NOT_DESCRIBED
    assert states["cpu"] is StaticState.NOT_DESCRIBED
    assert compare_static_dynamic(found, dict.fromkeys(found, True)) == ()

    # a QEMU that has forgotten a field, so to speak
    other = copy.deepcopy(dump)
    gone = other["ich9-ahci"]["Description"]["Fields"].pop()
    finding = check_sections(dump, other, at_hand)["0000:00:03.0/ich9_ahci"]
    assert finding.state is StaticState.ALARM
    assert gone["field"] in {difference.name for difference in finding.differences}
    (note,) = compare_static_dynamic({finding.section: finding}, {finding.section: True})
    assert note == StaticNote(how=Disagreement.ALARM_AND_PASSED, findings=(finding,))


def test_a_machine_that_is_not_there(binary: QemuBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(QemuError, match="pc-i440fx-0"):
        dump_vmstate(binary, "pc-i440fx-0.1")
    assert not list(tmp_path.rglob("*.json"))
