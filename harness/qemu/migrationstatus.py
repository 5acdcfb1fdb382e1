# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``query-migrate`` and the event MIGRATION say, and what each word means for whoever waits for an end.

The words are QAPI's enumeration ``MigrationStatus`` (``qapi/migration.json``), of the source (``s->state`` in
``migration/migration.c``) and of the destination (``mis->state``) alike. Nobody compares them one by one: a build may
use a new word where an older one had none, so an engine asks for the :class:`Stage`.

===========================  ==============  =========================================================================
status                       since           where it is met
===========================  ==============  =========================================================================
none, setup                  2.3             before the stream; a source in ``setup`` has not connected yet
wait-unplug                  4.2             source: waits for its guest to give up a device
active                       2.3             both: the stream goes on
pre-switchover, device       2.11            source: its guest stands still, devices are saved; ``device`` in every
                                             migration from 10.0 on
postcopy-device              10.2            both: the destination loads its devices; a source that loses it here fails
postcopy-active              2.5             both: memory follows the guest; up to 10.1 already while devices are loaded
colo                         2.8             both: checkpoints
postcopy-paused              3.0             both: the connection broke in ``postcopy-active``; only a human goes on
postcopy-recover-setup       9.1             source: told to recover, connects anew
postcopy-recover             3.0             both: recovers
cancelling, failing          2.3, 11.0       the end is certain, cleaning up goes on; ``cancelled``, ``failed`` follow
completed, cancelled, failed 2.3             the end
===========================  ==============  =========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    """How far a migration is."""

    NONE = "none"  #: nothing began, or QEMU did not say
    SETUP = "setup"  #: it connects
    RUNNING = "running"  #: it goes on by itself
    COMPLETED = "completed"
    ENDING = "ending"  #: it has failed, and its reason may not be known yet
    FAILED = "failed"
    PAUSED = "paused"  #: its connection broke, and it does not go on by itself: the other side gave up

    @property
    def begun(self) -> bool:
        """Whether both sides have met."""
        return self not in (Stage.NONE, Stage.SETUP)

    @property
    def over(self) -> bool:
        """Whether QEMU stays in it until it is told something."""
        return self in (Stage.COMPLETED, Stage.FAILED, Stage.PAUSED)

    @property
    def bad(self) -> bool:
        """Whether it will not be completed."""
        return self in (Stage.ENDING, Stage.FAILED, Stage.PAUSED)


STAGES: Mapping[str, Stage] = {
    "none": Stage.NONE,
    "setup": Stage.SETUP,
    "wait-unplug": Stage.RUNNING,
    "active": Stage.RUNNING,
    "pre-switchover": Stage.RUNNING,
    "device": Stage.RUNNING,
    "postcopy-device": Stage.RUNNING,
    "postcopy-active": Stage.RUNNING,
    "colo": Stage.RUNNING,
    "postcopy-recover-setup": Stage.RUNNING,
    "postcopy-recover": Stage.RUNNING,
    "completed": Stage.COMPLETED,
    "cancelling": Stage.ENDING,
    "failing": Stage.ENDING,
    "cancelled": Stage.FAILED,
    "failed": Stage.FAILED,
    "postcopy-paused": Stage.PAUSED,
}


def stage_of(info: Mapping[str, Any]) -> Stage:
    """The stage that an answer of ``query-migrate``, or the data of an event MIGRATION, tells of.

    :param info: without ``status`` when no migration has begun. A word of a build newer than this table is taken for
        one that goes on: its deadline decides
    """
    status = info.get("status")
    return Stage.NONE if status is None else STAGES.get(status, Stage.RUNNING)
