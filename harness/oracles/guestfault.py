# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle ``guest-fault``: from what a guest said of itself after a failover to a verdict for each device. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.colo.messages import Step
from harness.devices.phases import NOTHING_TO_DO_STATUS
from harness.engines.evidence import Evidence
from harness.experiments.guestlife import GuestClock, GuestLife, LifeCheck
from harness.names import PLATFORM
from harness.oracles.load import Judgement, crash_line, end_of, judge
from harness.oracles.oracle import Opinion
from harness.qemu.disturbance import Disturbance, Hindered
from harness.results.cause import Broke, Cause, Check, FailedCheck, GuestFaulted, KernelComplaint
from harness.results.verdict import Verdict

#: Guest time to host time. A reading takes time itself, which is bounded by when it was asked for and answered. A
#: guest whose QEMU gets no CPU may lose time, and need not: its clock has to have gone on by half of the time in which
#: QEMU could run, and may not have gone on by more than half again of all the time that passed.
SLOWEST, FASTEST = 0.5, 1.5
_CLOCK_SLACK_S = 0.1
#: The calendar clock is read in whole seconds, at both ends, and some time behind the other one: as long after it as a
#: reading takes.
_EPOCH_SLACK_S = 1.5
_LEAST_BEATS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRule:
    """A line of the kernel's log that means something.

    :param fault: False for what is worth a word and no verdict
    """

    pattern: str
    complaint: KernelComplaint
    fault: bool = True


#: The first that matches a line counts.
LOG_RULES = (
    LogRule(pattern=r"I/O error", complaint=KernelComplaint.IO_ERROR),
    LogRule(pattern=r"ata\d.*failed command", complaint=KernelComplaint.ATA_COMMAND),
    LogRule(pattern=r"(hard|soft) resetting link", complaint=KernelComplaint.ATA_RESET),
    LogRule(pattern=r"exception Emask", complaint=KernelComplaint.ATA_EXCEPTION),
    LogRule(
        pattern=r"ata\d.*(qc timeout|failed to (IDENTIFY|resume link)|COMRESET failed)",
        complaint=KernelComplaint.ATA_NO_DISK,
    ),
    LogRule(pattern=r"(?i)device (offlined|reset failed)|rejecting I/O", complaint=KernelComplaint.SCSI_OFFLINE),
    LogRule(
        pattern=r"virtio.*(is not a head|out of range|(?i:error)|(?i:failed))", complaint=KernelComplaint.VIRTQUEUE
    ),
    LogRule(pattern=r"vd[a-z]:? .*(?i:timeout|error)", complaint=KernelComplaint.VIRTIO_REQUEST),
    LogRule(pattern=r"NETDEV WATCHDOG|transmit queue \d+ timed out", complaint=KernelComplaint.NET_STUCK),
    LogRule(pattern=r"(soft|hard) lockup|LOCKUP", complaint=KernelComplaint.LOCKUP),
    LogRule(pattern=r"blocked for more than \d+ seconds|hung_task", complaint=KernelComplaint.HUNG_TASK),
    LogRule(pattern=r"(?i)rcu.*(stall|starved)", complaint=KernelComplaint.RCU_STALL),
    LogRule(pattern=r"irq \d+: nobody cared|Disabling IRQ #\d+", complaint=KernelComplaint.STRAY_INTERRUPT),
    LogRule(pattern=r"\bBUG:|kernel BUG at|\bOops\b|general protection fault", complaint=KernelComplaint.KERNEL_BUG),
    LogRule(pattern=r"Kernel panic|Call Trace:|\bWARNING: CPU", complaint=KernelComplaint.KERNEL_TRACE),
    LogRule(pattern=r"(?i)machine check|mce: .*error|NMI: ", complaint=KernelComplaint.PLATFORM_ERROR),
    LogRule(
        pattern=r"Marking clocksource '\S+' as unstable|skipping watchdog check: cs_nsec",
        complaint=KernelComplaint.CLOCKS_PARTED,
        fault=False,
    ),
)


