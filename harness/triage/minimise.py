# SPDX-License-Identifier: GPL-2.0-or-later
"""The reducer: makes a candidate smaller as long as it still fails, also when it fails only now and then. Pure.

What a candidate is, how it is tried, and where the tries are written down is the caller's. A candidate that always
fails is tried once. One that fails at the rate *p* is given up after as many misses in a row as leave a chance of
less than 5 % that it was only luck, ``log(0.05) / log(1 - p)``, and is taken after its second failure, so that a
lucky hit of something that hardly ever fails does not replace what fails often.

A try says that a candidate does not fail only when it came to its end with all loads acknowledged. One that ended in
another way (refused, another crash, no start) is *untested*, as ddmin's unresolved: it is not taken, and nothing is
concluded from it.

Every try goes through a :class:`Journal`. The search is deterministic: with the journal of an interrupted search it
takes the same way again, without trying anything twice, and goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

from harness.ddmin import ddmin
from harness.errors import HarnessError
from harness.triage.guess import Guess, Trying

#: How sure a miss has to be.
CONFIDENCE = 0.95
#: So many failures in a row at the start, and nothing else, count as "always".
STEADY_AFTER = 3
#: Tries after which something that never failed is believed not to.
RATE_TRIES = 10
#: The rate of something flaky is estimated from so many failures, or so many tries.
RATE_HITS, MAX_RATE_TRIES = 5, 30
#: Bound of the misses in a row, for a rate that is very low.
MAX_TRIES = 60
#: Failures of a flaky candidate before it is taken.
FLAKY_HITS = 2
#: Tries of the result, for the rate in the report.
FINAL_TRIES = 3

C = TypeVar("C")
T = TypeVar("T")


class NotReproduced(HarnessError):
    """The start does not fail any more.

    :param failed: how often it did
    :param tried: of how many tries
    """

    def __init__(self, failed: int, tried: int) -> None:
        self.failed = failed
        self.tried = tried
        super().__init__(f"does not reproduce: {failed} of {tried}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one try of one candidate gave.

    :param hit: it failed in the wanted way
    :param tested: it failed so, or came to its end with all loads acknowledged
    :param loads: loads that were done, the failing one included
    :param sessions: processes that were started
    """

    hit: bool
    tested: bool = True
    loads: int = 0
    sessions: int = 1
    seconds: float = 0.0


class Shows(Enum):
    """Whether a candidate has the failure."""

    YES = auto()
    NO = auto()
    UNTESTED = auto()


class Journal(Protocol):
    """Tries that were made, in order; see :class:`harness.triage.journal.FileJournal`."""

    def recall(self, key: str) -> Attempt | None:
        """The next try of this candidate that was made in an earlier run; each comes once."""

    def note(self, key: str, attempt: Attempt, what: str) -> None:
        """Write down a try that was just made."""


