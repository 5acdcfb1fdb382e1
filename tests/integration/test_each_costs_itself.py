# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that misbehave on a real QEMU, in one run beside one that is well: each costs itself alone, and is told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.devices.device import Attachment, Device
from harness.files import data_dir
from harness.guests.lack import Lacks
from harness.qemu import vm
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.report.lost import lost_text
from harness.results.document import MatrixDoc
from harness.state.owners import find_owners
from harness.state.recordings import machine_names, planned_guests

Postload = Callable[..., subprocess.CompletedProcess[str]]

#: The guest's power goes off when its driver is to be bound, and QEMU with it.
KILLER = """\
name: killer
about: a device that loses its guest
default: false
attach: [{type: pvpanic-pci}]
guest:
  bind: poweroff -f; sleep 60
"""
BAD = "name: bad\nabout: a recipe with a mistake\nattach: [{type: edu, colour: red}]\n"


def test_a_bad_recipe_one_that_dies_in_pre_save_and_one_that_loses_its_guest(
    postload: Postload, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "platform.yaml").write_text((data_dir("devices") / "platform.yaml").read_text())
    (folder / "killer.yaml").write_text(KILLER)
    (folder / "bad.yaml").write_text(BAD)
    words = ("--qemu", qemu_7_2.path, "--machine", "pc", "--profiles", folder, "--quick", "--loads", "5", "--json")
    chosen = ("--device", "killer,pci-serial-2x,virtio-rng-pci", "--phase", "kernel,bound")
    done = postload("matrix", *words, *chosen, "--out", tmp_path / "run", timeout_s=300)
    doc = MatrixDoc.from_json(json.loads(done.stdout))
    told = " ".join(done.stderr.split())
    found = {(cell.device, "+".join(cell.key.phases), cell.lane): str(cell.verdict) for cell in doc.cells}
    well = {verdict for (device, _, _), verdict in found.items() if device == "virtio-rng-pci"}
    assert well == {"ok"}, done.stderr
    # the recipe with a mistake, and the device that QEMU 7.2 cannot save, are named, and have no cell
    assert "bad.yaml" in told
    assert "pci-serial-2x: fails-to-save" in told
    assert {device for device, _, _ in found} == {"killer", "virtio-rng-pci"}
    # what was recorded before the guest was lost is judged
    assert found["killer", "kernel", "same"] == "ok"
    assert found["killer", "bound", "same"] == "harness-error"
    (lost,) = doc.lost
    assert (lost.by, lost.phase, lost.alone) == ("killer", "bound", True)
    assert lost_text(lost)[:60] in told
    assert done.returncode == 3


def test_a_machine_without_pci_and_without_a_kernel_costs_itself_alone(
    postload: Postload, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    words = ("--qemu", qemu_7_2.path, "--machine", "isapc,pc", "--device", "isa-serial,virtio-rng-pci,virtio-blk")
    chosen = ("--phase", "firmware,kernel", "--schedule", "same", "--quick", "--loads", "5", "--json")
    done = postload("matrix", *words, *chosen, "--out", tmp_path / "run", timeout_s=300)
    doc = MatrixDoc.from_json(json.loads(done.stdout))
    found = {(cell.machine, cell.device, cell.key.phases[0]): str(cell.verdict) for cell in doc.cells}
    without = {key: verdict for key, verdict in found.items() if key[0] == "isapc"}
    assert without == {
        ("isapc", "isa-serial", "firmware"): "ok",
        ("isapc", "isa-serial", "kernel"): "unsupported",
        ("isapc", "virtio-blk", "firmware"): "unsupported",
        ("isapc", "virtio-blk", "kernel"): "unsupported",
    }
    assert [found[key] for key in found.keys() - without] == ["ok"] * 6
    assert "isapc: virtio-rng-pci: other-machine: judged on pc" in done.stderr
    assert done.returncode == 0
    told = postload("report", tmp_path / "run").stdout
    assert "the guest's kernel is not made for this machine type: isapc" in " ".join(told.split())
    assert "no bus of machine isapc is known" in " ".join(told.split())


def pci(name: str, kind: str) -> Device:
    return Device(name=name, about="", default=False, attachments=(Attachment(name="dev", type=kind, on="pci"),))


def test_a_device_that_hangs_qemu_at_its_start(
    qemu_7_2: QemuBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "qemu-system-x86_64"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *pvpanic-pci*) exec sleep 600 ;; esac\nexec {qemu_7_2.path} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(vm, "START_TIMEOUT_S", 4.0)
    devices = [pci("hangs", "pvpanic-pci"), pci("well", "virtio-rng-pci")]
    family, machine = machine_names(qemu_7_2, "pc")
    (guest,) = planned_guests(machine, family, devices).guests
    with ProcessScope() as scope:
        owners = find_owners(replace(qemu_7_2, path=str(slow)), guest, "tcg", scope)
    assert {name: lack.what for name, lack in owners.refused.items()} == {"hangs": Lacks.START}
    assert any("virtio-rng" in label for label in owners.sections["well"])
