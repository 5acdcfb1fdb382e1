# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sentence about a cell: a function for each cause, control and way of isolation.

Reports make their texts here and nowhere else, and nothing reads them back: to reword one changes no signature, no
known issue and no smallest case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.colo.messages import Step
from harness.devices.phases import Missed, Unreached
from harness.engines.postcopy import PostcopyLack
from harness.experiments.interview import After
from harness.qemu.disturbance import TRIES, Disturbance, Hindered
from harness.report.lacks import lack_text
from harness.report.symptoms import symptom_text
from harness.report.text import number, plural, were
from harness.results.answer import REMARKED
from harness.results.cause import (
    At,
    Broke,
    Cause,
    Check,
    Derived,
    Drifted,
    DriftedField,
    During,
    Ended,
    FailedCheck,
    Figure,
    GuestFaulted,
    KernelComplaint,
    KvmRefused,
    Leaked,
    LoadedBy,
    Refused,
    Resource,
    Undecided,
    Unsupported,
    Why,
    exit_of,
)
from harness.results.document import Cell, Colo, ColoReason, Warned
from harness.results.known import KnownRun, News, NewsKind
from harness.results.outcome import ControlName, ControlResult, Isolation, IsolationWay, Moment, Outcome, Repeats
from harness.results.signature import name_of
from harness.results.verdict import FailureClass, Verdict

#: More fields of a section are counted only.
_MAX_FIELDS = 3
_NO_REASON = "QEMU printed no reason"
#: What QEMU is asked for it.
DERIVED_FROM = {
    "memory": "info mtree",
    "device": "info qtree",
    "interrupts": "info pic",
    "pci": "query-pci",
    "block": "query-block",
    "network": "info network",
    "chardev": "query-chardev",
    "usb": "info usb",
    "mouse": "query-mice",
}


_VERDICTS = {
    Verdict.CRASH: "QEMU died: a signal, an assertion or a sanitizer report",
    Verdict.HANG: "no answer within the deadline; QEMU is still there",
    Verdict.REJECT: "the load returned an error",
    Verdict.GUEST_FAULT: "it loaded, and the guest's disk, network, clock or kernel log says that it is broken",
    Verdict.DRIFT: "the state after many loads is not the state after one load",
    Verdict.LEAK: "memory, descriptors or threads grow with each load, beyond the noise",
    Verdict.FLAKY: "the same cell gave different verdicts",
    Verdict.OK: "no problem found in the loads that were made",
    Verdict.UNSUPPORTED: (
        "this QEMU has no such device or machine, the device cannot be migrated, or it has nothing to do in this phase"
    ),
    Verdict.HOST: "the host did not let it be judged, or could not run it",
    Verdict.HARNESS_ERROR: "this program failed; it never counts for or against a device",
}
_CLASSES = {
    FailureClass.FAILS: "it fails in a fresh process too",
    FailureClass.NOT_REENTRANT: "a process takes it once; its second load fails, the incoming stream being the first",
    FailureClass.STALE_WITHOUT_RESET: "it passes when the machine is reset before the load, as for a snapshot (loadvm)",
    FailureClass.RESUME: "the load passed, and starting the guest did not",
}


def verdict_meaning(verdict: Verdict) -> str:
    """What a verdict means, in one line."""
    return _VERDICTS[verdict]


def class_meaning(failure_class: FailureClass) -> str:
    """What a class means, in one line."""
    return _CLASSES[failure_class]


def text_of(cell: Cell) -> str:
    """What happened in a cell, in one line; the meaning of its verdict where no cause is known, empty for one that
    is ok."""
    if cell.verdict is Verdict.OK:
        return ""
    return outcome_text(cell.outcome) or verdict_meaning(cell.verdict)


def outcome_text(outcome: Outcome) -> str:
    """All causes, each once, and how often it came back."""
    causes = "; ".join(dict.fromkeys(cause_text(cause) for cause in outcome.causes))
    return f"{repeats_text(outcome.repeats)}{causes}" if outcome.repeats and causes else causes


