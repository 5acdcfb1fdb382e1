# SPDX-License-Identifier: GPL-2.0-or-later
"""What every experiment is given, and the beginning that all of them have in common.

An experiment plays the primary to a secondary as an engine does, and looks at more than its answers: at its memory,
its saved state, its guest. Each starts with one recorded phase, brought in whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken, Dialect
from harness.engines.buffers import Buffers
from harness.engines.evidence import ANSWER_TIMEOUT_S, Break, break_at
from harness.engines.secondary import Secondary
from harness.guests.machine import Machine
from harness.packs.pack import Recording, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state.transforms import GuestMode, awake, encode, sections_for, without
from harness.stream.model import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One phase of a recording under one QEMU.

    :param resets: the build resets the machine before each device buffer
    :param excluded: labels of sections that come with the incoming stream only
    :param absent: labels of sections that even the incoming stream leaves out
    :param timeout_s: deadline for each answer of the secondary
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    binary: QemuBinary
    dialect: Dialect
    resets: bool
    buffers: Buffers
    phase: str
    excluded: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    timeout_s: float = ANSWER_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    @classmethod
    def of(cls, setting: Setting, **more: Any) -> Self:
        """An experiment in a setting.

        :param more: what else it is given
        """
        return cls(**{each.name: getattr(setting, each.name) for each in fields(Setting)}, **more)

    @property
    def recording(self) -> Recording:
        """The phase as it was recorded."""
        return self.buffers.pack.recordings[self.phase]

    def sections(self, mode: GuestMode, phase: str | None = None) -> list[Section]:
        """Sections of a phase that this QEMU takes.

        :param phase: another one than that of the setting
        """
        return without(sections_for(self.buffers.pack.recordings[phase or self.phase], mode), self.absent)

    def secondary(self, machine: Machine | None = None, env: dict[str, str] | None = None) -> Secondary:
        """A new secondary, which waits for its incoming stream.

        :param machine: what to be, when it is not just the one of the buffers
        :raises QemuError: it does not start
        """
        return Secondary(
            self.binary,
            machine or self.buffers.machine,
            self.dialect,
            timeout_s=self.timeout_s,
            scope=self.scope,
            env=env,
        )

    def begin(self, secondary: Secondary, mode: GuestMode) -> None:
        """Bring the phase in, all of it but what is absent.

        :raises ChannelBroken: it was not taken
        """
        recording = self.recording
        devices = encode(awake(self.sections(mode)))
        secondary.start(recording.head, incoming_body(recording, self.buffers.ram_whole(self.phase), devices))

    def broken(self, error: ChannelBroken, acked: int, phase: str | None = None) -> Break:
        """Where it broke, after so many acknowledged loads.

        :param phase: what was loaded then, when it was another one
        """
        if error.step is Step.INCOMING:
            return break_at(error, 0, self.phase)
        return break_at(error, acked + 1, phase or self.phase)
