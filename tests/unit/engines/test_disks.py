# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a secondary: what stands in the images, and which nodes the devices see."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.engines.disks import PATTERN_OFFSET_BYTES, DiskKind, empty_qcow2, pattern, with_disks
from harness.errors import HostError
from harness.guests.machine import Machine
from harness.qemu.cmdline import Option

MIB = 1 << 20
FILE = Option(name="blockdev", first="file", props={"node-name": "f0", "filename": "{workdir}/a.img"})
RAW = Option(name="blockdev", first="raw", props={"node-name": "disk0", "file": "f0"})
DEVICE = Option(name="device", first="ide-hd", props={"drive": "disk0"})
MACHINE = Machine(
    name="pc-i440fx-7.2",
    family="pc",
    accel="tcg",
    options=(Option(name="m", first="128"), FILE, RAW, DEVICE),
    files=(("a.img", 64 * MIB), ("b.img", 1 * MIB)),
)


def test_the_pattern_is_256_kib_and_no_two_lines_are_alike() -> None:
    data = pattern("sda")
    assert len(data) == 256 * 1024
    lines = [data[start : start + 64] for start in range(0, len(data), 64)]
    assert len(set(lines)) == 4096
    assert lines[0] == b"postload pattern sda" + b" " * 35 + b"00000000\n"
    assert lines[4095].endswith(b" 00004095\n")
    other = pattern("vda")
    assert not set(lines) & {other[start : start + 64] for start in range(0, len(other), 64)}


@pytest.mark.parametrize("kind", list(DiskKind))
def test_images_hold_the_pattern_where_the_guest_wrote_it(tmp_path: Path, kind: DiskKind) -> None:
    with_disks(MACHINE, kind, {"a.img": "sda", "gone.img": "sdz"}).make_files(tmp_path)
    data = (tmp_path / "a.img").read_bytes()
    assert len(data) == 64 * MIB
    assert data[32 * MIB : 32 * MIB + 256 * 1024] == pattern("sda")
    assert data.count(0) == 64 * MIB - 256 * 1024
    assert (tmp_path / "b.img").read_bytes() == bytes(MIB)
    assert not (tmp_path / "gone.img").exists()
    assert PATTERN_OFFSET_BYTES == 32 * MIB


def test_plain_disks_leave_the_machine_as_it_is(tmp_path: Path) -> None:
    machine = with_disks(MACHINE, DiskKind.PLAIN, {})
    assert machine.options == MACHINE.options
    machine.make_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img", "b.img"]


def test_replication_stands_between_device_and_image(tmp_path: Path) -> None:
    machine = with_disks(MACHINE, DiskKind.REPLICATION, {})
    assert machine.name == MACHINE.name
    memory, parent, secondary, top, device = machine.options
    assert (memory, device) == (MACHINE.options[0], DEVICE)
    assert parent.props["file.filename"] == "{workdir}/a.img"
    assert secondary.props["mode"] == "secondary"
    assert secondary.props["file.backing.backing"] == parent.props["id"]
    assert secondary.props["top-id"] == top.props["id"] == "disk0"
    assert top.props["children.0"] == secondary.props["id"]
    machine.make_files(tmp_path)
    for key in ("file.file.filename", "file.backing.file.filename"):
        image = tmp_path / str(secondary.props[key]).removeprefix("{workdir}/")
        assert image.read_bytes()[:4] == b"QFI\xfb"


def test_a_machine_without_disks_is_left_alone() -> None:
    bare = Machine(name="q35", family="q35", accel="tcg", options=(Option(name="m", first="16"),), files=())
    assert with_disks(bare, DiskKind.REPLICATION, {"a.img": "sda"}).options == bare.options


def test_an_empty_qcow2() -> None:
    data = empty_qcow2(64 * MIB)
    assert len(data) == 4 * 65536
    magic, version, backing, _, bits, size, crypt = struct.unpack_from(">IIQIIQI", data)
    assert (magic, version, backing, bits, size, crypt) == (0x514649FB, 3, 0, 16, 64 * MIB, 0)
    l1_entries, l1, refcounts, refcount_clusters = struct.unpack_from(">IQQI", data, 36)
    assert (l1_entries, l1, refcounts, refcount_clusters) == (1, 3 * 65536, 65536, 1)
    assert struct.unpack_from(">II", data, 96) == (4, 104)
    assert struct.unpack_from(">Q", data, 65536) == (2 * 65536,)
    assert struct.unpack_from(">5H", data, 2 * 65536) == (1, 1, 1, 1, 0)
    assert not any(data[3 * 65536 :])


def test_an_image_that_is_too_large_for_one_table() -> None:
    assert struct.unpack_from(">I", empty_qcow2(1 << 40), 36) == (2048,)
    with pytest.raises(HostError, match="L1 table"):
        empty_qcow2(1 << 50)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        with_disks(MACHINE, DiskKind.PLAIN, {}).make_files(tmp_path / "gone")
