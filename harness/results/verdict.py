# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts, worst first, and what a set of them comes to. The members stand in that order."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What a cell comes to. Members stand worst first; the value is what reports store."""

    CRASH = "crash"
    HANG = "hang"
    REJECT = "reject"
    GUEST_FAULT = "guest-fault"
    DRIFT = "drift"
    LEAK = "leak"
    FLAKY = "flaky"
    OK = "ok"
    UNSUPPORTED = "unsupported"
    HOST = "host"
    HARNESS_ERROR = "harness-error"

    @property
    def is_finding(self) -> bool:
        """True when it says something bad about the QEMU under test."""
        return self in FINDINGS

    @property
    def is_undecided(self) -> bool:
        """True when neither QEMU nor the device was judged."""
        return self in UNDECIDED


class FailureClass(StrEnum):
    """What the controls say about a finding; stands beside the verdict."""

    FAILS = "fails"
    NOT_REENTRANT = "not-reentrant"
    STALE_WITHOUT_RESET = "stale-without-reset"
    RESUME = "resume"


FINDINGS = frozenset(
    {
        Verdict.CRASH,
        Verdict.HANG,
        Verdict.REJECT,
        Verdict.GUEST_FAULT,
        Verdict.DRIFT,
        Verdict.LEAK,
        Verdict.FLAKY,
    }
)
UNDECIDED = frozenset({Verdict.HOST, Verdict.HARNESS_ERROR})

_RANK = {verdict: rank for rank, verdict in enumerate(Verdict)}


def rank(verdict: Verdict) -> int:
    """Position in the order: 0 is the worst."""
    return _RANK[verdict]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts.

    :raises ValueError: there are none
    """
    return min(verdicts, key=rank)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """What the command ends with.

    1 with any finding; else 3 when the host or this program could not decide a cell; else 4 when nothing was
    judged (no cell, or all unsupported); else 0.
    """
    seen = set(verdicts)
    if seen & FINDINGS:
        return 1
    if seen & UNDECIDED:
        return 3
    return 0 if Verdict.OK in seen else 4
