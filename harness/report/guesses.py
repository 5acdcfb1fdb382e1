# SPDX-License-Identifier: GPL-2.0-or-later
"""The candidates of a reduction, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.report.text import number, plural
from harness.triage.guess import Guess, Loads, Trying


def donor_text(phase: str) -> str:
    """Whose state stands in for the failing one.

    :param phase: empty for a machine that never ran
    """
    return f"phase {phase}" if phase else "a machine that never ran"


def _blamed(guess: Guess) -> str:
    how = {
        None: "",
        Loads.INCOMING: ", in the incoming stream",
        Loads.ONCE: ", once",
        Loads.TOGETHER: ", twice in one buffer",
        Loads.TIMES: f", {number(guess.count)} times",
    }[guess.loads]
    return f"what was blamed alone{how}"


_TEXTS: Mapping[Trying, Callable[[Guess], str]] = {
    Trying.AGAIN: lambda _: "once more",
    Trying.NUMBER: lambda guess: f"try {number(guess.count)}",
    Trying.ONE_BARE: lambda _: "this section alone, without memory",
    Trying.ONE: lambda _: "this section alone",
    Trying.BLAMED_BARE: lambda guess: f"{_blamed(guess)}, without memory",
    Trying.BLAMED: _blamed,
    Trying.INCOMING: lambda _: "the incoming stream",
    Trying.PARKED: lambda _: "parked",
    Trying.SAME_PHASE: lambda _: "begun in the same phase",
    Trying.CHECKPOINTS: lambda guess: plural(guess.count, "checkpoint"),
    Trying.IN_ONE_BUFFER: lambda guess: f"{plural(guess.count, 'load')} in one buffer",
    Trying.SECTIONS: lambda guess: plural(guess.count, "section"),
    Trying.NO_OTHER: lambda _: "no other section",
    Trying.CPU_ALONE: lambda _: "nothing but the CPU",
    Trying.LOADED: lambda _: "what is loaded",
    Trying.BEFORE: lambda guess: f"{plural(guess.count, 'section')} before the first load",
    Trying.NO_MEMORY: lambda _: "without memory",
    Trying.PAGES: lambda guess: plural(guess.count, "page"),
    Trying.NO_KERNEL: lambda _: "without a kernel",
    Trying.DEVICES: lambda guess: plural(guess.count, "more device"),
    Trying.OPTIONS: lambda guess: plural(guess.count, "more option"),
    Trying.DONOR: lambda guess: f"all fields as in {donor_text(guess.name)}",
    Trying.HEALTHY: lambda guess: f"{guess.name} healthy",
    Trying.FIELDS: lambda guess: plural(guess.count, "field"),
    Trying.BYTES: lambda guess: plural(guess.count, "byte"),
    Trying.BITS: lambda guess: plural(guess.count, "bit"),
}


def guess_text(guess: Guess) -> str:
    """One candidate."""
    return _TEXTS[guess.what](guess)