def judge_life(life: GuestLife) -> dict[str, Opinion]:
    """A verdict for every device; the platform answers for what names no device.

    A device whose recipe has no ``life`` is not asked: the kernel's log of a guest that is well speaks for it. One that
    could not be asked, because the loads broke or the guest did not answer, or that did not answer while the guest's
    clock stood still, is not in the result: the platform then has a finding that says why.
    """
    verdict, cause = _not_alive(life)
    stopped = _clock_faults(life.clocks)
    faults: dict[str, list[FailedCheck]] = {PLATFORM: list(stopped)}
    for check in life.checks:
        if check.status is None and stopped:
            faults[PLATFORM] += [replace(fault, device=check.device) for fault in _check_fault(check)]
        else:
            faults.setdefault(check.device, []).extend(_check_fault(check))
    if cause is None and not stopped:
        faults |= {device: [] for device in life.unasked}
    noted: dict[str, list[dict[str, Any]]] = {}
    for line, rule in _matches(life.kernel_log):
        device = _named(line, life.kernel_names) or PLATFORM
        noted.setdefault(device, []).append({"line": line, "complaint": str(rule.complaint), "fault": rule.fault})
        if rule.fault:
            complaint = FailedCheck(check=Check.KERNEL_LOG, said=line, complaint=rule.complaint)
            faults.setdefault(device, []).append(complaint)
    return {
        device: _judgement(life, device, checks, noted.get(device, []), verdict, cause if device == PLATFORM else None)
        for device, checks in faults.items()
    }


def judge_loads(life: GuestLife) -> Judgement:
    """What the loads came to, before the guest was asked anything."""
    return judge(_evidence(life))


def _judgement(
    life: GuestLife,
    device: str,
    checks: Sequence[FailedCheck],
    noted: list[dict[str, Any]],
    verdict: Verdict,
    cause: Cause | None,
) -> Opinion:
    """What one device comes to.

    :param cause: what kept the guest from being asked, with its ``verdict``
    """
    once = [check for at, check in enumerate(checks) if check not in checks[:at]]
    if isinstance(cause, GuestFaulted):
        found: tuple[Cause, ...] = (replace(cause, checks=(*cause.checks, *once)),)
    else:
        asked = _faulted(life, once)
        found = tuple(each for each in (cause, asked if once else None) if each is not None)
    worse = verdict if cause is not None else Verdict.GUEST_FAULT
    return Opinion(verdict=worse if found else Verdict.OK, causes=found, details=_details(life, device, noted))


def _not_alive(life: GuestLife) -> tuple[Verdict, Cause | None]:
    """What kept the guest from being asked, with its verdict; None for one that answered to the end."""
    if life.broken is not None or (life.exit is not None and life.loads_acked < life.loads_asked):
        loads = judge_loads(life)
        return loads.verdict, loads.cause
    if life.exit is not None:
        line = crash_line(life.log)
        if life.exit.crashed or line is not None:
            return Verdict.CRASH, end_of(life.log, life.exit, {"step": Step.FAILOVER, "phase": life.phase}, line or "")
        if life.exit.signal:
            return Verdict.HOST, Hindered(how=Disturbance.ENDED, signal=life.exit.signal)
        exited = FailedCheck(check=Check.EXITED, status=life.exit.status)
        return Verdict.GUEST_FAULT, _faulted(life, [exited])
    if life.failover is not None:
        return Verdict.HANG, Broke(step=Step.FAILOVER, phase=life.phase, how="late", symptom=life.failover)
    found = [FailedCheck(check=Check.ENDED, said=", ".join(life.events))] if life.events else []
    found += [FailedCheck(check=Check.CONSOLE, symptom=life.stuck)] if life.stuck else []
    return Verdict.GUEST_FAULT, _faulted(life, found) if found else None


