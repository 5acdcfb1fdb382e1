# SPDX-License-Identifier: GPL-2.0-or-later
"""What a candidate of a reduction is, as data: progress shows it, and its journal keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Trying(StrEnum):
    """What is tried; the value stands in journals."""

    AGAIN = "again"  # the best once more
    NUMBER = "number"  # of the tries that give the rate
    ONE_BARE = "section-without-memory"  # the section that leaks, alone
    ONE = "section"
    BLAMED_BARE = "blamed-without-memory"  # what was blamed, alone
    BLAMED = "blamed"
    INCOMING = "incoming-stream"  # nothing behind it
    PARKED = "parked"
    SAME_PHASE = "same-phase"  # the incoming stream is of the phase that is loaded first
    CHECKPOINTS = "checkpoints"
    IN_ONE_BUFFER = "loads-in-one-buffer"
    SECTIONS = "sections"
    NO_OTHER = "no-other-section"
    CPU_ALONE = "cpu-alone"  # in the incoming stream
    LOADED = "what-is-loaded"  # in the incoming stream, and no more
    BEFORE = "sections-before-first-load"
    NO_MEMORY = "without-memory"
    PAGES = "pages"
    NO_KERNEL = "without-kernel"
    DEVICES = "devices"
    OPTIONS = "options"
    DONOR = "all-fields-of-another-state"  # of the phase ``name``, else of a machine that never ran
    HEALTHY = "field-healthy"  # the field ``name``
    FIELDS = "fields"
    BYTES = "bytes"
    BITS = "bits"


class Loads(StrEnum):
    """How what was blamed is loaded."""

    INCOMING = "incoming"
    ONCE = "once"
    TOGETHER = "twice-in-one-buffer"
    TIMES = "times"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A candidate.

    :param count: of what is left, or of loads
    :param loads: how, for what was blamed
    :param name: of a phase, or the path of a field
    """

    what: Trying
    count: int = 0
    loads: Loads | None = None
    name: str = ""

    def __str__(self) -> str:
        """For a journal: names and numbers, no sentence."""
        return " ".join(str(part) for part in (self.what, self.loads, self.count, self.name) if part)
