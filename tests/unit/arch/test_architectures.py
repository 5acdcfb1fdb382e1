# SPDX-License-Identifier: GPL-2.0-or-later
"""Which architecture a machine or a name is of, and what each one knows."""

from __future__ import annotations

import pytest

from harness.arch import AARCH64, X86_64, Architecture, architecture_named, architecture_of, family_of
from harness.errors import UsageError


@pytest.mark.parametrize(
    ("machine", "architecture", "family"),
    [
        ("pc", X86_64, "pc"),
        ("pc-i440fx-7.2", X86_64, "pc"),
        ("pc-q35-11.1", X86_64, "q35"),
        ("pc-q35-rhel9.4.0", X86_64, "q35"),
        ("virt", AARCH64, "virt"),
        ("virt-7.2", AARCH64, "virt"),
        ("microvm", X86_64, "microvm"),
        ("virtual", X86_64, "virtual"),
    ],
)
def test_a_machine_type_is_of_one_architecture_and_family(
    machine: str, architecture: Architecture, family: str
) -> None:
    assert architecture_of(machine) is architecture
    assert family_of(machine) == family


def test_an_architecture_goes_by_qemus_name_and_by_debians() -> None:
    assert architecture_named("x86_64") is architecture_named("amd64") is X86_64
    assert architecture_named("aarch64") is architecture_named("arm64") is AARCH64
    with pytest.raises(UsageError, match="architecture s390x are not known here: expected one of x86_64, aarch64"):
        architecture_named("s390x")


def test_a_machine_without_a_kernel_is_none_of_a_family() -> None:
    for architecture in (X86_64, AARCH64):
        assert all(family_of(name) == name for name in architecture.without_kernel)
        assert not architecture.without_kernel & {*architecture.families.values()}


def test_only_a_machine_with_firmware_has_its_phase() -> None:
    assert [a.has_phase("firmware") for a in (X86_64, AARCH64)] == [True, False]
    assert [a.has_phase("kernel") for a in (X86_64, AARCH64)] == [True, True]


def test_the_boot_sector_is_what_a_bios_boots() -> None:
    image = X86_64.boot_proof.image
    assert image[:5] == bytes.fromhex("b02ae6f4f4")
    assert image[510:512] == b"\x55\xaa"
    assert len(image) == 1440 * 1024


def test_the_code_that_turns_virt_off_is_what_an_assembler_makes_of_it() -> None:
    # mov w0, #0x8; movk w0, #0x8400, lsl #16; hvc #0; b .
    assert AARCH64.boot_proof.image == bytes.fromhex("00018052 0080b072 020000d4 00000014")
