# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan becomes a command line and images: plain, failing, rewound by checkpoints, or with snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.devices.backends import (
    Audiodev,
    Backend,
    Canbus,
    Chardev,
    Cryptodev,
    Disk,
    Fsdev,
    Ivshmem,
    Memdev,
    Netdev,
    Tpm,
    VhostDisk,
)
from harness.engines.spare import spare_of
from harness.errors import HostError
from harness.guests.images import PATTERN_OFFSET_BYTES, pattern
from harness.guests.machine import SPARE_BYTES, Boot, DiskKind, Machine, firmware_sink, small_machine
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.cmdline import Option

MIB = 1 << 20
BARE = GuestPlan(machine="pc-i440fx-7.2", family="pc", memory_mib=16)
PLAN = GuestPlan(
    machine="pc-q35-7.2",
    family="q35",
    machine_properties={"sata": False},
    cpus=2,
    memory_mib=128,
    devices=(
        PlacedDevice(id="hd", type="ide-hd", owner="a", bus="hba.0", backends={"drive": "a-disk"}),
        PlacedDevice(
            id="nic", type="net-pci", owner="n", bus="pcie.0", slot="04.0",
            properties={"mac": "52:54:00:12:34:56", "fast": True, "n": 3}, backends={"netdev": "n-net"},
        ),
        PlacedDevice(id="tty", type="pci-serial", owner="t", backends={"chardev": "t-line"}),
        PlacedDevice(id="blk", type="virtio-blk-pci", owner="b", backends={"drive": "b-disk"}),
    ),
    backends={
        "a-disk": Disk(size_bytes=64 * MIB),
        "n-net": Netdev(),
        "t-line": Chardev(),
        "b-disk": Disk(size_bytes=MIB, medium="null", sector_bytes=4096),
    },
)  # fmt: skip
MACHINE = Machine(plan=PLAN, accel="tcg")
BLK = (
    "-blockdev", "null-co,node-name=b-disk,size=1048576,read-zeroes=on",
    "-device", "virtio-blk-pci,id=blk,drive=b-disk,logical_block_size=4096,physical_block_size=4096",
)  # fmt: skip
NIC_AND_TTY = (
    "-netdev", "user,id=n-net,restrict=on",
    "-device", "net-pci,id=nic,bus=pcie.0,addr=04.0,mac=52:54:00:12:34:56,fast=on,n=3,netdev=n-net",
    "-chardev", "null,id=t-line",
    "-device", "pci-serial,id=tty,chardev=t-line",
)  # fmt: skip


def argv(machine: Machine) -> list[str]:
    return [argument for option in machine.options for argument in option.argv()]


#: QEMU puts it together with the one that names the machine.
SATA = ["-machine", "sata=off"]


def test_a_machine_type_that_describes_nothing_by_itself_is_told_to() -> None:
    old = replace(MACHINE, plan=GuestPlan(machine="pc-i440fx-2.3", family="pc", memory_mib=64))
    new = replace(MACHINE, plan=GuestPlan(machine="pc-i440fx-2.4", family="pc", memory_mib=64))
    said = [each.command("/usr/bin/qemu", Path("/run")).argv() for each in (old, new)]
    assert ["suppress-vmdesc=off" in each for each in said] == [True, False]


def test_the_command_line_is_stopped_bare_and_in_its_folder() -> None:
    assert MACHINE.command("/usr/bin/qemu", Path("/run/a,b"), firmware_sink()).argv() == [
        "/usr/bin/qemu", "-nodefaults", "-no-user-config", "-no-reboot", "-S",
        "-display", "none", "-machine", "pc-q35-7.2", "-accel", "tcg",
        "-m", "128", "-smp", "2",
        "-blockdev", "file,node-name=a-disk-file,filename=/run/a,,b/a-disk.img",
        "-blockdev", "raw,node-name=a-disk,file=a-disk-file",
        "-device", "ide-hd,id=hd,bus=hba.0,drive=a-disk",
        *NIC_AND_TTY, *BLK, *SATA,
        "-chardev", "null,id=firmware",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "before", "behind"),
    [
        ("pc-i440fx-7.2", [], ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]),
        ("virt-7.2", ["-cpu", "cortex-a57"], []),
    ],
)
def test_a_guest_that_boots(machine: str, before: list[str], behind: list[str]) -> None:
    plan = GuestPlan(
        machine=machine, family="pc", memory_mib=128, kernel="ab" * 32, cmdline="console=ttyS0,115200 quiet"
    )
    boot = Boot(kernel=Path("/c,d/vmlinux"), initramfs=Path("/c/i"))
    assert argv(Machine(plan=plan, accel="tcg", boot=boot)) == [
        *before, "-m", "128", "-smp", "1", "-kernel", "/c,d/vmlinux", "-initrd", "/c/i",
        "-append", "console=ttyS0,115200 quiet", *behind,
    ]  # fmt: skip


