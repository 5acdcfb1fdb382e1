# SPDX-License-Identifier: GPL-2.0-or-later
"""What each signature is on each QEMU: open, known, fixed-in or back, and how often its cells fail by it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from harness.results.key import Route, release_line
from harness.store.compare import look_at
from harness.store.read import Glance, History, Reproduction, Sighting
from harness.store.states import (
    SILENT,
    FailRate,
    HistoryRules,
    Look,
    Reproduced,
    SignatureFacts,
    SignatureState,
    fail_rate,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureOn:
    """A signature on one QEMU.

    :param qemu: line of releases of the QEMU that loads, as ``7.2`` or ``7.2>10.0``, or a name that the user gave
    :param first_run: of those that are kept
    :param runs: in how many it was seen
    :param fixed_in: labels of the builds of which its reproducer said that it is gone, the newest answer first
    :param rate: of the last runs that judged one of its cells, in how many it was seen
    """

    signature: str
    qemu: str
    state: SignatureState
    first_run: str
    first_seen: str
    last_run: str
    last_seen: str
    runs: int
    lines: tuple[str, ...]
    known: str
    fixed_in: tuple[str, ...]
    rate: FailRate


def signatures_on(history: History, rules: HistoryRules, signature: str | None = None) -> list[SignatureOn]:
    """Every signature that was seen, on every QEMU that it was seen on, those seen last first.

    That a reproducer says of a build that the finding is gone counts for nothing where that build showed it: it
    is the script of one cell, and the finding has other ways there.

    :param signature: this one alone
    :raises HostError: the history cannot be read
    """
    seen: dict[tuple[str, str], list[Sighting]] = {}
    for sighting in history.sightings(signature):
        seen.setdefault((sighting.signature, sighting.qemu), []).append(sighting)
    builds = history.builds_seen(signature)
    answers = [
        each
        for each in history.reproductions(signature)
        if each.answer is not Reproduced.GONE or (each.signature, each.build.sha256) not in builds
    ]
    last = _Last(history, rules.flaky.last)
    found = [_signature_on(sightings, answers, last, rules) for sightings in seen.values()]
    return sorted(found, key=lambda each: (each.last_seen, each.signature, each.qemu), reverse=True)


def _signature_on(
    sightings: Sequence[Sighting], answers: Sequence[Reproduction], last: _Last, rules: HistoryRules
) -> SignatureOn:
    first, newest = sightings[0], sightings[-1]
    loader = Route.parse(first.qemu).loader
    own = [each for each in answers if each.signature == first.signature and release_line(each.label) == loader]
    facts = SignatureFacts(
        reproducer=own[0].answer if own else Reproduced.NONE,
        seen_since=bool(own) and newest.started > own[0].at,
        known=bool(newest.known),
    )
    lines = {sighting.line for sighting in sightings}
    return SignatureOn(
        signature=first.signature,
        qemu=first.qemu,
        state=rules.signature_state(facts),
        first_run=first.run,
        first_seen=first.started,
        last_run=newest.run,
        last_seen=newest.started,
        runs=len({sighting.run for sighting in sightings}),
        lines=tuple(sorted(lines)),
        known=newest.known,
        fixed_in=tuple(dict.fromkeys(each.label for each in own if each.answer is Reproduced.GONE)),
        rate=fail_rate(list(last.seen(first.signature, lines))),
    )


class _Last:
    """What the last runs came to in the cells that failed in one of them."""

    def __init__(self, history: History, count: int) -> None:
        self._numbers = history.numbers_before(None, count)[::-1]
        self._cells: dict[tuple[str, int], list[Glance]] = {}
        for glance in history.glances_where_it_failed(self._numbers, self._numbers):
            self._cells.setdefault((glance.line, glance.run), []).append(glance)

    def seen(self, signature: str, lines: Collection[str]) -> Iterator[bool]:
        """Of each run that judged one of these cells whether one had the finding, the oldest first."""
        for number in self._numbers:
            looks = {look_at(self._cells.get((line, number), ()), signature) for line in lines} - SILENT
            if looks:
                yield Look.FAILS in looks