def repeats_text(repeats: Repeats) -> str:
    """What stands before a text when it was tried again."""
    if repeats.seen == repeats.of:
        return f"in {repeats.seen} of {plural(repeats.of, 'run')}: "
    others = ", ".join(repeats.others) or "ok"
    return f"{repeats.verdict} in {repeats.seen} of {plural(repeats.of, 'run')}, {others} in the others: "


def cause_text(cause: Cause) -> str:
    """One cause in one line, with where it happened."""
    return f"{where_text(cause)}{what_text(cause)}"


def what_text(cause: Cause) -> str:
    """One cause without where it happened."""
    return _TEXTS[type(cause)](cause)


# -- where -----------------------------------------------------------------------------------------------------------

_DURING = {
    During.HEALTHY_DISK: "secondary with a healthy disk: ",
    During.FAILING_DISK: "secondary with a failing disk: ",
    During.LEAKS: "while looking for leaks: ",
}


def where_text(cause: Cause) -> str:
    """What stands before a cause: phase, experiment, load."""
    during = getattr(cause, "during", None)
    parts = [_DURING[during]] if during else []
    if isinstance(cause, Undecided) and cause.phase and cause.load is None:
        parts.append(f"phase {cause.phase}: ")
    if isinstance(cause, GuestFaulted) and not any(check.check is Check.EXITED for check in cause.checks):
        return "".join(parts)
    if isinstance(cause, At):
        parts.append(f"{_step_text(cause)}: ")
    return "".join(parts)


def _step_text(at: At) -> str:
    if at.step is Step.RESUME:
        return f"when the guest was started after load {at.load}"
    if at.step is Step.INCOMING:
        return f"load {at.load}, by an incoming stream" if at.load else "in the incoming stream, before any checkpoint"
    if at.step is Step.RECORD:
        return f"while the guest ran on its way to phase {at.phase}, before anything was loaded"
    if at.step is Step.SAVE:
        return f"while the machine was saved in phase {at.phase}"
    if at.step is Step.FAILOVER:
        return "after the failover"
    if at.step is Step.MAIN_LOOP:
        return "every load was acknowledged"
    if at.step is Step.AFTER:
        return "after the loads" if at.load is None else f"after load {at.load}"
    return f"load {at.load}" if at.load is not None else "between the loads"


# -- causes ----------------------------------------------------------------------------------------------------------


def broke_text(broke: Broke) -> str:
    """No answer."""
    if broke.step is Step.MAIN_LOOP:
        return "then QEMU's main loop did not answer"
    if broke.step is Step.FAILOVER:
        return f"it did not end{f': {symptom_text(broke.symptom)}' if broke.symptom else ''}"
    return symptom_text(broke.symptom) if broke.symptom else f"the answer was {broke.how}"


def ended_text(ended: Ended) -> str:
    """QEMU ended."""
    if exit_of(ended) is None:
        return f"a sanitizer reports: {ended.line}"
    return f"{exit_of(ended)}: {ended.line or _NO_REASON}"


def refused_text(refused: Refused) -> str:
    """A load that returned an error."""
    said = refused.line or (symptom_text(refused.symptom) if refused.symptom else _NO_REASON)
    if refused.how == "died":
        return f"{said} (and then {exit_of(refused)} while it cleaned up)" if exit_of(refused) else said
    return f"{exit_of(refused)}: {said}" if exit_of(refused) else said


def drifted_text(drifted: Drifted) -> str:
    """Fields that moved, the first of them with their values."""
    told = "; ".join(field_text(field) for field in drifted.fields[:_MAX_FIELDS])
    more = drifted.count - min(drifted.count, _MAX_FIELDS)
    rest = f", and {plural(more, 'more field')}" if more else ""
    return f"after {plural(drifted.loads, 'load')} it is not what it was after one: {told}{rest}"


