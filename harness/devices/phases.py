# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a device comes through the phases of its guest, and why no further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

#: Phase to those before it that a device has to have reached as well, where its guest goes through them.
STANDS_ON = {
    "busy": ("bound",),
    "unbound": ("bound",),
    "rebound": ("unbound",),
    "suspended": ("rebound", "bound"),
    "io-error": ("rebound", "bound"),
}
#: Status of a guest command that says: this device does not get to this phase, and what is printed says why.
NOTHING_TO_DO_STATUS = 3
#: And of one that says: this device hangs, and every one behind it would wait for it.
HUNG_STATUS = 4


class Missed(StrEnum):
    """Why a device did not reach a phase."""

    NOTHING_TO_DO = "nothing-to-do"
    #: QEMU has no ``werror`` and ``rerror`` for its disk: an error goes to the guest, and no request is held back.
    REPORTS_ERRORS = "reports-errors"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreached:
    """A phase that a device did not reach while its guest was recorded; also why a cell was not judged.

    :param step: the guest's command that ended so, such as ``bind``: of an earlier phase where this one stands on that
    :param said: by the guest
    """

    phase: str
    how: Missed
    step: str
    said: str
    kind: Literal["unreached"] = "unreached"


@dataclass(slots=True)
class MissedPhases:
    """The phases that a guest's devices do not reach, while it goes through them."""

    _lacks: dict[str, dict[str, Unreached]] = field(default_factory=dict)

    def goes_on(self, device: str, phase: str) -> bool:
        """Whether a device still has a way into a phase; where it has none, that is written down."""
        lacks = self._lacks.get(device, {})
        for before in STANDS_ON.get(phase, ()):
            if before in lacks:
                lacks.setdefault(phase, replace(lacks[before], phase=phase))
        return phase not in lacks

    def ends(self, device: str, lack: Unreached) -> None:
        """A device does not reach a phase; the first reason is the one that stays."""
        self._lacks.setdefault(device, {}).setdefault(lack.phase, lack)

    @property
    def failed(self) -> bool:
        """Whether a device missed one because a command failed."""
        return any(lack.how is Missed.FAILED for lacks in self._lacks.values() for lack in lacks.values())

    def of(self, device: str) -> Mapping[str, Unreached]:
        """By phase, what a device did not reach."""
        return self._lacks.get(device, {})


def unreached_in(lacks: Mapping[str, Unreached], phases: Sequence[str]) -> list[Unreached]:
    """Why none of some phases was reached; empty where one of them was."""
    found = [lacks[phase] for phase in phases if phase in lacks]
    return found if len(found) == len(phases) else []
