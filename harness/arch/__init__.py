# SPDX-License-Identifier: GPL-2.0-or-later
"""Architectures of guests: all that differs between them, and nothing else of this program asks for a name of one."""

from __future__ import annotations

from harness.arch.aarch64 import AARCH64
from harness.arch.model import Architecture, BootProof, Firmware, RootBus, Witness
from harness.arch.x86_64 import X86_64
from harness.errors import UsageError

__all__ = [
    "AARCH64",
    "ARCHITECTURES",
    "X86_64",
    "Architecture",
    "BootProof",
    "Firmware",
    "RootBus",
    "Witness",
    "architecture_named",
    "architecture_of",
    "family_of",
]

#: The first is the one whose emulator is used where nothing says which.
ARCHITECTURES = (X86_64, AARCH64)


def architecture_named(name: str) -> Architecture:
    """By its own name, as in ``query-target``, or by Debian's.

    :raises UsageError: there is no module for it here
    """
    for architecture in ARCHITECTURES:
        if name in (architecture.name, architecture.debian):
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise UsageError(f"guests of architecture {name} are not known here: expected one of {known}")


def architecture_of(machine: str) -> Architecture:
    """Whose machine type this is, versioned or an alias; one of no known family counts as the first's."""
    for architecture in ARCHITECTURES:
        families = architecture.families
        if machine in families.values() or machine.startswith(tuple(families)):
            return architecture
    return ARCHITECTURES[0]


def family_of(machine: str) -> str:
    """``pc``, ``q35`` or ``virt`` for a versioned type such as ``pc-q35-7.2``, else the name itself."""
    families = architecture_of(machine).families
    return next((family for prefix, family in families.items() if machine.startswith(prefix)), machine)
