# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed load fell over, whatever that is."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import QemuError
from harness.guests.machine import Machine
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qualify.explained import FieldEvidence, LostFeature
from harness.qualify.features import explain_features
from harness.qualify.fields import explain_fields, parse_errors


def explain_load(
    log: str, pack: StatePack, phase: str, machine: Machine, binary: QemuBinary
) -> Sequence[LostFeature | FieldEvidence]:
    """The reasons of one failed load, features by name where it failed for them; empty when the log says nothing.

    Starts a QEMU of the loading build once or twice, for a fraction of a second each.

    :param log: what the loading QEMU printed
    :param machine: what it was, with the user's own options
    """
    lost = explain_features(log, pack, phase, machine, binary)
    if lost:
        return lost
    try:
        return explain_fields(log, pack, phase, machine, binary)
    except QemuError as error:
        return [
            FieldEvidence(
                section=e.section,
                field=e.field,
                said=e.said,
                recorded=e.recorded,
                loading=e.loading,
                setting=e.setting,
                not_compared=str(error),
            )
            for e in parse_errors(log)
        ]
