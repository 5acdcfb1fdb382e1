# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody's VMs on real QEMUs: a folder of them, and the virtio disk that does not come from 10.0 to 11.1."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.qemu.binary import QemuBinary

Done = subprocess.CompletedProcess[str]
Postload = Callable[..., Done]
Installed = Callable[[str], Any]

TIMEOUT_S = 600.0
FEW = ("--phase", "bound")
DOMAIN = """<domain type='kvm'>
  <name>{name}</name>
  <uuid>6d1c0000-0000-4000-8000-00000000000{number}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/{name}.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>disk-of-{name}</serial>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def domain(name: str, machine: str, number: int = 1, memory: int = 2048) -> str:
    return DOMAIN.format(name=name, machine=machine, number=number, memory=memory)


def fleet_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "fleet.json").read_text())
    assert found["schema"] == "postload.fleet/1"
    return found


def test_a_folder_of_vms_is_answered_and_equal_ones_are_tried_once(
    postload: Postload, installed_qemu: Installed, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    installed_qemu("10.0")
    folder, out = tmp_path / "vms", tmp_path / "out"
    folder.mkdir()
    (folder / "web01.xml").write_text(domain("web01", "pc-q35-7.2"))
    (folder / "web02.xml").write_text(domain("web02", "pc-q35-7.2", number=2, memory=8192))
    (folder / "old.args").write_text("/usr/bin/qemu-system-x86_64 -name old -machine pc-q35-2.1 -m 512 -vga qxl\n")
    (folder / "broken.xml").write_text("<domain type='kvm'>\n<name>broken\n")
    (folder / "notes.txt").write_text("which VM is whose\n")
    words = ("qualify", "--domains", folder, "--from", qemu_7_2.path, "--to", "10.0", *FEW, "--out", out)
    done = postload(*words, timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stderr[-2000:]
    fleet = fleet_of(out)
    vms = {vm["name"]: vm for vm in fleet["vms"]}
    assert {name: vm["answer"] for name, vm in vms.items()} == {
        "broken": "unknown",
        "old": "no-go",
        "web01": "go",
        "web02": "go",
    }
    assert (fleet["tried"], vms["web02"]["like"], [Path(name).name for name in fleet["skipped"]]) == (
        1,
        "web01",
        ["notes.txt"],
    )
    assert fleet["loads"] > 0
    (lacking,) = [fleet["reasons"][number] for number in vms["old"]["because"] if fleet["reasons"][number]["foretold"]][
        :1
    ]
    assert (lacking["foretold"]["what"], lacking["foretold"]["name"]) == ("machine-type", "pc-q35-2.1")
    disk = next(device for device in vms["web01"]["devices"] if device["type"].startswith("virtio-blk"))
    assert disk["answer"] == "go"
    answer = json.loads((out / vms["web01"]["folder"] / "qualify.json").read_text())
    assert answer["answer"] == "go"
    assert "/var/lib/libvirt" not in (out / vms["web01"]["folder"] / "matrix.json").read_text()
    assert "as web01" in " ".join(done.stdout.split())


def test_a_virtio_disk_that_does_not_come_to_11_1_is_told_with_the_remedy_which_is_tried(
    postload: Postload, installed_qemu: Installed, tmp_path: Path
) -> None:
    for name in ("10.0", "11.1"):
        installed_qemu(name)
    path = tmp_path / "web01.xml"
    path.write_text(domain("web01", "pc-q35-10.0"))
    words = ("qualify", "--domain", path, "--from", "10.0", "--to", "11.1", *FEW, "--out", tmp_path / "out")
    done = postload(*words, timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stderr[-2000:]
    fleet = fleet_of(tmp_path / "out")
    (vm,) = fleet["vms"]
    because = [fleet["reasons"][number] for number in vm["because"]]
    told = [each for each in because if each["reason"] and each["type"].startswith("virtio-blk") and each["decides"]]
    assert told
    assert told[0]["reason"]["explained"][0]["setting"] == "queue-size"
    assert vm["remedied"]["settings"] == ["virtio-blk-device.queue-size=1024"]
    assert vm["remedied"]["answer"] == "go"
    assert "the VM is go" in " ".join(done.stdout.split())