def derived_text(derived: Derived) -> str:
    """What a loaded machine shows otherwise than the recorded one."""
    lines = [*(f"gone: {line}" for line in derived.gone), *(f"new: {line}" for line in derived.new)]
    shown = "; ".join(lines[:_MAX_FIELDS])
    more = derived.count - min(len(lines), _MAX_FIELDS)
    rest = f", and {plural(more, 'more line')}" if more else ""
    return (
        f"after {plural(derived.load, 'load')} QEMU shows another state than the recorded machine had "
        f"({DERIVED_FROM[derived.about]}): {shown}{rest}"
    )


def field_text(field: DriftedField) -> str:
    """One field that moved."""
    if field.creeps and field.per_load is not None:
        return f"{field.field} goes from {field.values[0]} to {field.values[-1]}, {field.per_load:+g} per load"
    values = ("absent" if value is None else str(value) for value in field.values)
    return f"{field.field} is " + ", then ".join(values)


def leaked_text(leaked: Leaked) -> str:
    """What each load leaves behind."""
    what = {
        Resource.MEMORY: f"bytes of memory{_chunks(leaked.chunks)}",
        Resource.PAGES: "bytes of memory outside of the heap",
        Resource.DESCRIPTORS: "descriptors",
        Resource.THREADS: "threads",
        Resource.STATE: "bytes of saved state",
    }[leaked.resource]
    much = figure_text(leaked.per_load, leaked.low, leaked.high)
    which = "" if leaked.section else " of the whole state"
    if leaked.way is LoadedBy.CHECKPOINT:
        text = f"with one load a checkpoint, each load{which} leaves behind {much} {what}"
    else:
        text = f"back to back, each load leaves behind {much} {what}"
    text += f"; over {plural(leaked.loads, 'load')}, confirmed in a second process"
    return text if leaked.other is None else f"{text}; {_other_way(leaked, leaked.other)}"


def _other_way(leaked: Leaked, other: Figure) -> str:
    """What the same section leaves behind when it is loaded in the other way."""
    much = figure_text(other.per_load, other.low, other.high)
    if leaked.way is LoadedBy.CHECKPOINT:
        return f"back to back {much}"
    return f"with one load a checkpoint {much}: no leak of COLO"


def figure_text(per_load: float, low: float, high: float) -> str:
    """A growth with its interval: ``632 [631.8, 632.3]``; without one where it was counted."""
    if low == high:
        return _plain_number(per_load)
    return f"{_plain_number(per_load)} [{_plain_number(low)}, {_plain_number(high)}]"


