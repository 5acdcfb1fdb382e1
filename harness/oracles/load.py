# SPDX-License-Identifier: GPL-2.0-or-later
"""From the evidence of one session to a verdict on its loads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.engines.incoming import REFUSAL
from harness.oracles.words import (
    complaint_of,
    failed_assertion,
    last_words,
    named_section,
    own_words,
    sanitizer_report,
)
from harness.qemu.disturbance import Disturbance, Hindered
from harness.qemu.kvm import Refusal, is_kvm_assertion, kvm_refusals
from harness.qemu.process import Exit
from harness.results.cause import (
    Assertion,
    Broke,
    Cause,
    Check,
    Ended,
    FailedCheck,
    GuestFaulted,
    KvmRefused,
    Refused,
    Undecided,
    Why,
)
from harness.results.document import Warned
from harness.results.outcome import Outcome
from harness.results.signature import normal
from harness.results.verdict import Verdict
from harness.results.voided import is_void

LOG_LIMIT_CHARS = 4000

_ASSERTION = re.compile(
    r"Assertion [`'\"].*failed|assertion failed|Assertion failed: |ERROR:\S+:\d+:|\bBUG:|code should not be reached|"
    r"Unexpected error in \w+\(\) at "
)
_SANITIZER = re.compile(
    r"(ERROR|SUMMARY|WARNING): (Address|Leak|Thread|Memory|UndefinedBehavior)Sanitizer|runtime error:"
)
#: What a failed load prints, most telling first (``migration/vmstate.c``, ``migration/savevm.c``, ``hw/virtio``).
_LOAD_ERRORS = (
    re.compile(r"error while loading state for instance"),
    re.compile(r"Features 0x[0-9a-f]+ unsupported"),
    re.compile(r"unsupported version \d+ for"),
    re.compile(r"Unknown (savevm )?section"),
    re.compile(r"Missing section footer"),
    re.compile(r"Failed to load"),
    re.compile(r"(?i)load.*(fail|error)|(fail|error).*load"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict on the loads of one session.

    :param cause: None when all is well
    :param log: what QEMU printed, cut to the last few kilobytes
    :param named: the section that QEMU itself names in its log, or None
    """

    verdict: Verdict
    cause: Cause | None = None
    log: str = ""
    named: str | None = None

    @property
    def assertion(self) -> Assertion | None:
        """The assertion that ended QEMU, where one did."""
        return self.cause.assertion if isinstance(self.cause, Ended) else None

    def is_break_of(self, other: Judgement) -> bool:
        """Whether it broke as another did: the same verdict, and by the same assertion where both name one. Who asserts
        nothing and dies of another signal than SIGABRT did not break as one that asserts. Of two that were refused QEMU
        names the same section, where it names one."""
        if self.verdict is Verdict.REJECT and self.named and other.named and self.named != other.named:
            return False
        if self.assertion and other.assertion:
            return self.verdict is other.verdict and self.assertion == other.assertion
        silent = [one._aborts for one in (self, other) if not one.assertion]
        return self.verdict is other.verdict and (len(silent) == 2 or all(silent))

    @property
    def _aborts(self) -> bool:
        """Whether it may have asserted, for all that is known."""
        return not isinstance(self.cause, Ended) or self.cause.signal in (None, "SIGABRT")

    @property
    def outcome(self) -> Outcome:
        """What it comes to, with nothing else known."""
        return Outcome(
            verdict=self.verdict,
            causes=() if self.cause is None else (self.cause,),
            sections=(self.named,) if self.named else (),
            log=self.log,
        )


def judge(evidence: Evidence) -> Judgement:
    """Turn evidence into a verdict; the first that fits, worst first.

    A crash of QEMU is one by a signal or an abort; QEMU that ends with status 0 did so because its guest shut
    down or triple-faulted (``-no-reboot``), which is the guest's fault and not a crash. State that this host's KVM
    refused is the host's matter, though QEMU says so by an abort.
    """
    verdict, cause = _verdict(evidence)
    if cause is None:
        return Judgement(verdict=verdict, log=evidence.log)
    named = named_section(evidence.log)
    return Judgement(verdict=verdict, cause=cause, log=evidence.log[-LOG_LIMIT_CHARS:], named=named)


def is_spoilt(evidence: Evidence, hindered: Sequence[Hindered]) -> bool:
    """Whether a session says nothing after what the host did to it; see :func:`harness.results.voided.is_void`."""
    return is_void(judge(evidence).verdict, hindered)


def warnings_of(evidence: Evidence) -> tuple[Warned, ...]:
    """What QEMU printed while it loaded, each text once with the load at which it came first and how often it came."""
    seen: dict[str, list[int]] = {}
    for load, text in evidence.warnings:
        seen.setdefault(_without_program(text), []).append(load)
    return tuple(Warned(text=text, load=loads[0], times=len(loads)) for text, loads in seen.items())


