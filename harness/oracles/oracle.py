# SPDX-License-Identifier: GPL-2.0-or-later
"""What an oracle is: it judges what was seen, and starts nothing.

The answers of a secondary are judged by :func:`harness.oracles.load.judge`, which gives one judgement for a session.
An oracle of this module looks at more, and has an opinion on each section or each device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from harness.results.cause import Cause
from harness.results.verdict import Verdict

#: What an experiment brought.
Seen = TypeVar("Seen", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What an oracle says of one section, or of one device as a whole.

    :param causes: empty when all is well
    :param log: what QEMU printed, where that says more
    :param details: what it rests on, fit for JSON
    """

    verdict: Verdict
    causes: tuple[Cause, ...] = ()
    log: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cause(self) -> Cause | None:
        """The first cause."""
        return self.causes[0] if self.causes else None


class Oracle(Protocol[Seen]):
    """Judges what an experiment saw."""

    def __call__(self, seen: Seen, /) -> Mapping[str, Opinion]:
        """Opinions by the label of a section, or the name of a device."""