def _plain_number(value: float) -> str:
    """One digit behind the point where that says something, two of what is small."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _chunks(chunks: Sequence[tuple[int, float]]) -> str:
    named = [f"{count:.2f} of {plural(size, 'byte')}" for size, count in chunks]
    return f" (heap chunks: {', '.join(named)})" if named else ""


def guest_faulted_text(faulted: GuestFaulted) -> str:
    """Everything that is wrong with a guest."""
    return "; ".join(check_text(check, faulted.after) for check in faulted.checks)


_AFTER = {After.FAILOVER: "the failover", After.MIGRATION: "the migration"}


def check_text(failed: FailedCheck, after: After | None = None) -> str:
    """One thing that is wrong with a guest.

    :param after: what had brought it to run
    """
    text = _CHECKS[failed.check](failed, _AFTER[after] if after else "")
    return f"{failed.device}, with such a clock: {text}" if failed.device else text


def _heartbeat(failed: FailedCheck, _: str) -> str:
    return f"the heartbeat went on by {failed.figures['beats']:g} in {failed.figures['passed_s']:.1f} s"


def _clock(failed: FailedCheck, _: str) -> str:
    figures = failed.figures
    return (
        f"the guest's clock went on by {figures['up_s']:.2f} s in {figures['least_s']:.2f} to {figures['most_s']:.2f} s"
    )


def _calendar(failed: FailedCheck, _: str) -> str:
    figures = failed.figures
    return (
        f"the guest's calendar went on by {figures['epoch_s']:g} s while its clock went on by {figures['up_s']:.2f} s"
    )


def _console(failed: FailedCheck, after: str) -> str:
    seen = f": {symptom_text(failed.symptom)}" if failed.symptom else ""
    return f"the guest does not answer{f' after {after}' if after else ''}{seen}"


def _state(failed: FailedCheck, after: str) -> str:
    return f"after {after or 'the loads'} the machine is {failed.said}, not {failed.wanted}"


_CHECKS: Mapping[Check, Callable[[FailedCheck, str], str]] = {
    Check.ENDED: lambda failed, after: f"the guest ended{'' if after else ' during the loads'}: {failed.said}",
    Check.EXITED: lambda failed, _: f"QEMU ended with status {failed.status}: the guest shut down or triple-faulted",
    Check.CONSOLE: _console,
    Check.HEARTBEAT: _heartbeat,
    Check.CLOCK: _clock,
    Check.CALENDAR: _calendar,
    Check.DEVICE: lambda failed, _: f"{failed.said or 'nothing said'} (status {failed.status})",
    Check.SILENT: lambda failed, _: (
        f"no end within {failed.figures.get('waited_s', 0):.0f} s: {failed.said or 'nothing said'}"
    ),
    Check.KERNEL_LOG: lambda failed, _: f"kernel log: {failed.said}",
    Check.REQUESTS: lambda failed, _: f"requests that were held back did not succeed: {failed.said}",
    Check.RESENT: lambda failed, _: f"a request that was held back was not sent again: {failed.said}",
    Check.STATE: _state,
}


_COMPLAINTS = {
    KernelComplaint.IO_ERROR: "a request came back with an error",
    KernelComplaint.ATA_COMMAND: "libata gave up on a command",
    KernelComplaint.ATA_RESET: "libata reset the link to get on",
    KernelComplaint.ATA_EXCEPTION: "libata's error handler ran",
    KernelComplaint.ATA_NO_DISK: "no disk answered",
    KernelComplaint.SCSI_OFFLINE: "the SCSI layer gave the disk up",
    KernelComplaint.VIRTQUEUE: "the virtqueue is not sane",
    KernelComplaint.VIRTIO_REQUEST: "a virtio disk failed a request",
    KernelComplaint.NET_STUCK: "the network device does not send",
    KernelComplaint.LOCKUP: "a CPU did not schedule",
    KernelComplaint.HUNG_TASK: "a task waits for ever",
    KernelComplaint.RCU_STALL: "a CPU did not pass a quiescent state",
    KernelComplaint.STRAY_INTERRUPT: "an interrupt that no device takes back",
    KernelComplaint.KERNEL_BUG: "the kernel went wrong",
    KernelComplaint.KERNEL_TRACE: "the kernel printed a trace",
    KernelComplaint.PLATFORM_ERROR: "the platform reported an error",
    KernelComplaint.CLOCKS_PARTED: (
        "TSC and HPET parted: under TCG a load of `timer` does not take the TSC back (cpu_get_ticks keeps the largest "
        "value that it returned so far), while everything else goes back. A schedule that rewinds to one moment adds "
        "up what a primary whose clock moves on would hide, so this alone is no verdict"
    ),
}


def complaint_text(complaint: KernelComplaint) -> str:
    """What a line of the guest's kernel log means."""
    return _COMPLAINTS[complaint]


def kvm_refused_text(refused: KvmRefused) -> str:
    """What KVM did not take."""
    way = "give" if "_GET_" in refused.ioctl else "take"
    value = f" = {refused.value:#x}" if refused.value is not None else ""
    by = f" by {refused.ioctl}" if refused.msr is not None else ""
    return f"this host's KVM did not {way} {refused.group}{value}{by}{f': {refused.error}' if refused.error else ''}"


def hindered_text(hindered: Hindered) -> str:
    """What the host did."""
    said = f" ({hindered.said})" if hindered.said else ""
    match hindered.how:
        case Disturbance.ENDED:
            return f"QEMU was ended from outside by {hindered.signal}{said}"
        case Disturbance.OUT_OF_MEMORY:
            return f"the host has no memory left for QEMU{said}"
        case Disturbance.STOPPED:
            return f"QEMU was stopped from outside, or held by the host's kernel, for {_figure(hindered.seconds)} s"
        case Disturbance.STOOD_STILL:
            return f"this program, or the whole host, stood still for {_figure(hindered.seconds)} s"
        case Disturbance.STARVED:
            pressed = f"; the host had too few CPUs for {hindered.pressure:.0%} of it" if hindered.pressure else ""
            share = f", {hindered.share:.0%} of its time{pressed}" if hindered.share else ""
            return f"QEMU was ready to run and got no CPU for {_figure(hindered.seconds)} s{share}"