def _verdict(evidence: Evidence) -> tuple[Verdict, Cause | None]:
    at = _at(evidence)
    refusal = _refused_by_kvm(evidence)
    if refusal is not None:
        return Verdict.HOST, kvm_cause(refusal, at)
    died = evidence.broken is not None and evidence.broken.kind == "died" and not _crashed_first(evidence.log)
    if evidence.exit is not None and not died:
        return _ended(evidence, evidence.exit, at)
    if evidence.broken is not None:
        return _broken(evidence, evidence.broken, at)
    if "NO-ANSWER" in evidence.events:
        return Verdict.HANG, Broke(step=Step.MAIN_LOOP, load=evidence.loads_acked, how="late")
    if evidence.events:
        ended = FailedCheck(check=Check.ENDED, said=", ".join(evidence.events))
        return Verdict.GUEST_FAULT, GuestFaulted(**at, checks=(ended,))
    if evidence.loads_acked < evidence.loads_asked:
        return Verdict.HARNESS_ERROR, Undecided(why=Why.LOADS, acked=evidence.loads_acked, asked=evidence.loads_asked)
    report = next((line for line in evidence.log.splitlines() if _SANITIZER.search(line)), None)
    if report is not None:
        words, line = own_words(evidence.log), _without_program(report)
        return Verdict.CRASH, Ended(**at, sanitizer=sanitizer_report(words), words=normal(line), line=line)
    return Verdict.OK, None


def _broken(evidence: Evidence, broken: Break, at: dict[str, Any]) -> tuple[Verdict, Cause]:
    line = error_line(evidence.log)
    if broken.kind == "late":
        return Verdict.HANG, Broke(**at, how=broken.kind, symptom=broken.symptom)
    if broken.kind == "unexpected" and line is None:
        return Verdict.HARNESS_ERROR, Undecided(
            why=Why.ANSWER, symptom=broken.symptom, load=broken.load, phase=broken.phase
        )
    ended = evidence.exit if line is not None else None
    return Verdict.REJECT, refusal_of(
        evidence.log,
        at,
        how=broken.kind,
        symptom=broken.symptom,
        signal=ended.signal if ended else None,
        status=ended.status if ended and not ended.signal else None,
    )


def refusal_of(log: str, at: dict[str, Any], **more: Any) -> Refused:
    """A load that returned an error, from what QEMU printed."""
    words = own_words(log)
    complaint = complaint_of(words)
    return Refused(
        **at,
        section=named_section(words) or "",
        field=complaint.field,
        function=complaint.function,
        reason=complaint.reason,
        errno=complaint.errno,
        line=error_line(log) or "",
        **more,
    )


def _crashed_first(log: str) -> bool:
    """Whether an assertion or a sanitizer spoke before the load was refused: what comes behind is the cleaning up."""
    refused = REFUSAL.search(log)
    return refused is not None and crash_line(log[: refused.start()]) is not None


def _refused_by_kvm(evidence: Evidence) -> Refusal | None:
    """What KVM refused, unless QEMU's own fault is to be seen as well."""
    refusals = kvm_refusals(evidence.log)
    if not refusals:
        return None
    ended = evidence.exit
    if ended is not None and ended.crashed and ended.signal != "SIGABRT":
        return None
    faults = [line for line in evidence.log.splitlines() if _ASSERTION.search(line) or _SANITIZER.search(line)]
    return refusals[0] if all(is_kvm_assertion(line) for line in faults) else None


def kvm_cause(refusal: Refusal, at: dict[str, Any]) -> KvmRefused:
    """What KVM refused, as a cause."""
    return KvmRefused(
        **at,
        group=refusal.group,
        ioctl=refusal.ioctl,
        msr=refusal.msr,
        value=refusal.value,
        error=refusal.error,
    )


def _ended(evidence: Evidence, ended: Exit, at: dict[str, Any]) -> tuple[Verdict, Cause]:
    line = crash_line(evidence.log)
    if ended.signal == "SIGKILL" or (ended.signal and not ended.crashed and line is None):
        return Verdict.HOST, Hindered(how=Disturbance.ENDED, signal=ended.signal)
    if ended.crashed or line is not None:
        return Verdict.CRASH, end_of(evidence.log, ended, at, line or "")
    if ended.status == 0:
        exited = FailedCheck(check=Check.EXITED, status=0)
        return Verdict.GUEST_FAULT, GuestFaulted(**at, checks=(exited,))
    return Verdict.REJECT, refusal_of(evidence.log, at, status=ended.status)


def end_of(log: str, ended: Exit, at: dict[str, Any], line: str) -> Ended:
    """A QEMU that crashed, from what it printed.

    :param line: the line of the log that tells most, empty where there is none
    """
    words = own_words(log)
    return Ended(
        **at,
        signal=ended.signal,
        status=None if ended.signal else ended.status,
        assertion=failed_assertion(words),
        sanitizer=sanitizer_report(words),
        words=last_words(words, aborted=ended.signal in ("SIGABRT", "SIGTRAP", None)),
        line=line,
    )


def _at(evidence: Evidence) -> dict[str, Any]:
    """Fields of :class:`harness.results.cause.At`."""
    broken = evidence.broken
    if broken is None:
        return {"step": Step.AFTER, "load": evidence.loads_acked}
    return {"step": broken.step, "load": broken.load, "phase": broken.phase}


def crash_line(log: str) -> str | None:
    """The line of an assertion or of a sanitizer, without the program's name in front."""
    for line in log.splitlines():
        if _ASSERTION.search(line) or _SANITIZER.search(line):
            return _without_program(line)
    return None


def error_line(log: str) -> str | None:
    """The most telling error line of a failed load."""
    lines = [_without_program(line) for line in log.splitlines()]
    for pattern in _LOAD_ERRORS:
        for line in lines:
            if pattern.search(line):
                return line
    return None


def _without_program(line: str) -> str:
    return re.sub(r"^\S*qemu\S*: ", "", line.strip())
