# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody's VM on a real QEMU: a pack is made of it, and its pack is loaded as any other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.adopt.commandline import read_command_line
from harness.adopt.plan import adopt_plan, check_cpu, known_to
from harness.devices.backends import LoneTap
from harness.errors import UsageError
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.lonetap import has_lone_taps
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm, migrate_to_socket

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
        *(
            "--migration",
            "plain",
            "--guest-mode",
            "parked",
            "--loads",
            5,
            "--quick",
            "--out",
            scratch / "out",
            "--json",
        ),
    )
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    cells = json.loads(loaded.stdout)["cells"]
    assert {cell["key"]["device"] for cell in cells} == owned.keys()
    assert {cell["outcome"]["verdict"] for cell in cells} == {"ok"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("-machine pc,", "-machine pc-i440fx-99.9,"), "machine type 'pc-i440fx-99.9': QEMU"),
        (("-cpu host,", "-cpu Skylake-Sever,"), r"CPU model 'Skylake-Sever': QEMU .* \(near it: Skylake-Server"),
    ],
)
def test_what_the_qemu_lacks_is_said_before_anything_is_loaded(
    binary: QemuBinary, changed: tuple[str, str], said: str
) -> None:
    vm = read_command_line(WEB01.replace(*changed), "web01.sh")

    def adopted() -> None:
        check_cpu(adopt_plan(vm, known_to(binary, vm)), binary, vm.source)

    with pytest.raises(UsageError, match=said):
        adopted()


def test_a_state_that_was_saved_behind_a_tap_is_loaded_behind_one(
    binary: QemuBinary, postload: Callable[..., Done], scratch: Path
) -> None:
    """Behind any other network the card refuses it, with its four queues and the headers that it had."""
    if not has_lone_taps():
        pytest.skip("this host gives no tap device in a network of its own")
    machine = binary.machine("pc")
    assert machine is not None
    properties: dict[str, bool | int | str] = {"mq": True, "vectors": 10}
    card = PlacedDevice(
        id="net0", type="virtio-net-pci", bus="pci.0", slot="03.0", properties=properties, backends={"netdev": "n"}
    )
    plan = GuestPlan(
        machine=machine.name, family="pc", memory_mib=64, devices=(card,), backends={"n": LoneTap(queues=4)}
    )
    workdir = new_workdir()
    with Vm(Machine(plan=plan, accel="tcg").command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        migrate_to_socket(vm, workdir / "migrate.sock", scratch / "tap.state", timeout_s=30.0)
    vm_file = scratch / "tap.sh"
    vm_file.write_text(
        f"qemu-system-x86_64 -M {machine.name} -m 64 -nodefaults -serial null -netdev tap,id=n,fds=3:4:5:6,vhost=on "
        "-device virtio-net-pci,id=net0,netdev=n,mq=on,vectors=10,bus=pci.0,addr=3\n"
    )
    done = postload(
        *("adopt", "--command-line", vm_file, "--state", scratch / "tap.state", "--qemu", binary.path),
        *("--accel", "tcg", "--out", scratch / "tap.pack"),
    )
    assert done.returncode == 0, done.stderr
    assert "adopted: its own saved state" in done.stdout
    assert "replaced: network n: tap -> lone tap" in done.stdout
    loaded = postload(
        *("replay", scratch / "tap.pack", "--qemu", binary.path, "--schedule", "same", "--migration", "plain"),
        *("--loads", 5, "--quick", "--out", scratch / "out", "--json"),
    )
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    cells = json.loads(loaded.stdout)["cells"]
    assert {(cell["key"]["device"], cell["key"]["lane"]) for cell in cells} >= {
        ("virtio-net", "plain"),
        ("virtio-net", "same"),
    }
