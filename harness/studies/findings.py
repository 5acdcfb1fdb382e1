# SPDX-License-Identifier: GPL-2.0-or-later
"""What the questions of ``postload claims`` came to: every single experiment, and the figures that follow. Data alone;
tables and sentences are made of it by :mod:`harness.report.claims`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from harness.results.cause import Cause
from harness.results.outcome import Isolation
from harness.results.verdict import Verdict

# -- question 1 ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCase:
    """One session of whole states.

    :param name: the phase, or ``walk`` over all of them
    :param line: the line of QEMU that tells most, "" where it said nothing
    :param left_out: sections that were not sent, since they broke an earlier session
    :param sections: to blame for this one
    :param isolation: how they were found; None where none was
    """

    name: str
    asked: int
    acked: int
    verdict: Verdict
    line: str = ""
    causes: tuple[Cause, ...] = ()
    log: str = ""
    left_out: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    isolation: Isolation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """The numbers of question 1.

    :param loads: that were made; a session ends with the load that fails
    :param sections_failed: to blame, of all sessions
    :param unexplained: sessions that failed, and no section was found
    """

    sessions: int
    sessions_failed: int
    loads: int
    loads_passed: int
    sections_failed: tuple[str, ...]
    unexplained: int


# -- question 2 ------------------------------------------------------------------------------------------------------


class Half(StrEnum):
    """What went wrong with a checkpoint, in the order of the table.

    ``whole``: a control, nothing went wrong; ``cut-between-sections`` and ``cut-inside-a-section``: the buffer ends
    there, and VMSTATE_SIZE says so; ``shorter-than-its-size``: the connection closes before the promised bytes came;
    ``bad-section``: a wrong version_id, idstr or footer; ``sections-left-out``: a well-formed buffer that lacks some;
    ``connection-closed`` and ``connection-silent``: the primary goes away, or says no more.
    """

    WHOLE = "whole"
    CUT_BETWEEN = "cut-between-sections"
    CUT_INSIDE = "cut-inside-a-section"
    SHORTER = "shorter-than-its-size"
    BAD_SECTION = "bad-section"
    LEFT_OUT = "sections-left-out"
    CLOSED = "connection-closed"
    SILENT = "connection-silent"


class Damage(StrEnum):
    """What of a section is wrong."""

    VERSION_ID = "version_id"
    IDSTR = "idstr"
    FOOTER = "footer"


class LostAt(StrEnum):
    """The step of the protocol at which a connection was lost."""

    AFTER_REQUEST = "after-CHECKPOINT_REQUEST"
    AFTER_REPLY = "after-CHECKPOINT_REPLY"
    IN_SEND = "in-VMSTATE_SEND"
    AFTER_SEND = "after-VMSTATE_SEND"
    IN_RAM = "in-RAM"
    AFTER_RAM = "after-RAM"
    AFTER_SIZE = "after-VMSTATE_SIZE"
    IN_BUFFER = "in-buffer"
    BEFORE_LAST_BYTE = "before-last-byte"
    AFTER_BUFFER = "after-buffer"
    AFTER_LOADED = "after-VMSTATE_LOADED"


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfPlace:
    """Where it went wrong.

    :param section: the section behind which, or in which, the buffer is cut, or that is damaged; "" at its beginning
    :param byte: of ``of`` bytes of the section, at which it is cut
    :param damage: what of the section is wrong
    :param left_out: sections left out at the end, of ``of``
    :param lost_at: when the connection was lost
    """

    section: str = ""
    byte: int | None = None
    of: int | None = None
    damage: Damage | None = None
    left_out: int | None = None
    lost_at: LostAt | None = None


class How(StrEnum):
    """What a secondary did: ``loaded`` it, ``refused`` it by COLO_EXIT, a ``crash``, ``ended`` with status 0,
    ``closed`` the connection, or was ``silent``."""

    LOADED = "loaded"
    REFUSED = "refused"
    CRASH = "crash"
    ENDED = "ended"
    CLOSED = "closed"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What came of ``x-colo-lost-heartbeat``.

    :param status: of ``query-status`` at the end; ``gone`` when QEMU ended, ``no-answer`` when it hangs
    :param refused: QEMU's words when it did not want to
    :param told: it stood still until ``cont``
    :param alive: the guest's shell answered; None when not asked
    :param answer_s: how long that took, or None
    """

    status: str
    refused: str = ""
    told: bool = False
    alive: bool | None = None
    answer_s: float | None = None

    @property
    def running(self) -> bool:
        """The guest runs on the secondary."""
        return self.status == "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCase:
    """One checkpoint that went wrong, in a secondary of its own.

    :param messages: COLO messages that came, by name
    :param colo_exit: reason of the event COLO_EXIT, or None
    :param said: the most telling line on stderr, or empty
    :param exit: how QEMU ended, or None
    :param closed: it closed the connection
    :param further_checkpoint: whether the connection took a further checkpoint; None when it could not be asked
    :param ram_share_of_next: share of witness pages that are N+1's before the takeover; None when QEMU did not say
    :param ram_of_next: most of them are
    :param incomplete: the checkpoint was not whole when it went wrong
    """

    half: Half
    place: HalfPlace = HalfPlace()
    how: How
    messages: tuple[str, ...]
    colo_exit: str | None = None
    said: str = ""
    exit: str | None = None
    closed: bool = False
    further_checkpoint: bool | None = None
    ram_share_of_next: float | None = None
    ram_of_next: bool | None = None
    incomplete: bool = True
    takeover: Takeover

    @property
    def acknowledged(self) -> bool:
        """It said that it had loaded."""
        return "VMSTATE_LOADED" in self.messages