def _faulted(life: GuestLife, checks: Sequence[FailedCheck]) -> GuestFaulted:
    return GuestFaulted(step=Step.AFTER, phase=life.phase, checks=tuple(checks), after=life.after)


def _evidence(life: GuestLife) -> Evidence:
    return Evidence(
        loads_asked=life.loads_asked,
        loads_acked=life.loads_acked,
        checkpoints_acked=life.loads_acked,
        broken=life.broken,
        exit=life.exit,
        log=life.log,
        events=life.events,
    )


def _clock_faults(clocks: tuple[GuestClock, ...]) -> list[FailedCheck]:
    """First against last reading; nothing to say with fewer than two."""
    if len(clocks) < 2:
        return []
    first, last = clocks[0], clocks[-1]
    beats, up_s, epoch_s = last.beats - first.beats, last.up_s - first.up_s, last.epoch_s - first.epoch_s
    longest = last.answered_s - first.asked_s
    shortest = max(0.0, last.asked_s - first.answered_s - (last.lost_s - first.lost_s))
    reading = (first.answered_s - first.asked_s) + (last.answered_s - last.asked_s)
    faults = []
    if beats < _LEAST_BEATS:
        faults.append(FailedCheck(check=Check.HEARTBEAT, figures={"beats": beats, "passed_s": longest}))
    if not SLOWEST * shortest - _CLOCK_SLACK_S <= up_s <= FASTEST * longest + _CLOCK_SLACK_S:
        passed = {"up_s": up_s, "least_s": shortest, "most_s": longest}
        faults.append(FailedCheck(check=Check.CLOCK, figures=passed))
    if abs(epoch_s - up_s) > _EPOCH_SLACK_S + reading:
        faults.append(FailedCheck(check=Check.CALENDAR, figures={"epoch_s": epoch_s, "up_s": up_s}))
    return faults


def _check_fault(check: LifeCheck) -> list[FailedCheck]:
    lines = check.said.splitlines()
    if check.status in (0, NOTHING_TO_DO_STATUS):
        return []
    if check.status is None:
        waited = {"waited_s": check.seconds}
        return [FailedCheck(check=Check.SILENT, said=lines[-1] if lines else "", figures=waited)]
    return [FailedCheck(check=Check.DEVICE, said=" / ".join(lines[-3:]), status=check.status)]


def _matches(kernel_log: tuple[str, ...]) -> list[tuple[str, LogRule]]:
    found = []
    for line in kernel_log:
        rule = next((rule for rule in LOG_RULES if re.search(rule.pattern, line)), None)
        if rule is not None:
            found.append((re.sub(r"^\[ *[\d.]+\] ", "", line), rule))
    return found


def _named(line: str, kernel_names: Mapping[str, tuple[str, ...]]) -> str | None:
    """The device that a line names; the first name in the line where there are several."""
    places = [
        (match.start(), device)
        for device, names in kernel_names.items()
        for name in names
        if (match := re.search(rf"(?<![\w]){name}(?![\w])", line))
    ]
    return min(places)[1] if places else None


def _details(life: GuestLife, device: str, noted: list[dict[str, Any]]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "phase": life.phase,
        "loads": life.loads_acked,
        "disks": str(life.disks),
        "disks_why": life.disks_why and str(life.disks_why),
        "disks_said": life.disks_said,
        "kernel_log": noted,
    }
    check = next((check for check in life.checks if check.device == device), None)
    if check is not None:
        details["check"] = {"status": check.status, "said": check.said, "seconds": round(check.seconds, 2)}
    if device == PLATFORM and len(life.clocks) > 1:
        first, last = life.clocks[0], life.clocks[-1]
        details["clock"] = {
            "host_s": round(last.asked_s - first.answered_s, 2),
            "up_s": round(last.up_s - first.up_s, 2),
            "epoch_s": last.epoch_s - first.epoch_s,
            "beats": last.beats - first.beats,
        }
    return details
