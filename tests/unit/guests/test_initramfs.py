# SPDX-License-Identifier: GPL-2.0-or-later
"""The newc archive, byte for byte."""

from __future__ import annotations

from pathlib import Path

from harness.guests.initramfs import Archive, build_initramfs
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


def test_the_initramfs_names_modules_in_load_order() -> None:
    modules = [Module(name=name, path=Path(f"{name}.ko")) for name in ("base", "top")]
    arguments = {"init": b"#!init", "busybox": b"BB", "modules": {"top": b"TOP", "base": b"BASE"}}
    data = build_initramfs(**arguments, load_order={"top": modules, "none": []})  # type: ignore[arg-type]
    assert b"modules/top.list\0" in data
    assert b"base /modules/base.ko\ntop /modules/top.ko\n" in data
    for member in (b"init\0", b"bin/busybox\0", b"dev/console\0", b"modules/none.list\0"):
        assert member in data
    again = build_initramfs(**arguments, load_order={"none": [], "top": modules})  # type: ignore[arg-type]
    assert again == data