def disturbed_error_text(said: str, hindered: Sequence[Hindered]) -> str:
    """What came of the last try, and what the host did to it; the first alone where the host did nothing."""
    causes = "; ".join(dict.fromkeys(hindered_text(each) for each in hindered))
    return f"{said}; the host disturbed each of {TRIES} tries: {causes}" if causes else said


def _figure(seconds: float | None) -> str:
    return f"{seconds or 0.0:g}"


def tried_again_text(outcome: Outcome) -> str:
    """Why it was tried again, empty when it was not."""
    if not outcome.hindered:
        return ""
    causes = "; ".join(dict.fromkeys(hindered_text(each) for each in outcome.hindered))
    return f"tried again, because the host disturbed it: {causes}"


def disturbed_text(cells: Iterable[Cell]) -> str:
    """How many cells the host disturbed, and what became of them; empty when it disturbed none."""
    again = [cell for cell in cells if cell.outcome.hindered]
    if not again:
        return ""
    failed = sum(cell.verdict is Verdict.HOST for cell in again)
    end = f", {failed} of them in vain: their verdict is host" if failed else ""
    return f"{were(len(again), 'cell')} tried again, because the host disturbed the first try{end}"


def unsupported_text(unsupported: Unsupported) -> str:
    """What is lacking."""
    return lack_text(unsupported.lack)


_STEPS = {
    "bind": "its driver could not be bound",
    "busy": "it could not be made to work",
    "check": "it was not seen to work",
    "idle": "its work could not be ended",
    "unbind": "its driver could not be taken from it",
    "rebind": "its driver could not be given back",
    "boot": "the guest's kernel is not made for this machine type",
    "reboot": "the machine could not be reset by its guest",
    "sleep": "QEMU wakes a machine that sleeps before it saves it",
    "suspend": "the machine could not be suspended",
    "plug": "it could not be plugged out and in again",
    "fail": "none of its disks could be made to fail",
    "halt": "its disk was to hold a request back, and did not",
}
#: What is said of a step that nobody said anything of.
_SILENT = {"plug": "the guest did not let go of it"}


def unreached_text(unreached: Unreached) -> str:
    """Why a device is not in a phase."""
    if unreached.how is Missed.REPORTS_ERRORS:
        return f"phase {unreached.phase}: QEMU has no werror and no rerror for its disk: it cannot stop for an error"
    silent = _SILENT.get(unreached.step, "the guest printed nothing")
    why = f"{_STEPS.get(unreached.step, unreached.step)}: {unreached.said or silent}"
    how = "nothing to do" if unreached.how is Missed.NOTHING_TO_DO else "not reached"
    return f"phase {unreached.phase}: {how}: {why}"


def undecided_text(undecided: Undecided) -> str:
    """Why nothing was decided."""
    return _WHYS[undecided.why](undecided)


def _too_early(undecided: Undecided) -> str:
    where = "early" if undecided.load is None else f"in load {undecided.load}"
    return f"not judged: the secondary broke {where}, before there were two states to compare"


def _answer(undecided: Undecided) -> str:
    seen = f": {symptom_text(undecided.symptom)}" if undecided.symptom else ""
    return f"load {undecided.load}: the secondary answered out of order{seen}"


_POSTCOPY = {
    PostcopyLack.CAPABILITY: "this QEMU has no migration capability postcopy-ram",
    PostcopyLack.KERNEL: "this kernel has no userfaultfd",
    PostcopyLack.PRIVILEGE: (
        "userfaultfd wants root, access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
    ),
    PostcopyLack.REFUSED: "",
}


