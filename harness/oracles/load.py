# SPDX-License-Identifier: GPL-2.0-or-later
"""From the evidence of one session to a verdict on its loads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.colo.messages import Step
from harness.devices.device import section_label
from harness.engines.colo import Evidence
from harness.qemu.kvm import Refusal, is_kvm_assertion, kvm_refusals
from harness.results.verdict import Verdict

LOG_LIMIT_CHARS = 4000

_ASSERTION = re.compile(r"Assertion [`'\"].*failed|assertion failed|ERROR:\S+:\d+:|\bBUG:|code should not be reached")
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
_INSTANCE_DEVICE = re.compile(r"error while loading state for instance 0x([0-9a-f]+) of device '([^']+)'")
_VERSION_DEVICE = re.compile(r"unsupported version \d+ for '([^']+)'")
_UNKNOWN_SECTION = re.compile(r"Unknown (?:savevm )?section or instance '([^']+)' (\d+)")
_FOOTER_DEVICE = re.compile(r"Missing section footer for (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict on the loads of one session.

    :param text: one line: what happened
    :param log: what QEMU printed, cut to the last few kilobytes
    :param named: the section that QEMU itself names in its log, or None
    """

    verdict: Verdict
    text: str = ""
    log: str = ""
    named: str | None = None


def judge(evidence: Evidence) -> Judgement:
    """Turn evidence into a verdict; the first that fits, worst first.

    A crash of QEMU is one by a signal or an abort; QEMU that ends with status 0 did so because its guest shut
    down or triple-faulted (``-no-reboot``), which is the guest's fault and not a crash. State that this host's KVM
    refused is the host's matter, though QEMU says so by an abort.
    """
    verdict, text = _verdict(evidence)
    if verdict is Verdict.OK:
        return Judgement(verdict=verdict, log=evidence.log)
    return Judgement(
        verdict=verdict, text=text, log=evidence.log[-LOG_LIMIT_CHARS:], named=_named_section(evidence.log)
    )


def warnings_of(evidence: Evidence) -> tuple[str, ...]:
    """What QEMU printed while it loaded, each text once with the load at which it came first and how often it came."""
    seen: dict[str, list[int]] = {}
    for load, text in evidence.warnings:
        seen.setdefault(_without_program(text), []).append(load)
    return tuple(_warning(text, loads) for text, loads in seen.items())


def _warning(text: str, loads: list[int]) -> str:
    first = f"load {loads[0]}" if loads[0] else "before the first load"
    return f"{first}{f', {len(loads)} times' if len(loads) > 1 else ''}: {text}"


def _verdict(evidence: Evidence) -> tuple[Verdict, str]:
    where = _where(evidence)
    refusal = _refused_by_kvm(evidence)
    if refusal is not None:
        return Verdict.HOST, f"{where}: {refusal.sentence}"
    died = evidence.broken is not None and evidence.broken.kind == "died" and crash_line(evidence.log) is None
    if evidence.exit is not None and not died:
        return _ended(evidence, where)
    if evidence.broken is not None:
        kind, detail = evidence.broken.kind, evidence.broken.detail
        line = error_line(evidence.log)
        if died and line is not None:
            return Verdict.REJECT, f"{where}: {line} (and then {evidence.exit} while it cleaned up)"
        if kind == "late":
            return Verdict.HANG, f"{where}: {detail}"
        if kind == "unexpected" and line is None:
            return Verdict.HARNESS_ERROR, f"{where}: the secondary answered out of order: {detail}"
        return Verdict.REJECT, f"{where}: {line or detail}"
    if "NO-ANSWER" in evidence.events:
        return Verdict.HANG, "every load was acknowledged, and then QEMU's main loop did not answer"
    if evidence.events:
        return Verdict.GUEST_FAULT, f"the guest ended during the loads: {', '.join(evidence.events)}"
    if evidence.loads_acked < evidence.loads_asked:
        return Verdict.HARNESS_ERROR, f"{evidence.loads_acked} of {evidence.loads_asked} loads acknowledged"
    report = next((line for line in evidence.log.splitlines() if _SANITIZER.search(line)), None)
    if report is not None:
        return Verdict.CRASH, f"every load was acknowledged, with a sanitizer report: {_without_program(report)}"
    return Verdict.OK, ""


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


def _ended(evidence: Evidence, where: str) -> tuple[Verdict, str]:
    ended = evidence.exit
    assert ended is not None  # only called for a QEMU that ended
    line = crash_line(evidence.log)
    if ended.signal == "SIGKILL" or (ended.signal and not ended.crashed and line is None):
        return Verdict.HOST, f"{where}: QEMU was killed from outside by {ended} (out of memory?)"
    if ended.crashed or line is not None:
        return Verdict.CRASH, f"{where}: {ended}: {line or 'QEMU printed no reason'}"
    if ended.status == 0:
        return Verdict.GUEST_FAULT, f"{where}: QEMU ended with status 0: the guest shut down or triple-faulted"
    return Verdict.REJECT, f"{where}: {ended}: {error_line(evidence.log) or 'QEMU printed no reason'}"


def _where(evidence: Evidence) -> str:
    broken = evidence.broken
    if broken is None:
        return f"after load {evidence.loads_acked}"
    if broken.step is Step.RESUME:
        return f"when the guest was started after load {broken.load}"
    if broken.step is Step.INCOMING and broken.load:
        return f"load {broken.load}, by an incoming stream"
    if broken.step is Step.INCOMING:
        return "in the incoming stream, before any checkpoint"
    return f"load {broken.load}"


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


def _named_section(log: str) -> str | None:
    match = _INSTANCE_DEVICE.search(log)
    if match:
        return section_label(match[2], int(match[1], 16))
    match = _UNKNOWN_SECTION.search(log)
    if match:
        return section_label(match[1], int(match[2]))
    match = _VERSION_DEVICE.search(log) or _FOOTER_DEVICE.search(log)
    return match[1] if match else None


def _without_program(line: str) -> str:
    return re.sub(r"^\S*qemu\S*: ", "", line.strip())