def test_what_the_user_adds_is_last_and_options_can_be_left_out() -> None:
    extra = Option(name="global", props={"a.b": "c"})
    machine = replace(MACHINE, extra=(extra,))
    assert machine.options[-1] == extra
    assert argv(replace(machine, dropped=frozenset({1, 2, 3, 4}))) == [
        "-m",
        "128",
        *NIC_AND_TTY,
        *BLK,
        *SATA,
        *extra.argv(),
    ]
    # an image goes with the option that names it
    assert MACHINE.files == (("a-disk.img", 64 * MIB),)
    assert replace(machine, dropped=frozenset({2})).files == ()


@pytest.mark.parametrize(
    ("backend", "given"),
    [
        (Audiodev(), ["-audiodev", "none,id=b"]),
        (Fsdev(), ["-fsdev", "synth,id=b"]),
        (Cryptodev(), ["-object", "cryptodev-backend-builtin,id=b"]),
        (Canbus(), ["-object", "can-bus,id=b"]),
        (Tpm(), ["-tpmdev", "emulator,id=b,chardev=b-line"]),
        (Ivshmem(size_bytes=4096), ["-chardev", "socket,id=b,fd=ivshmem,size=4096"]),
        (Memdev(size_bytes=MIB, share=True), ["-object", "memory-backend-ram,id=b,size=1048576,share=on"]),
    ],
)
def test_backends_stand_before_their_device(backend: Backend, given: list[str]) -> None:
    placed = PlacedDevice(id="x", type="toy", backends={"thing": "b"})
    plan = BARE.model_copy(update={"devices": (placed,), "backends": {"b": backend}})
    assert argv(Machine(plan=plan, accel="tcg"))[-4:] == [*given, "-device", "toy,id=x,thing=b"]


def test_a_disk_behind_vhost_user_has_the_memory_of_the_guest_too() -> None:
    """That memory has the spare pages from the start, since its backend cannot be made longer."""
    placed = PlacedDevice(id="x", type="vhost-user-blk-pci", owner="disk", backends={"chardev": "b"})
    plan = BARE.model_copy(update={"devices": (placed,), "backends": {"b": VhostDisk(size_bytes=MIB)}})
    machine = Machine(plan=plan, accel="tcg")
    assert argv(machine) == [
        *("-m", "16392k", "-smp", "1"),
        *("-object", "memory-backend-memfd,id=postload-memory,size=16392k,share=on"),
        *("-chardev", "socket,id=b,fd=vhost-user-disk,size=1048576"),
        *("-device", "vhost-user-blk-pci,id=x,chardev=b"),
        *("-machine", "memory-backend=postload-memory"),
    ]
    assert (spare_of(machine), spare_of(MACHINE)) == (0, SPARE_BYTES)
    assert not plan.only(()).shares_memory


def test_memory_has_room_and_devices_name_each_other() -> None:
    devices = (PlacedDevice(id="a", type="one"), PlacedDevice(id="b", type="two", references={"other": "a"}))
    plan = BARE.model_copy(update={"devices": devices, "memory_room_mib": 256, "memory_slots": 2})
    given = argv(Machine(plan=plan, accel="tcg"))
    assert given[:2] == ["-m", "16,slots=2,maxmem=272M"]
    assert given[-1] == "two,id=b,other=a"
    with pytest.raises(ValueError, match="b names 'a', which is not among the devices"):
        GuestPlan.model_validate(plan.model_dump() | {"devices": [devices[1].model_dump()]})


