# SPDX-License-Identifier: GPL-2.0-or-later
"""A case, a bundle or a run's folder from elsewhere: what it names is run only where it is known, or made here."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cache import CACHE_VARIABLE, prunable, remove_kept
from harness.devices.backends import Chardev, Disk, LoneTap, Memdev, Netdev, Tpm
from harness.errors import PackError
from harness.guests import machine as machine_module
from harness.guests.machine import Boot, Machine
from harness.guests.plan import Cpu, GuestPlan, NumaNode, PlacedDevice, Preset, Topology
from harness.qemu.cmdline import Option
from harness.qemu.installed import qemus_folder, used_before
from harness.qemu.listed import Listing, classified
from harness.triage.case import CASE_FILE, Case, CaseCheckpoint, Expect, Rate, Spent
from harness.triage.elsewhere import check_case, machine_of, made_here, remember_case

PLAN = GuestPlan(
    machine="pc-q35-7.2",
    family="q35",
    cpus=2,
    memory_mib=128,
    kernel="0" * 64,
    initramfs="0" * 64,
    cmdline="console=ttyS0 quiet",
    devices=(
        PlacedDevice(id="port", type="pcie-root-port", bus="pcie.0", slot="04.0", properties={"chassis": 1}),
        PlacedDevice(id="blk", type="virtio-blk-pci", bus="port", slot="00.0", backends={"drive": "disk"}),
        PlacedDevice(id="nul", type="virtio-blk-pci", bus="pcie.0", slot="05.0", backends={"drive": "void"}),
        PlacedDevice(
            id="net", type="virtio-net-pci", properties={"mac": "52:54:00:12:34:56"}, backends={"netdev": "n"}
        ),
        PlacedDevice(id="ser", type="isa-serial", backends={"chardev": "c"}),
        PlacedDevice(id="chip", type="tpm-tis", backends={"tpmdev": "t"}),
    ),
    backends={
        "disk": Disk(size_bytes=1 << 20, sector_bytes=4096),
        "void": Disk(size_bytes=1 << 20, medium="null"),
        "n": Netdev(),
        "c": Chardev(),
        "t": Tpm(),
    },
)
BOOT = Boot(kernel=Path("{case}/kernel"), initramfs=Path("{case}/initrd"))
MACHINE = Machine(plan=PLAN, accel="tcg", boot=BOOT)
CASE = Case(
    cell="x",
    verdict="crash",
    failure_class=None,
    kind="load",
    signature=None,
    expect=Expect(verdict="crash"),
    qemu={},
    machine=PLAN.machine,
    family=PLAN.family,
    accel="tcg",
    options=MACHINE.options,
    scratch=dict(MACHINE.files),
    guest_mode="parked",
    run_s=0.0,
    dialect_resets=False,
    head=b"",
    body=b"",
    checkpoints=(CaseCheckpoint(devices=b"x"),),
    loads=1,
    back_to_back=False,
    sections=(),
    fields=(),
    ram_pages=0,
    rate=Rate(failed=1, tried=1),
    spent=Spent(),
)
_BLK = {"drive": classified("str", ""), "romfile": classified("str", ""), "logical_block_size": classified("size", "")}
LISTING = Listing(
    devices={
        "pcie-root-port": {"chassis": classified("uint8", "")},
        "virtio-blk-pci": _BLK,
        "virtio-net-pci": {"netdev": classified("str", ""), "mac": classified("str", "")},
        "isa-serial": {"chardev": classified("str", "")},
        "tpm-tis": {"tpmdev": classified("str", "")},
    },
    machine={},
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(machine_module, "listing", lambda *_: LISTING)
    return tmp_path / "cache"


def test_the_machine_of_a_case_is_read_back_from_its_options() -> None:
    again = machine_of(CASE)
    assert again.options == MACHINE.options
    assert again.plan.devices[0] == PLAN.devices[0]
    assert again.plan.backends == PLAN.backends


def test_the_machine_of_an_adopted_vm_is_read_back_too() -> None:
    card = PlacedDevice(id="net", type="virtio-net-pci", bus="pcie.0", slot="03.0", backends={"netdev": "n"})
    plan = GuestPlan(
        machine="pc-q35-7.2",
        family="q35",
        machine_properties={"hpet": False, "usb": True},
        cpus=4,
        cpu=Cpu(model="Skylake-Client", features={"vmx": False, "level": 22, "vendor": "GenuineIntel"}),
        topology=Topology(sockets=2, cores=2),
        memory_mib=512,
        memory_room_mib=512,
        memory_slots=2,
        devices=(card,),
        numa=(NumaNode(number=0, cpus=(0, 1), memdev="m0"), NumaNode(number=1, cpus=(2, 3), memdev="m1")),
        backends={"n": LoneTap(queues=4), "m0": Memdev(size_bytes=256 << 20), "m1": Memdev(size_bytes=256 << 20)},
        presets=(Preset(driver="ICH9-LPC", property="disable_s3", value=1),),
    )
    for wanted in (plan, plan.model_copy(update={"numa": (), "ram": "m0"}).with_devices((card,))):
        machine = Machine(plan=wanted, accel="tcg")
        case = replace(CASE, options=machine.options, scratch={})
        assert machine_of(case).options == machine.options
        assert machine_of(case).plan == wanted


@pytest.mark.parametrize("device", [device.id for device in PLAN.devices[1:]])
def test_a_case_may_lack_a_device_with_its_backends(tmp_path: Path, device: str) -> None:
    left = [d.model_copy(update={"owner": "" if d.id != device else "gone"}) for d in PLAN.devices]
    machine = replace(MACHINE, plan=PLAN.model_copy(update={"devices": tuple(left)}).only(()))
    assert len(machine.options) < len(MACHINE.options)
    check_case(replace(CASE, options=machine.options, scratch=dict(machine.files)).save(tmp_path / "case"), ["qemu"])


def test_a_case_may_lack_the_guest(tmp_path: Path) -> None:
    options = tuple(o for o in CASE.options if o.name not in ("kernel", "initrd", "append", "m"))
    check_case(replace(CASE, options=options).save(tmp_path / "case"), ["qemu"])


def test_a_whole_case_is_held_against_a_qemu(tmp_path: Path) -> None:
    check_case(CASE.save(tmp_path / "case"), ["qemu"])


def option(name: str, first: str | None = None, **props: Any) -> Option:
    return Option(name=name, first=first, props=props)


FORGED = [
    option("monitor", "stdio"),
    option("m", "128,slots=1"),
    option("smp", "2,sockets=2"),
    option("kernel", "/boot/vmlinuz"),
    option("initrd", "/etc/shadow"),
    option("append", "a\n-monitor"),
    option("cpu", "host"),
    option("fsdev", "local", id="f", path="/"),
    option("add-fd", "fd=1"),
    option("readconfig", "/tmp/x"),
    option("L", "/tmp"),
    option("plugin", "/tmp/evil.so"),
    option("object", "rng-random", id="r", filename="/etc/shadow"),
    option("chardev", "pty", id="c"),
    option("chardev", "null", id="c", logfile="/tmp/x"),
    option("chardev", "socket", id="c", path="/run/docker.sock"),
    option("netdev", "user", id="n", restrict=False),
    option("netdev", "user", id="n", hostfwd="tcp::22-:22"),
    option("netdev", "bridge", id="n", helper="sh"),
    option("netdev", "tap", id="n", ifname="tap0", script="x", downscript="x"),
    option("blockdev", "file", **{"node-name": "disk-file", "filename": "/etc/shadow"}),
    option("blockdev", "file", **{"node-name": "disk-file", "filename": "{workdir}/../x"}),
    option("blockdev", "qcow2", **{"node-name": "disk", "file": "disk-file"}),
    option("blockdev", "nbd", **{"node-name": "disk", "server.host": "10.0.0.1"}),
    option("drive", file="/etc/shadow"),
    option("machine", None, dumpdtb="/tmp/x"),
    option("machine", None, **{"memory-backend": "disk"}),
    option("numa", "node", nodeid=0, memdev="disk"),
    option("cpu", "max", **{"model-id": "/etc"}),
    option("object", "memory-backend-file", id="m", size=4096, share=True, **{"mem-path": "/dev/mem"}),
    option("netdev", "tap", id="n", fd=0, queues=1),
    option("global", "virtio-blk-pci.romfile=/etc/passwd"),
    option("device", "vfio-pci", id="x", host="0000:00:02.0"),
    option("device", "virtio-blk-pci", id="x", drive="disk", romfile="/etc/passwd"),
    option("device", "virtio-blk-pci", id="x", romfile="disk"),
    option("device", "virtio-blk-pci", id="x", romfile="word"),
    option("device", "virtio-blk-pci,romfile=x", id="x"),
    option("device", "virtio-blk-pci", id="x", bus="nowhere.0"),
    option("device", None, id="x", driver="virtio-blk-pci"),
    option("device", "virtio-blk", id="x", drive="disk"),
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: " ".join(forged.argv()))
def test_an_option_that_this_program_does_not_make_is_refused(tmp_path: Path, forged: Option) -> None:
    folder = replace(CASE, options=(*CASE.options, forged)).save(tmp_path / "case")
    with pytest.raises(PackError, match=rf"^{folder}/case\.json: "):
        check_case(folder, ["qemu"])


@pytest.mark.parametrize(
    "changed",
    [
        {"scratch": {"../x.img": 1}},
        {"scratch": {"other.img": 1}},
        {"machine": "pc-q35-7.2,dumpdtb=x"},
        {"accel": "xen"},
    ],
)
def test_what_stands_beside_the_options_is_checked_too(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = CASE.save(tmp_path / "case")
    document = json.loads((folder / CASE_FILE).read_text())
    (folder / CASE_FILE).write_text(json.dumps(document | changed))
    with pytest.raises(PackError, match=r"case\.json: "):
        check_case(folder, ["qemu"])


def test_a_case_that_was_made_here_is_not_asked_until_somebody_changes_it(tmp_path: Path) -> None:
    own = replace(CASE, options=(*CASE.options, option("netdev", "tap", id="t", ifname="tap0")))
    folder = own.save(tmp_path / "case")
    remember_case(folder)
    check_case(folder, ["qemu"])
    (folder / CASE_FILE).write_text((folder / CASE_FILE).read_text() + "\n")
    with pytest.raises(PackError, match=r"case\.json: "):
        check_case(folder, ["qemu"])


def test_marks_of_cases_go_when_nobody_asks_for_them_any_more(tmp_path: Path, own_cache: Path) -> None:
    folder = CASE.save(tmp_path / "case")
    remember_case(folder)
    (mark,) = prunable()
    os.utime(mark.path, (0, 0))
    assert made_here(folder)
    (mark,) = prunable()
    assert mark.used_s > 0
    assert remove_kept(mark)
    assert not made_here(folder)
    assert prunable() == []


def test_a_qemu_of_a_document_is_run_only_where_it_was_used_before(cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\ntouch ran\n")
    assert not used_before(program)
    # what it says of itself is not believed
    (tmp_path / "launcher.json").write_text(
        json.dumps({"schema": "postload.launcher/1", "program": "/bin/true", "key": "", "sha256": "ab" * 32})
    )
    (cache / "probe").mkdir(parents=True)
    (cache / "probe" / f"{'ab' * 32}-4.json").write_text("{}")
    assert not used_before(program)
    installed = qemus_folder() / "10.0" / "qemu"
    installed.parent.mkdir(parents=True)
    installed.write_text("#!/bin/sh\n")
    assert used_before(installed)


def test_a_program_that_was_probed_is_one_that_was_used(cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_bytes(b"ELF")
    digest = hashlib.sha256(b"ELF").hexdigest()
    (cache / "probe").mkdir(parents=True)
    (cache / "probe" / f"{digest}-4.json").write_text("{}")
    assert used_before(program)
    program.write_bytes(b"ELF2")
    assert not used_before(program)