def _unavailable(undecided: Undecided) -> str:
    lack = _POSTCOPY[undecided.lack] if undecided.lack else ""
    return f"could not be tried: {'; '.join(part for part in (undecided.said, lack) if part)}"


_WHYS: Mapping[Why, Callable[[Undecided], str]] = {
    Why.STOPPED: lambda _: "the run did not come to its end",
    Why.NOT_JUDGED: lambda _: "it was not judged",
    Why.ERROR: lambda undecided: undecided.said,
    Why.ANSWER: _answer,
    Why.LOADS: lambda undecided: (
        f"{number(undecided.acked or 0)} of {plural(undecided.asked or 0, 'load')} acknowledged"
    ),
    Why.LEFT_OUT: lambda undecided: f"{', '.join(undecided.sections)} was left out",
    Why.NO_SECTION: lambda _: "the recording has no section of this device",
    Why.NOT_ASKED: lambda _: "not asked: its guest broke, and could not be made to answer without what broke it",
    Why.TOO_MANY: lambda undecided: (
        f"not judged: {plural(len(undecided.sections), 'section')} are refused, and no load passed without them"
    ),
    Why.OTHERS: lambda undecided: (
        f"{number(undecided.acked or 0)} of {plural(undecided.asked or 0, 'load')} passed; the others broke, "
        "and not for a section of this device"
    ),
    Why.UNAVAILABLE: _unavailable,
    Why.TOO_EARLY: _too_early,
    Why.NOT_MET: lambda undecided: f"no request met the failing sector of {undecided.said}",
    Why.CANARY: lambda undecided: (
        f"state with a planted fault came out {undecided.said} on this machine, so that nothing it says can be trusted"
    ),
    Why.BUDGET: lambda undecided: f"not judged within the {undecided.seconds:g} s that --budget allows",
}

_TEXTS: Mapping[type, Callable[[Any], str]] = {
    Broke: broke_text,
    Ended: ended_text,
    Refused: refused_text,
    Drifted: drifted_text,
    Derived: derived_text,
    Leaked: leaked_text,
    GuestFaulted: guest_faulted_text,
    KvmRefused: kvm_refused_text,
    Hindered: hindered_text,
    Unsupported: unsupported_text,
    Unreached: unreached_text,
    Undecided: undecided_text,
}


# -- controls and isolation ------------------------------------------------------------------------------------------

_NAMES = {
    ControlName.FRESH: "fresh",
    ControlName.LOADVM: "loadvm",
    ControlName.PAIR: "pair",
    ControlName.SAME: "the same state again",
    ControlName.BACK_TO_BACK: "back to back",
}


def controls_text(outcome: Outcome) -> str:
    """Which controls were run and what they gave; empty where none was."""
    parts = [control_text(control) for control in outcome.controls]
    parts += [f"broke in the {outcome.moment}"] if outcome.moment else []
    return "; ".join(parts)


def control_text(control: ControlResult) -> str:
    """What one control gave."""
    name, verdict = _NAMES[control.name], control.verdict
    why = "" if control.cause is None else cause_text(control.cause)
    if not control.brought_in:
        return f"{name}: undecided, the state could not be brought in: {why}"
    if verdict is Verdict.OK and control.passed:
        comma = "" if control.name is ControlName.FRESH else ","
        return f"{name}: ok{comma} {_count(control)}"
    if not control.decided:
        return f"{name}: undecided ({why or verdict}), {number(control.passed)} of {number(control.asked)} passed"
    when = " when the guest was started" if control.moment is Moment.RESUME else ""
    what = " with the same message" if control.alike else f": {why}"
    if control.name is ControlName.FRESH:
        failed = control.asked - control.passed
        return f"{name}: {verdict} in {failed} of {plural(control.asked, 'process')}{when}{what}"
    return f"{name}: {verdict} after {_count(control)}{when}{what}"


def _count(control: ControlResult) -> str:
    if control.name is ControlName.FRESH:
        return f"in {number(control.passed)} of {plural(control.asked, 'process')}"
    unit = "checkpoint" if control.name is ControlName.PAIR else "load"
    return plural(control.passed, unit)