class PairFault(StrEnum):
    """What happens to a real pair; ``own``: its secondary breaks by the state alone."""

    KILLED = "secondary-killed"
    REFUSES = "secondary-refuses"
    CLOSED = "connection-closed"
    SILENT = "connection-silent"
    OWN = "secondary-breaks"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryCase:
    """What a real primary did.

    :param undecided: why the pair did not get to its checkpoints, "" where it did
    :param noticed: it ended COLO, or itself
    :param status_untold: of ``query-status`` before it was told anything, and ``alive_untold`` of its guest
    :param refused: QEMU's words to ``x-colo-lost-heartbeat``
    :param status_told: of ``query-status`` behind that, and ``alive_told`` of its guest
    """

    fault: PairFault
    undecided: str = ""
    noticed: bool = False
    colo_exit: str | None = None
    exit: str | None = None
    said: str = ""
    status_untold: str = ""
    alive_untold: bool = False
    refused: str = ""
    status_told: str = ""
    alive_told: bool = False
    checkpoints_before: int = 0
    secondary_exit: str | None = None
    secondary_said: str = ""
    secondary_colo_exit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfFigures:
    """The numbers of question 2.

    ``bad_*``: of device buffers that the secondary can read to their end, and that are no checkpoint; ``lost_*``: of
    connections that were lost; ``primary_*``: of real pairs.

    :param monitor_hung: which of the lost ones left a QEMU that answers no command
    :param guest_answer_limit_s: how long a guest might take to answer
    """

    bad_buffers: int
    bad_acknowledged: int
    bad_reported: int
    bad_died: int
    bad_further_asked: int
    bad_further: int
    bad_took_over: int
    bad_guest_alive: int
    bad_ram_of_next: int
    lost: int
    lost_died: int
    lost_took_over: int
    lost_guest_alive: int
    lost_incomplete: int
    lost_ram_of_next: int
    left_out: int
    left_out_acknowledged: int
    monitor_hung: tuple[HalfPlace, ...]
    primary_cases: int
    primary_undecided: int
    primary_noticed: int
    primary_alone: int
    primary_told: int
    guest_answer_limit_s: float = 0.0


# -- question 3 ------------------------------------------------------------------------------------------------------


class Described(StrEnum):
    """How far the vmdesc describes a section; ``partly``: it holds lists, whose length is in their content."""

    FIELDS = "fields"
    PARTLY = "partly"
    OPEN_CODED = "open-coded"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """What became of one load: ``how``, and the most telling line."""

    how: How
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCase:
    """One section, loaded as it is, with one byte more and with one byte less.

    :param vmdesc_bytes: its length by the vmdesc, None where that does not know it
    :param lengths: payload lengths that it has over all recorded phases
    :param less: None for a section without a payload
    """

    section: str
    size_bytes: int
    described: Described
    vmdesc_bytes: int | None
    lengths: tuple[int, ...]
    exact: Framed
    more: Framed
    less: Framed | None = None


class Way(StrEnum):
    """How a section was sent."""

    EXACT = "exact"
    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongLength:
    """A section and the way in which it was sent."""

    section: str
    way: Way


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFigures:
    """The numbers of question 3.

    :param in_vmdesc: sections whose length the vmdesc has
    :param varying: sections whose length differs from phase to phase
    :param less: sections that could be sent with a byte less
    :param crashed: instead of refusing, the secondary died or hung
    :param taken_wrongly: taken with a wrong length
    """

    sections: int
    in_vmdesc: int
    open_coded: int
    open_coded_sections: tuple[str, ...]
    partly: int
    varying: int
    varying_sections: tuple[str, ...]
    exact_taken: int
    more_refused: int
    less: int
    less_refused: int
    crashed: tuple[WrongLength, ...]
    taken_wrongly: tuple[WrongLength, ...]


# -- question 4 ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalCase:
    """Checkpoints at one pace.

    :param interval_ms: the guest runs so long between two
    :param seconds: that it was watched for
    :param mean_ms: a checkpoint from its request to its load, with ``p95_ms`` of 95 % of them
    :param load_mean_ms: the load alone
    :param stopped_share: of the time in which the guest stood still, and ``loading_share`` of loads alone
    :param broken: what ended it, "" for nothing
    """

    interval_ms: float
    asked: int
    survived: int
    seconds: float
    mean_ms: float
    p95_ms: float
    load_mean_ms: float
    stopped_share: float
    loading_share: float
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalFigures:
    """The numbers of question 4."""

    asked: int
    survived: int


# -- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFinding:
    """Question 1 on one machine."""

    figures: LoadFigures
    cases: tuple[LoadCase, ...]
    question: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfFinding:
    """Question 2 on one machine."""

    figures: HalfFigures
    cases: tuple[HalfCase, ...]
    primary: tuple[PrimaryCase, ...] = ()
    question: Literal[2] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFinding:
    """Question 3 on one machine."""

    figures: FrameFigures
    cases: tuple[FrameCase, ...]
    question: Literal[3] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalFinding:
    """Question 4 on one machine."""

    figures: IntervalFigures
    cases: tuple[IntervalCase, ...]
    question: Literal[4] = 4


StudyFinding = Annotated[LoadFinding | HalfFinding | FrameFinding | IntervalFinding, Field(discriminator="question")]
