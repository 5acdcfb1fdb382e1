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
    def meaning(self) -> str:
        """One line for legends."""
        return _MEANING[self]

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

    @property
    def meaning(self) -> str:
        """One line for legends."""
        return _CLASS_MEANING[self]


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

_MEANING = {
    Verdict.CRASH: "QEMU died: signal, assertion or sanitizer report",
    Verdict.HANG: "no answer within the deadline; QEMU still there",
    Verdict.REJECT: "the load returned an error",
    Verdict.GUEST_FAULT: "it loaded, and the guest's disk, network, clock or kernel log says it is broken",
    Verdict.DRIFT: "state after n loads is not state after one load",
    Verdict.LEAK: "memory, descriptors or threads grow with each load, beyond the noise",
    Verdict.FLAKY: "the same cell gave different verdicts",
    Verdict.OK: "none of these, over the stated number of loads",
    Verdict.UNSUPPORTED: "this QEMU has no such device or machine, or the device cannot be migrated",
    Verdict.HOST: "the host could not run it",
    Verdict.HARNESS_ERROR: "this program failed; never counted for or against a device",
}
_CLASS_MEANING = {
    FailureClass.FAILS: "fails in a fresh process too",
    FailureClass.NOT_REENTRANT: "only from the second load into one process",
    FailureClass.STALE_WITHOUT_RESET: "passes when the machine is reset before the load",
    FailureClass.RESUME: "the load passed, starting the guest did not",
}
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
