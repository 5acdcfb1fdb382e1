# SPDX-License-Identifier: GPL-2.0-or-later
"""A failed load in the words of its cause, whatever the cause is."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import QemuError
from harness.guests.machine import Machine
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qualify.features import explain_features
from harness.qualify.fields import explain_fields, parse_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class PageReason:
    """Why a load failed.

    :param section: label of the section, or None when nothing names it
    :param field: the field or the feature, or None
    :param text: a sentence with the values on both sides
    :param remedy: what to set, or ""
    """

    section: str | None
    field: str | None
    text: str
    remedy: str


def explain_load(log: str, pack: StatePack, phase: str, machine: Machine, binary: QemuBinary) -> list[PageReason]:
    """The reasons of one failed load, features by name where it failed for them; empty when the log says nothing.

    Starts a QEMU of the loading build once or twice, for a fraction of a second each.

    :param log: what the loading QEMU printed
    :param machine: what it was, with the user's own options
    """
    lost = [
        PageReason(section=feature.section, field=feature.name, text=feature.text, remedy=feature.remedy)
        for feature in explain_features(log, pack, phase, machine, binary)
    ]
    if lost:
        return lost
    try:
        evidence = explain_fields(log, pack, phase, machine, binary)
    except QemuError as error:
        why = f"the loading QEMU's own state could not be saved to compare with: {error}"
        return [
            PageReason(section=e.section, field=e.field, text=f"{e.text}; {why}", remedy=e.remedy)
            for e in parse_errors(log)
        ]
    return [PageReason(section=e.section, field=e.field, text=e.sentence, remedy=e.remedy) for e in evidence]