class NoJournal:
    """Remembers nothing."""

    def recall(self, key: str) -> Attempt | None:
        """Nothing."""
        return None

    def note(self, key: str, attempt: Attempt, what: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a search is.

    :param what: the candidate that was just tried
    :param hit: it failed in the wanted way
    :param tested: see :class:`Attempt`
    :param replayed: the try came out of the journal
    """

    stage: str
    what: Guess
    hit: bool
    tested: bool
    replayed: bool
    sessions: int
    loads: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class Search(Generic[C]):
    """One search.

    :param attempt: tries a candidate once
    :param key: a stable name of a candidate
    :param on_try: told of every try
    :param start_tries: after so many tries without a failure the start is believed not to fail
    """

    attempt: Callable[[C], Attempt]
    key: Callable[[C], str]
    journal: Journal = field(default_factory=NoJournal)
    on_try: Callable[[Progress], None] = lambda _: None
    confidence: float = CONFIDENCE
    start_tries: int = RATE_TRIES
    stage: str = "start"
    sessions: int = 0
    loads: int = 0
    seconds: float = 0.0
    failed: int = 0
    tried: int = 0
    steady: bool = True
    _best: C | None = None
    _safe: C | None = None
    _known: dict[str, Shows] = field(default_factory=dict)

    @property
    def best(self) -> C:
        """The smallest candidate so far.

        :raises ValueError: :meth:`confirm` was not called
        """
        if self._best is None:
            raise ValueError("no candidate was confirmed")
        return self._best

    @property
    def patience(self) -> int:
        """Misses in a row after which something is believed not to fail."""
        return misses_needed(self.failed / max(1, self.tried), self.confidence) if not self.steady else 1

    def confirm(self, start: C) -> None:
        """Make sure that the start fails, and how often.

        :raises NotReproduced: it did not in ``start_tries``
        """
        self.stage, self._best = "start", start
        self._rate(start, STEADY_AFTER, self.start_tries)
        self._safe = start

    def improve(self, candidate: C, what: Guess) -> bool:
        """Take a smaller candidate when it fails as well."""
        if self.fails(candidate, what):
            self._best = candidate
            return True
        return False

    def check(self) -> None:
        """At the end of a stage: the best must still fail. One that misses is flaky, and known to be from then on;
        one that does not fail at all any more is given up for the last one that was checked."""
        best = self.best
        if best == self._safe or not self.steady:
            self._safe = best
            return
        if self._once(best, Guess(what=Trying.AGAIN)).hit:
            self._safe = best
            return
        # what was believed after one miss has to be asked again
        self._known.clear()
        try:
            self._rate(best, RATE_TRIES)
            self._safe = best
        except NotReproduced:
            assert self._safe is not None  # set by confirm
            self._best = self._safe
            self._rate(self._safe, RATE_TRIES)

    def measure(self) -> tuple[int, int]:
        """How often the result fails: failures, and tries that say anything."""
        self.stage = "result"
        failed = tried = made = 0
        while made < (FINAL_TRIES if self.steady and failed == made else max(RATE_TRIES, self.patience)):
            made += 1
            attempt = self._once(self.best, Guess(what=Trying.NUMBER, count=made))
            tried += attempt.tested
            failed += attempt.hit
        return failed, tried

    def _rate(self, candidate: C, enough: int, tries: int = RATE_TRIES) -> None:
        """Estimate the rate; ``enough`` failures in a row from the first on end it early.

        :raises NotReproduced: no failure in ``tries``
        """
        failed = tried = made = 0
        while made < (MAX_RATE_TRIES if failed else tries):
            if failed == made == enough or failed >= max(RATE_HITS, enough):
                break
            made += 1
            attempt = self._once(candidate, Guess(what=Trying.NUMBER, count=made))
            tried += attempt.tested
            failed += attempt.hit
        if not failed:
            raise NotReproduced(failed, made)
        self.failed, self.tried, self.steady = failed, tried, failed == tried

    def fails(self, candidate: C, what: Guess) -> bool:
        """Whether a candidate fails, without taking it."""
        return self.shows(candidate, what) is Shows.YES

    def shows(self, candidate: C, what: Guess) -> Shows:
        """Whether a candidate fails, does not, or could not be tested."""
        key = self.key(candidate)
        if candidate == self._best:
            return Shows.YES
        if key not in self._known:
            self._known[key] = self._try(candidate, what)
        return self._known[key]

    def _try(self, candidate: C, what: Guess) -> Shows:
        needed = 1 if self.steady else FLAKY_HITS
        hits = misses = untested = 0
        while misses + untested + hits < self.patience * needed:
            attempt = self._once(candidate, what)
            hits += attempt.hit
            misses += attempt.tested and not attempt.hit
            untested += not attempt.tested
            if hits >= needed:
                return Shows.YES
            if not hits and misses + untested >= self.patience:
                break
        return Shows.UNTESTED if untested else Shows.NO

    def _once(self, candidate: C, what: Guess) -> Attempt:
        key = self.key(candidate)
        told = self.journal.recall(key)
        attempt = told or self.attempt(candidate)
        if told is None:
            self.journal.note(key, attempt, f"{self.stage}: {what}")
        self.sessions += attempt.sessions
        self.loads += attempt.loads
        self.seconds += attempt.seconds
        self.on_try(
            Progress(
                stage=self.stage,
                what=what,
                hit=attempt.hit,
                tested=attempt.tested,
                replayed=told is not None,
                sessions=self.sessions,
                loads=self.loads,
                seconds=self.seconds,
            )
        )
        return attempt


def misses_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many tries without a failure it takes to believe that something that fails at ``rate`` does not fail.

    :param rate: failures for each try, from 0 to 1
    """
    if rate >= 1:
        return 1
    if rate <= 0:
        return MAX_TRIES
    return min(MAX_TRIES, max(1, math.ceil(math.log(1 - confidence) / math.log(1 - rate) - 1e-9)))


def needed(items: Sequence[T], test: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Items from which none can be left out, nothing at all being tried first.

    :param items: all of which are known to fail
    :param test: whether some of them, in the same order, fail as well
    """
    if not items or test(()):
        return ()
    return ddmin(items, lambda kept: test(kept) or None, True)[0]


def fewest(most: int, test: Callable[[int], bool]) -> int:
    """The smallest number from 1 to ``most`` that fails, when more of it fails as well; ``most`` is known to.

    Small numbers are tried first: 1, 2, 4, 8, ..., then the halves between.
    """
    low, high = 0, 1
    while high < most and not test(high):
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if test(middle):
            high = middle
        else:
            low = middle
    return high
