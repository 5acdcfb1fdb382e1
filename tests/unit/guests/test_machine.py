# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest machine's command line and its scratch images."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.arch import AARCH64, X86_64
from harness.errors import HostError
from harness.guests.machine import Machine, firmware_sink, guest_options, merge_options
from harness.qemu.cmdline import Option

MACHINE = Machine(
    name="pc-i440fx-7.2",
    family="pc",
    accel="tcg",
    options=(Option(name="blockdev", first="file", props={"filename": "{workdir}/a.img", "read-only": True}),),
    files=(("a.img", 3 << 20), ("b.img", 0)),
)


def test_the_command_line_is_stopped_bare_and_in_its_folder() -> None:
    command = MACHINE.command("/usr/bin/qemu", Path("/run/a,b"), firmware_sink())
    assert command.argv() == [
        "/usr/bin/qemu", "-nodefaults", "-no-user-config", "-no-reboot", "-S",
        "-display", "none", "-machine", "pc-i440fx-7.2", "-accel", "tcg",
        "-blockdev", "file,filename=/run/a,,b/a.img,read-only=on",
        "-chardev", "null,id=firmware",
    ]  # fmt: skip


def test_guest_options_keep_the_kernels_commas() -> None:
    options = guest_options(
        X86_64,
        "tcg",
        kernel=Path("/c,d/vmlinux"),
        initramfs=Path("/c/i"),
        cmdline="console=ttyS0,115200 quiet",
        memory_mib=128,
        cpus=2,
    )
    argv = [argument for option in options for argument in option.argv()]
    assert argv == [
        "-m", "128", "-smp", "2", "-kernel", "/c,d/vmlinux", "-initrd", "/c/i",
        "-append", "console=ttyS0,115200 quiet",
        "-device", "isa-debugcon,iobase=0x402,chardev=firmware",
    ]  # fmt: skip


def test_a_machine_without_firmware_has_no_port_for_its_log_but_a_cpu_of_64_bits() -> None:
    options = guest_options(
        AARCH64, "tcg", kernel=Path("/k"), initramfs=Path("/i"), cmdline="quiet", memory_mib=128, cpus=1
    )
    argv = [argument for option in options for argument in option.argv()]
    assert argv == [
        "-cpu", "cortex-a57", "-m", "128", "-smp", "1", "-kernel", "/k", "-initrd", "/i", "-append", "quiet",
    ]  # fmt: skip


def test_options_keep_their_order() -> None:
    a, b, c = (Option(name=name) for name in "abc")
    assert merge_options([[a], [], [b, c]]) == (a, b, c)


def test_scratch_images_are_empty_and_as_large_as_said(tmp_path: Path) -> None:
    MACHINE.make_files(tmp_path)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"a.img": 3 << 20, "b.img": 0}
    assert (tmp_path / "a.img").stat().st_blocks == 0


def test_an_image_that_cannot_be_made_is_the_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot make .*a\.img"):
        MACHINE.make_files(tmp_path / "gone")
