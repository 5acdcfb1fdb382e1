# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU adds by itself is what machines of that family have."""

from __future__ import annotations

import pytest

from harness.adopt.builtin import expand
from harness.adopt.commandline import read_command_line


def types(line: str, family: str) -> list[str]:
    found = expand(read_command_line(line, "vm.args"), family)
    return [str(option.values["driver"]) for option in found.devices]


def test_a_pc_has_a_display_a_port_and_a_network_card() -> None:
    assert {"VGA", "isa-parallel", "e1000"} <= set(types("qemu-system-x86_64 -m 512", "pc"))


def test_virt_has_a_network_card_and_nothing_of_a_pc() -> None:
    assert types("qemu-system-aarch64 -machine virt", "virt") == ["virtio-net-pci"]


@pytest.mark.parametrize(("family", "program"), [("pc", "x86_64"), ("q35", "x86_64"), ("virt", "aarch64")])
def test_without_defaults_there_is_nothing(family: str, program: str) -> None:
    assert types(f"qemu-system-{program} -nodefaults", family) == []
