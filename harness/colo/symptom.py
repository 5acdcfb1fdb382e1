# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen when a QEMU or its guest did not do as it should, as data.

Engines and experiments write it down, cells keep it, and its sentence is made in :mod:`harness.report.symptoms` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Sign(StrEnum):
    """The kind of thing that was seen; the value is what is stored."""

    NO_ANSWER = "no-answer"
    NO_DATA_TAKEN = "no-data-taken"  # the other side took nothing of what was sent
    LITTLE_DATA_TAKEN = "little-data-taken"
    CLOSED = "connection-closed"
    OTHER_MESSAGE = "other-message"  # ``said`` came instead of ``wanted``
    LEFT_COLO = "left-colo"  # event COLO_EXIT, ``said`` is its reason
    ENDED = "ended"
    DIED_CLEANING_UP = "died-cleaning-up"  # it refused, and ``said`` is how it died while it cleaned up
    SESSION_CLOSED = "session-closed"  # QMP ended
    REFUSED = "command-refused"
    MIGRATION_ENDED = "migration-ended"  # the incoming migration came to ``status``
    NOT_DONE = "not-done"  # it is still in ``status``
    STUCK = "stuck"  # the source failed, and the destination comes to no end
    HUNG_UP = "hung-up"  # the destination closed the return path
    SHUT = "shut"  # the destination's SHUT says ``said``
    NO_CHECKPOINT = "no-checkpoint"
    NOT_STARTED = "not-started"  # the guest could not be started
    FAILED = "guest-command-failed"  # with ``exit``
    UNREADABLE = "unreadable"  # a guest command printed something else than it should
    ERROR = "error"  # ``said`` is the text of an error


class Doing(StrEnum):
    """What was going on."""

    BOOT = "boot"
    SHELL = "shell"
    PROMPT = "prompt"
    LOADING = "loading"
    START = "start"  # of the guest
    BEFORE_PACKAGE = "before-package"
    PACKAGE = "package"
    REST = "rest-of-pages"
    WITHOUT_PAGES = "guest-without-pages"
    WITH_PAGES = "guest-with-pages"
    BETWEEN = "between-checkpoints"
    SAVING = "saving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One thing that was seen.

    :param doing: what was going on
    :param command: of QMP, or of the guest's shell, that it is about
    :param seconds: that were not enough, or within which it happened
    :param said: by QEMU, the guest or the system
    :param wanted: what should have come
    :param status: of the incoming migration
    :param source: status of the outgoing one, at the source
    :param exit: status of a guest command
    :param got: bytes that came, of ``of``
    """

    sign: Sign
    doing: Doing | None = None
    command: str = ""
    seconds: float | None = None
    said: str = ""
    wanted: str = ""
    status: str = ""
    source: str = ""
    exit: int | None = None
    got: int | None = None
    of: int | None = None

    def during(self, doing: Doing) -> Symptom:
        """The same, with what was going on."""
        return replace(self, doing=doing)

    def __str__(self) -> str:
        """For the text of an error: names and what was said, no sentence."""
        words = (self.sign, self.doing, self.command, self.status, self.said)
        return ": ".join(str(word) for word in words if word)
