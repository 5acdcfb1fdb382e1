# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU a VM is recorded with where nobody names one: the host's own where that has its machine type, else the
oldest installed one that has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePath

from packaging.version import Version

from harness.adopt.configuration import Configuration
from harness.adopt.plan import machine_of, plain_machine, said_machine
from harness.adopt.scalars import as_text
from harness.arch import ARCHITECTURES, Architecture, architecture_of
from harness.errors import MissingError, UsageError
from harness.qemu.binary import QemuBinary, host_binary, probe_binary
from harness.qemu.installed import entries
from harness.qemu.versions import first_with


def architecture_of_vm(configuration: Configuration) -> Architecture:
    """What a VM's program runs guests of; where it names none that says so, what has its machine type.

    :raises UsageError: an architecture that this program does not know
    """
    match = re.fullmatch(r"qemu-system-(\w+)", PurePath(configuration.binary).name)
    if match is None:
        return architecture_of(said_machine(configuration))
    wanted = "x86_64" if match[1] == "i386" else match[1]
    for architecture in ARCHITECTURES:
        if architecture.name == wanted:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise UsageError(f"{configuration.source}: a guest of {wanted}: expected one of {known}")


def runs_under_kvm(configuration: Configuration) -> bool:
    """Whether a VM asks for KVM, first among what it asks for."""
    said = [as_text(option.values.get("accel")) for option in configuration.named("accel", "machine")]
    return any(text.partition(":")[0] == "kvm" for text in said)


def qemus_here(architecture: Architecture) -> Iterator[QemuBinary]:
    """The QEMUs of this host for an architecture: its own, then those that are installed, the oldest first; each is
    asked when its turn comes."""
    with suppress(MissingError):
        yield probe_binary(host_binary(architecture.program))
    for entry in sorted(entries(), key=lambda each: Version(each.version)):
        if entry.whole and (binary := probe_binary(entry.launcher)).target == architecture.name:
            yield binary


def has_machine(binary: QemuBinary, machine: str) -> bool:
    """Whether a QEMU has a machine type, as somebody wrote it; one that nobody named each has."""
    return not machine or machine_of(binary, machine) is not None


def recorder_of(configuration: Configuration, machine: str) -> QemuBinary:
    """The QEMU that a VM is recorded with.

    :param machine: its machine type, or what is taken in its place
    :raises UsageError: none here has that; says what to install
    """
    architecture = architecture_of(machine) if machine else architecture_of_vm(configuration)
    versions = []
    for binary in qemus_here(architecture):
        if has_machine(binary, machine):
            return binary
        versions.append(binary.version)
    install = first_with(plain_machine(machine), architecture.name)
    raise UsageError(
        f"{configuration.source}: machine type {machine!r}: no QEMU here has it (here: "
        f"{', '.join(dict.fromkeys(versions)) or 'none'}); expected one that has "
        f"({f'postload qemu install {install}' if install else '--qemu'}), or another type (--machine)"
    )
