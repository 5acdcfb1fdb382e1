# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody's VM on a real QEMU: a pack is made of it, and its pack is loaded as any other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary

pytestmark = pytest.mark.integration

Done = subprocess.CompletedProcess[str]

WEB01 = """\
/usr/bin/qemu-system-x86_64 \\
  -name guest=web01,debug-threads=on \\
  -machine pc,accel=kvm,usb=off,hpet=off \\
  -cpu host,migratable=on -smp 2,sockets=2,cores=1,threads=1 -m 4096 \\
  -uuid 5e7a1c4e-0000-4000-8000-000000000001 -nodefaults -no-user-config \\
  -device piix3-usb-uhci,id=usb,bus=pci.0,addr=0x1.0x2 \\
  -blockdev '{"driver":"file","filename":"/etc/shadow","node-name":"storage"}' \\
  -blockdev '{"driver":"qcow2","file":"storage","node-name":"form"}' \\
  -device virtio-blk-pci,bus=pci.0,addr=0x5,drive=form,id=vda,bootindex=1 \\
  -netdev tap,fd=30,id=hostnet0 \\
  -device virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:12:34:56,bus=pci.0,addr=0x3 \\
  -chardev pty,id=charserial0 -device isa-serial,chardev=charserial0,id=serial0 \\
  -device usb-tablet,id=input0,bus=usb.0,port=1 \\
  -device vfio-pci,host=0000:01:00.0,id=hostdev0
"""


def test_a_vm_is_adopted_and_its_pack_is_loaded_as_any_other(
    binary: QemuBinary, postload: Callable[..., Done], scratch: Path
) -> None:
    vm = scratch / "web01.sh"
    vm.write_text(WEB01)
    told = postload("adopt", "--command-line", vm, "--qemu", binary.path)
    assert told.returncode == 0, told.stderr
    assert "virtio-blk: vda" in told.stdout
    assert "left out: vfio-pci (hostdev0): not judged: it stands on the host's own" in told.stdout
    done = postload(
        *("adopt", "--command-line", vm, "--qemu", binary.path, "--accel", "tcg", "--phase", "firmware,bound"),
        *("--out", scratch / "web01.pack", "--json"),
    )
    assert done.returncode == 0, done.stderr
    origin = json.loads(done.stdout)["origin"]
    assert (origin["kind"], origin["name"], origin["state"]) == ("adopted", "web01", False)
    assert "/etc" not in done.stdout
    with StatePack(scratch / "web01.pack") as pack:
        assert pack.phases == ["firmware", "bound"]
        assert pack.manifest.schema_ == "postload.pack/5"
        assert (pack.manifest.plan.cpus, pack.manifest.plan.machine_properties) == (2, {"usb": False, "hpet": False})
        owned = {device.name: device.sections for device in pack.manifest.devices}
        drivers = {device.name: device.drivers for device in pack.manifest.devices}
        unreached = {device.name: device.unreached for device in pack.manifest.devices}
    assert owned["virtio-blk"] == ["0000:00:05.0/virtio-blk"]
    assert owned["usb-tablet"] == ["0000:00:01.2/1/usb-ptr"]
    assert "cpu_common#1" in owned["platform"]
    assert drivers["virtio-blk"][-1] == "virtio_blk"
    assert "usbhid" in drivers["usb-tablet"]
    assert not any(unreached.values())
    loaded = postload(
        *("replay", scratch / "web01.pack", "--qemu", binary.path, "--phase", "bound", "--schedule", "same"),
        *("--migration", "plain", "--mode", "parked", "--loads", 5, "--quick", "--out", scratch / "out", "--json"),
    )
    assert loaded.returncode in (0, 1), loaded.stderr
    cells = json.loads(loaded.stdout)["cells"]
    assert {cell["device"] for cell in cells} == owned.keys()
    assert {cell["verdict"] for cell in cells if cell["device"] != "platform"} == {"ok"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("-machine pc,", "-machine pc-i440fx-99.9,"), "machine type 'pc-i440fx-99.9': QEMU"),
        (("-cpu host,", "-cpu Skylake-Sever,"), "CPU model 'Skylake-Sever': QEMU"),
        (("drive=form,", "drive=gone,"), "web01.sh:9: -device: drive=gone: expected the name of one"),
    ],
)
def test_what_the_qemu_lacks_is_said_before_anything_is_loaded(
    binary: QemuBinary, postload: Callable[..., Done], scratch: Path, changed: tuple[str, str], said: str
) -> None:
    vm = scratch / "web01.sh"
    vm.write_text(WEB01.replace(*changed))
    done = postload("adopt", "--command-line", vm, "--qemu", binary.path, "--out", scratch / "web01.pack")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert not (scratch / "web01.pack").exists()