def test_a_sector_that_fails() -> None:
    machine = MACHINE.with_faults({"a-disk": 7})
    assert argv(machine)[4:12] == [
        "-blockdev", "file,node-name=a-disk-file,filename={workdir}/a-disk.img",
        "-blockdev", "raw,node-name=a-disk,file=a-disk-file",
        "-blockdev",
        "blkdebug,node-name=a-disk-faults,image=a-disk,inject-error.0.event=none,inject-error.0.errno=5,"
        "inject-error.0.sector=7,inject-error.0.once=off,inject-error.0.immediately=off",
        "-device", "ide-hd,id=hd,bus=hba.0,drive=a-disk-faults,werror=stop,rerror=stop",
    ]  # fmt: skip
    assert argv(machine)[12:] == [*NIC_AND_TTY, *BLK, *SATA]
    assert "inject-error.0.once=on" in argv(MACHINE.with_faults({"a-disk": 7}, once=True))[9]
    assert MACHINE.with_faults({}) == MACHINE


def test_scratch_images_are_empty_and_as_large_as_said(tmp_path: Path) -> None:
    MACHINE.make_files(tmp_path)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"a-disk.img": 64 * MIB}
    assert (tmp_path / "a-disk.img").stat().st_blocks == 0


@pytest.mark.parametrize("kind", [DiskKind.PLAIN, DiskKind.REPLICATION])
def test_images_hold_the_pattern_where_the_guest_wrote_it(tmp_path: Path, kind: DiskKind) -> None:
    replace(MACHINE, disks=kind, patterns={"a-disk": "sda", "gone": "sdz"}).make_files(tmp_path)
    data = (tmp_path / "a-disk.img").read_bytes()
    assert len(data) == 64 * MIB
    assert data[32 * MIB : 32 * MIB + 256 * 1024] == pattern("sda")
    assert data.count(0) == 64 * MIB - 256 * 1024
    assert PATTERN_OFFSET_BYTES == 32 * MIB


def test_replication_stands_between_device_and_image(tmp_path: Path) -> None:
    machine = replace(MACHINE, disks=DiskKind.REPLICATION)
    _, _, parent, secondary, top, device, *rest = machine.options
    assert device == MACHINE.options[4]
    assert tuple(rest) == MACHINE.options[5:]
    assert parent.props["file.filename"] == "{workdir}/a-disk.img"
    assert secondary.props["mode"] == "secondary"
    assert secondary.props["file.backing.backing"] == parent.props["id"]
    assert secondary.props["top-id"] == top.props["id"] == "a-disk"
    assert top.props["children.0"] == secondary.props["id"]
    machine.make_files(tmp_path)
    for key in ("file.file.filename", "file.backing.file.filename"):
        image = tmp_path / str(secondary.props[key]).removeprefix("{workdir}/")
        assert image.read_bytes()[:4] == b"QFI\xfb"
    assert (
        replace(Machine(plan=BARE, accel="tcg"), disks=DiskKind.REPLICATION).options
        == small_machine("pc-i440fx-7.2").options
    )


def test_snapshots_want_qcow2_below_the_same_names(tmp_path: Path) -> None:
    machine = replace(MACHINE, disks=DiskKind.SNAPSHOTS)
    drivers = {o.props["node-name"]: o.first for o in machine.options if o.name == "blockdev"}
    assert drivers == {
        "a-disk-file": "file", "a-disk": "qcow2", "b-disk": "null-co",
        "postload-vmstate-file": "file", "postload-vmstate": "qcow2",
    }  # fmt: skip
    machine.make_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-disk.img", "postload-vmstate.qcow2"]
    assert all(path.read_bytes()[:4] == b"QFI\xfb" for path in tmp_path.iterdir())


def test_a_machine_without_a_disk_still_has_a_place_for_its_snapshot(tmp_path: Path) -> None:
    machine = replace(small_machine("pc-i440fx-7.2"), disks=DiskKind.SNAPSHOTS)
    machine.make_files(tmp_path)
    (image,) = tmp_path.iterdir()
    assert f"{{workdir}}/{image.name}" in [option.props.get("filename") for option in machine.options]


def test_an_image_that_cannot_be_made_is_the_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot make images in .*gone"):
        MACHINE.make_files(tmp_path / "gone")
