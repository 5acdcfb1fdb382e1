# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines as QEMU reads them."""

from __future__ import annotations

import pytest

from harness.qemu.cmdline import CommandLine, Option, Scalar, encode_value


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "on"), (False, "off"), (0, "0"), (1, "1"), (-3, "-3"), ("", ""), ("a,b,,c", "a,,b,,,,c"), ("on", "on")],
)
def test_values(value: Scalar, text: str) -> None:
    assert encode_value(value) == text


@pytest.mark.parametrize(
    ("option", "argv"),
    [
        (Option(name="S"), ["-S"]),
        (Option(name="m", first="16"), ["-m", "16"]),
        (Option(name="m", first=""), ["-m", ""]),
        (Option(name="device", first="x", props={"b": True, "a": 1}), ["-device", "x,b=on,a=1"]),
        (Option(name="drive", props={"file": "/a,b/c", "if": "none"}), ["-drive", "file=/a,,b/c,if=none"]),
        (Option(name="append", first="console=ttyS0,115200"), ["-append", "console=ttyS0,115200"]),
        (Option(name="kernel", first="/a,b/vmlinux"), ["-kernel", "/a,b/vmlinux"]),
        (Option(name="initrd", first="/a,b/i"), ["-initrd", "/a,b/i"]),
        (Option(name="incoming", first="unix:/a,b"), ["-incoming", "unix:/a,b"]),
    ],
)
def test_options(option: Option, argv: list[str]) -> None:
    assert option.argv() == argv


def test_a_line_is_extended_and_not_changed() -> None:
    line = CommandLine(binary="qemu", options=(Option(name="S"), Option(name="nodefaults")))
    longer = line.plus(Option(name="m", first="1"))
    assert line.argv() == ["qemu", "-S", "-nodefaults"]
    assert longer.argv() == ["qemu", "-S", "-nodefaults", "-m", "1"]
