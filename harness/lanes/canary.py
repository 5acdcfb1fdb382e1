# SPDX-License-Identifier: GPL-2.0-or-later
"""The canary: state with a planted fault, which has to come out red.

A harness that loads nothing, looks at nothing or loses what it saw finds every device well. So a run may ask for a
canary: the ordinary lane, worker and oracle load a machine's own state, in which one section says that it is of a
version that no QEMU has. Every QEMU refuses that (``migration/savevm.c``: "unsupported version"), whatever the section
holds. The incoming stream is left whole, so that it is the checkpoint that is refused.
"""

from __future__ import annotations

from dataclasses import replace

from harness.engines.buffers import Buffers
from harness.errors import HarnessError
from harness.names import PLATFORM
from harness.packs.pack import StatePack
from harness.state.transforms import GuestMode, cpu_labels, label_of
from harness.stream.model import Section

#: Of no section of any QEMU.
SPOILT_VERSION = 0x7FFFFFFF


class SpoiltBuffers(Buffers):
    """Buffers of a pack whose checkpoints have the fault."""

    def _checkpoint_sections(self, phase: str, mode: GuestMode) -> list[Section]:
        label = spoilt_section(self.pack, phase)
        return [_spoilt(section, label) for section in super()._checkpoint_sections(phase, mode)]


def spoilt_section(pack: StatePack, phase: str) -> str:
    """The section that has the fault: the first of the platform that is no CPU's.

    :raises HarnessError: the recording has none
    """
    recording = pack.recordings[phase]
    able = frozenset(pack.sections_of(PLATFORM)) - cpu_labels(recording)
    for section in recording.sections:
        if label_of(section) in able:
            return label_of(section)
    raise HarnessError(f"phase {phase}: no section of {PLATFORM} can be spoilt")


def _spoilt(section: Section, label: str) -> Section:
    return replace(section, version_id=SPOILT_VERSION) if label_of(section) == label else section
