# SPDX-License-Identifier: GPL-2.0-or-later
"""The newc archive, byte for byte."""

from __future__ import annotations

from pathlib import Path

from harness.guests.initramfs import Archive, OnBoard, build_initramfs
from harness.guests.kernel import Module

TRAILER = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B00000000TRAILER!!!\0" + bytes(3)


def test_a_file_in_a_folder_and_a_device() -> None:
    archive = Archive()
    archive.file("d/abc", b"hello", 0o755)
    archive.device("n", 5, 64)
    expected = (
        # d: a folder, 0o40755
        b"070701"
        b"00000001"
        b"000041ED"
        b"00000000"
        b"00000000"
        b"00000002"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000002"
        b"00000000"
        b"d\0"
        # d/abc: a file, 0o100755, 5 bytes; the name ends at 116, the data is padded from 5 to 8
        b"070701"
        b"00000002"
        b"000081ED"
        b"00000000"
        b"00000000"
        b"00000001"
        b"00000000"
        b"00000005"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000006"
        b"00000000"
        b"d/abc\0"
        b"hello\0\0\0"
        # n: a character device, 0o20600
        b"070701"
        b"00000003"
        b"00002180"
        b"00000000"
        b"00000000"
        b"00000001"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000005"
        b"00000040"
        b"00000002"
        b"00000000"
        b"n\0"
    )
    assert archive.to_bytes() == expected + TRAILER


def test_parents_come_before_children() -> None:
    archive = Archive()
    for path in ("a/b/c", "a-b", "a/b-c"):
        archive.file(path, b"")
    data = archive.to_bytes()
    places = [data.index(path) for path in (b"a\0", b"a/b\0", b"a/b/c\0", b"a/b-c\0", b"a-b\0")]
    assert places == sorted(places)


BASE, MIDDLE = Module(name="base", path=Path("base.ko")), Module(name="middle", path=Path("middle.ko"))
TOP = Module(name="top", path=Path("top.ko"), aliases=("pci:v00008086d0000100E*", "pci:v1d2*"))
ORDER = {"top": [BASE, MIDDLE, TOP], "middle": [BASE, MIDDLE], "base": [BASE]}


def test_modprobe_finds_what_a_module_needs_the_first_to_load_last_and_aliases() -> None:
    tables = OnBoard(load_order=ORDER, data={}, builtin=["tpm", "8250"]).tables()
    assert tables == {
        "modules.dep": "base.ko: \nmiddle.ko: base.ko\ntop.ko: middle.ko base.ko\n",
        "modules.alias": "alias pci:v00008086d0000100E* top\nalias pci:v1d2* top\n",
        "modules.builtin": "8250.ko\ntpm.ko\n",
    }


def test_the_initramfs_has_modules_with_their_tables_and_parameters_and_the_shells_library() -> None:
    def build(order: dict[str, list[Module]]) -> bytes:
        modules = OnBoard(load_order=order, data={"top": b"TOP", "base": b"BASE"}, options={"top": "slow=0"})
        return build_initramfs(init=b"#!init", library=b"load() {", busybox=b"BB", modules=modules)

    data = build(ORDER)
    assert b"top.ko: middle.ko base.ko\n" in data
    assert b"options top slow=0\n" in data
    assert b"load() {" in data
    for member in (
        b"init",
        b"bin/busybox",
        b"dev/console",
        b"modules/top.ko",
        b"modules/modules.alias",
        b"lib/modules",
    ):
        assert member + b"\0" in data
    assert build(dict(reversed(ORDER.items()))) == data
