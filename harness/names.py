# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that a user types and reads: phases, lanes, uses, report formats.

They stand apart from what they name, because ``--help`` and shell completion show them and must not import the program.
What they name is held to them: each registry is made in their order, and fails at import when it lacks one or has
another one (:func:`in_order`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", str, int)
T = TypeVar("T")

#: Phases that are recorded when nothing else is asked for.
USUAL_PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
#: The guest has suspended its machine to RAM.
SUSPENDED = "suspended"
#: In the order in which a guest goes through them. Those behind the usual ones only when they are asked for, and one
#: of them only, for each is the end of its guest: ``io-error`` is recorded over disks that fail.
RECORDED_PHASES = (*USUAL_PHASES, SUSPENDED, "plugged", "rebooted", "io-error")
#: The state that somebody else's VM was saved in: nobody leads a guest there, and its guest does not run again, for
#: its disks are not here.
ADOPTED = "adopted"
#: All that a state pack can hold.
PHASES = (*RECORDED_PHASES, ADOPTED)

#: Devices that are judged when none is named: the recipes in ``devices/`` say so of themselves.
USUAL_DEVICES = ("ahci", "platform", "virtio-blk", "virtio-net")
#: Owns what no other device owns.
PLATFORM = "platform"

#: Ordinary migration, before any checkpoint. ``early`` only when it is asked for.
MIGRATIONS = ("plain", "early", "postcopy")
#: Of these, those that load a recorded stream as it is: what a guest lives through.
AS_RECORDED = ("plain", "postcopy")
#: Loads of a cell where nobody says how many: 14 cells a row with all phases and schedules, so 1,400 loads for each
#: device on each machine.
USUAL_LOADS = 100
SCHEDULES = ("same", "alternate", "walk", "back-to-back")
ORACLES = ("drift", "leak", "guest", "io-error")
#: Loads behind a reset of the machine, and what the reset costs; only when it is asked for.
RESET = "reset"
#: All ways of loading or looking, in the order of a report.
LANES = (*MIGRATIONS, *SCHEDULES, *ORACLES, RESET)

GUEST_MODES = ("running", "parked")

#: What a guest is asked to survive by ``postload qualify``.
USES = ("migration", "postcopy", "colo")
#: Which of them decide between hosts of one version, when nothing else is asked for. Postcopy is told apart and
#: decides only when asked.
DECIDING = ("migration", "colo")
#: And between versions: upstream supports COLO with the same version on both sides only.
DECIDING_BETWEEN_VERSIONS = ("migration",)

#: The questions of ``postload claims``, by number.
QUESTIONS = (1, 2, 3, 4)

#: The history that commands write and read when they are told of none, and what names another one.
DEFAULT_STORE = "history.db"
STORE_VARIABLE = "POSTLOAD_STORE"

#: The reports, by the names that ``--format`` takes.
FORMATS = ("json", "html", "junit", "md", "tap", "summary")


def in_order(what: str, names: Sequence[Name], registered: Mapping[Name, T]) -> dict[Name, T]:
    """What is registered, in the order of its names.

    :param what: is registered, for the error
    :raises ImportError: the two do not have the same names
    """
    odd = sorted(set(names) ^ set(registered))
    if odd:
        raise ImportError(f"{what} and their names in {__name__} differ: {', '.join(map(str, odd))}")
    return {name: registered[name] for name in names}
