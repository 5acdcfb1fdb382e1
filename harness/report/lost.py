# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of guests that were lost while they were recorded."""

from __future__ import annotations

from harness.report.text import plural
from harness.results.document import LostGuest

LOST_NOTE = (
    "A guest has many devices. One that was lost while it was recorded was taken apart until it was known which device "
    "did it. The others were recorded without that device, and are judged like any other."
)


def lost_text(guest: LostGuest) -> str:
    """One sentence on what was lost, and one on who did it."""
    way = f" on its way to phase {guest.phase}" if guest.phase else ""
    lost = f"{guest.machine} on {guest.recorder}: a guest of {plural(len(guest.devices), 'device')} was lost{way}"
    return f"{lost}. {_who(guest)} Seen: {guest.said}"


def _who(guest: LostGuest) -> str:
    if not guest.by:
        return "No device was found that did it: the machine is lost without them too, or the host ended it."
    if guest.alone:
        return f"{guest.by} did it: it is recorded alone, as far as it goes, and the others without it."
    return f"{guest.by} did it beside the others, and is well alone: they are recorded apart."
