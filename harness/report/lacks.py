# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a device cannot be judged on a machine, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.guests.lack import Lack, Lacks
from harness.state.devicecheck import CheckedStep, StepNote


def lack_text(lack: Lack) -> str:
    """One reason in one line."""
    return _TEXTS[lack.what](lack)


def program_text(lack: Lack) -> str:
    """A program that this host has not, and where to have it from."""
    program, package = lack.names
    return f"{program}, which is in Debian's package {package}"


def _names(lack: Lack) -> str:
    return ", ".join(lack.names)


_TEXTS: Mapping[Lacks, Callable[[Lack], str]] = {
    Lacks.MACHINE: lambda lack: f"QEMU {lack.qemu} has no machine {lack.machine}",
    Lacks.TYPES: lambda lack: f"QEMU {lack.qemu} has no device {_names(lack)}",
    Lacks.RECORDED_TYPES: lambda lack: f"the recorded guest has {_names(lack)}, which QEMU {lack.qemu} has not",
    Lacks.PROGRAM: lambda lack: f"this host has no {program_text(lack)}",
    Lacks.BUS: lambda lack: f"no bus of machine {lack.machine} is known to this program",
    Lacks.SLOT: lambda lack: f"all slots of {_names(lack)} are taken",
    Lacks.PORTS: lambda lack: f"machine {lack.machine} has no PCIe ports",
    Lacks.GUEST_NAMES: lambda lack: f"another device of its guest takes {_names(lack)}",
    Lacks.IDS: lambda lack: f"its parts would have ids that are there already: {_names(lack)}",
    Lacks.START: lambda lack: f"QEMU {lack.qemu} does not run with it: {lack.said}",
    Lacks.SAVE: lambda lack: f"QEMU {lack.qemu} fails to save a machine that has it: {lack.said}",
    Lacks.MIGRATION: lambda lack: f"QEMU {lack.qemu} does not migrate a machine that has it: {lack.said}",
    Lacks.COLO: lambda lack: (
        f"QEMU {lack.qemu} does not start COLO with {_names(lack) or 'it'}: {lack.said or 'it printed no reason'}"
    ),
    Lacks.SECTION: lambda lack: f"machine {lack.machine} of QEMU {lack.qemu} saves no section of its own for it",
}

_NOTES = {
    StepNote.REST: "all that no other device owns",
    StepNote.NO_COMMAND: "the recipe has none",
    StepNote.STILL: "before busy it says that nothing moves, as it should",
    StepNote.PASSES_IDLE: "it passes before busy has begun: it does not tell whether the device moves",
}


def step_text(step: CheckedStep) -> str:
    """What was found when a device was tried, or what is wrong; empty where there is nothing to say."""
    if step.lack is not None:
        return lack_text(step.lack)
    return step.said or ", ".join(step.names) or (_NOTES[step.note] if step.note else "")