def isolation_text(isolation: Isolation, sections: Sequence[str]) -> str:
    """How the blamed sections were found."""
    if isolation.way is IsolationWay.SMALLEST_SET:
        return f"the smallest set of sections that does it in a parked guest, of {isolation.of}"
    if isolation.way is IsolationWay.WITHOUT:
        return f"found by leaving out: of {plural(isolation.of, 'device')}, all loads pass without this one"
    loads = isolation.loads
    first = ", as the first load behind the incoming stream," if loads == 1 and not isolation.together else ""
    times = "twice in one buffer" if isolation.together else "once" if loads == 1 else f"{number(loads)} times"
    return (
        f"isolated: loading section {', '.join(sections)} alone, {times}{first} into a parked guest in a fresh process "
        "reproduces the failure"
    )


# -- answers ---------------------------------------------------------------------------------------------------------

COLO_TEXTS = {
    Colo.SAFE: "safe for COLO as far as tested",
    Colo.REMARKS: "no load breaks, with remarks",
    Colo.UNSAFE: "not safe for COLO",
    Colo.REFUSED: "COLO is refused",
    Colo.UNDECIDED: "not decided",
}


#: What an answer says more of than the name: figures, and what is no finding.
_WHOLE = (None, Verdict.OK, Verdict.UNSUPPORTED, *REMARKED)


def is_whole(reason: ColoReason) -> bool:
    """Whether :func:`colo_reason_text` says all of it; of the rest a report has a finding that does."""
    return reason.verdict in _WHOLE


def colo_reason_text(reason: ColoReason) -> str:
    """One reason of an answer; of what the findings tell in full the name and the verdict."""
    who = ", ".join(reason.sections) or reason.device
    if not is_whole(reason):
        text = f"{who}: {reason.verdict}" if who else str(reason.verdict)
        return f"without the reset before each load, {text}" if reason.hidden else text
    verdict = f"{reason.verdict}: " if reason.verdict and reason.verdict is not Verdict.OK else ""
    what = "; ".join(dict.fromkeys(what_text(cause) for cause in reason.causes))
    text = f"{who}: {verdict}{what}" if who else f"{verdict}{what}"
    if reason.verdict is Verdict.LEAK:
        return text
    return f"without the reset before each load, {text}" if reason.hidden else text


def warning_text(warned: Warned) -> str:
    """A line that QEMU printed, with when and how often."""
    first = f"load {warned.load}" if warned.load else "before the first load"
    return f"{first}{f', {warned.times} times' if warned.times > 1 else ''}: {warned.text}"


def news_text(news: News) -> str:
    """What is new about a known issue."""
    issue, where = news.issue, f"on QEMU {news.version} ({news.machine})"
    if news.kind is NewsKind.GONE:
        count = len(news.cells)
        what = f"{plural(count, 'cell')} that it was expected in passed"
        return f"gone: {issue.signature} {where}: {what}; {issue.link}"
    if news.kind is NewsKind.PAST:
        return f"known until {issue.until}, and excused no longer: {issue.signature} {where}; {issue.link}"
    if news.kind is NewsKind.UNLISTED:
        known = f"known for {', '.join(issue.affected)}, and not listed for this version"
        return f"{known}: {issue.signature} {where}; {issue.link}"
    return f"fails although fixed in {issue.fixed_in}: {issue.signature} {where}; {issue.link}"


def known_text(held: KnownRun) -> str:
    """What is known and what is news, a line each; empty when there is nothing to say."""
    issues: dict[str, int] = {}
    for cell in held.doc.cells:
        if cell.known:
            key = f"known: {name_of(cell)} ({cell.known})"
            issues[key] = issues.get(key, 0) + 1
    lines = [f"{line}: {plural(count, 'cell')}" for line, count in issues.items()]
    return "\n".join(lines + [news_text(news) for news in held.news])


def once(texts: Iterable[str]) -> list[str]:
    """Each text once, without empty ones."""
    return [text for text in dict.fromkeys(texts) if text]
