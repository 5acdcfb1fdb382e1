# SPDX-License-Identifier: GPL-2.0-or-later
"""A stable name for a failure, so that nobody looks at one bug twice. Pure.

A name holds what belongs to the bug: function or assertion, what the log complains of, section, machine family. What
differs from one run, host or version to the next stays out: addresses, counts, line numbers, paths, bus paths,
instance numbers, and the directory of a source file (``softmmu/memory.c`` became ``system/memory.c``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from harness.arch import family_of as machine_family
from harness.qemu.disturbance import Hindered
from harness.results.cause import (
    Broke,
    Cause,
    Check,
    Derived,
    Drifted,
    Ended,
    FailedCheck,
    GuestFaulted,
    KvmRefused,
    Leaked,
    Refused,
    Resource,
    Undecided,
)
from harness.results.frames import plain_function
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

if TYPE_CHECKING:
    from harness.results.document import Cell

#: Stands in a name for a part that is not known.
UNKNOWN = "-"
#: A complaint is cut here; what tells two apart stands in front.
_TEXT_CHARS = 100
_MAX_FIELDS = 3

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a failure is recognised by; two failures are one bug when their :attr:`name` is the same.

    :param kind: crash, hang, reject, guest-fault, drift, leak or host
    :param function: the function that failed; of a reject the field that was not taken; of a hang the step
    :param assertion: the expression, the complaint, the signal's name, the drifted fields, or what leaks
    :param file: source file without its folder; not part of the name
    :param section: idstr without bus path and instance, several joined with ``+``; ``device virtio-net`` where only
        the row is known
    :param family: machine family such as ``q35``
    """

    kind: str
    function: str = ""
    assertion: str = ""
    file: str = ""
    section: str = ""
    family: str = ""

    @property
    def name(self) -> str:
        """One line: ``crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35``."""
        parts = (self.kind, self.function, self.assertion, self.section, self.family)
        return ":".join(part or UNKNOWN for part in parts)

    def to_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "kind": self.kind,
            "function": self.function,
            "assertion": self.assertion,
            "file": self.file,
            "section": self.section,
            "family": self.family,
        }


def signature_of(outcome: Outcome, *, machine: str, device: str = "", function: str = "") -> Signature | None:
    """Name a failure by its causes and sections.

    :param machine: versioned machine type or family
    :param device: it names a failure that nothing else does
    :param function: of a backtrace, for a crash whose log tells none
    :return: None when it is ok, unsupported, or this program's own failure
    """
    verdict = outcome.came_to
    if not outcome.causes or not (verdict.is_finding or verdict is Verdict.HOST):
        return None
    first = outcome.causes[0]
    found = _NAMERS[type(first)](outcome.causes)
    if found is None:
        return None
    if isinstance(first, Ended) and not found.function:
        found = replace(found, function=plain_function(function))
    labels = plain_sections(outcome.sections)
    if not labels and isinstance(first, Refused) and first.section:
        labels = plain_section(first.section)
    if not labels and device and not (found.function or _tells(found)):
        labels = f"device {device}"
    return replace(found, section=labels, family=family_of(machine))


def signature_of_cell(cell: Cell) -> Signature | None:
    """The name of a cell's finding; None where there is none."""
    return signature_of(cell.outcome, machine=cell.machine, device=cell.device)


def name_of(cell: Cell) -> str:
    """The name that stands in the cell, else the one that it gets; empty where it has no finding."""
    found = None if cell.signature else signature_of_cell(cell)
    return cell.signature or (found.name if found else "")


def look_of(cell: Cell) -> tuple[str, ...]:
    """Equal for the same finding seen twice: by its signature, else by its causes, wherever they came."""
    blamed = cell.blamed or (f"device {cell.device}",)
    causes = (repr(replace(cause, **_nowhere(cause))) for cause in cell.outcome.causes)
    return (str(cell.verdict), *blamed, *((cell.signature,) if cell.signature else causes))


def _nowhere(cause: Cause) -> dict[str, Any]:
    return {name: None for name in ("load", "phase") if hasattr(cause, name)}


def _tells(found: Signature) -> bool:
    """Whether the complaint alone tells a bug from others: a signal, a step, or a symptom of the guest does not."""
    words = found.assertion
    return found.kind in ("crash", "reject", "host") and bool(words) and not _SIGNAL.fullmatch(words)


# Machines and sections

_MACHINES = re.compile(r"\b(?:pc-(?:q35|i440fx)-[\w.+-]*\w|virt-(?:rhel)?\d+\.[\w.]*\w)")
_VERSION_TAIL = re.compile(r"-(rhel|focal|jammy|noble|bionic|xenial|trusty|\d)[\w.]*(-hpb)?$")
_BUS_PART = re.compile(r"[0-9a-fA-F]+(?:[:.][0-9a-fA-F]+)*")


def family_of(machine: str) -> str:
    """``pc-q35-7.2`` is ``q35``, ``pc-i440fx-11.1`` is ``pc``, ``virt-9.0`` is ``virt``."""
    family = machine_family(machine)
    return family if family != machine else _VERSION_TAIL.sub("", machine) or machine


def plain_section(label: str) -> str:
    """``0000:00:1f.0/ICH9LPC`` is ``ICH9LPC``, ``i8259#1`` is ``i8259``."""
    parts = re.sub(r"#\d+$", "", label.strip()).split("/")
    while len(parts) > 1 and _BUS_PART.fullmatch(parts[0]) and re.search(r"\d", parts[0]):
        parts.pop(0)
    return "/".join(parts)


def plain_sections(labels: Sequence[str]) -> str:
    """Several of them, each once."""
    names = {plain_section(label) for label in labels}
    return "+".join(sorted(names))


# Text

#: What stands before a line of QEMU: a time, the program's name.
PROGRAM = re.compile(
    r"^(?:\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d{4})?:? )?"
    r"(?:(?:[^\s:]*/)?(?:qemu(?:-system)?(?:-[\w.-]+)?|kvm): )?(?:error: )?"
)
_PATHS = re.compile(r"(?<![\w.])/(?:[\w.+~-]+/)+([\w.+~-]+)")
_BUS = re.compile(r"\b[0-9a-f]{4}(?::[0-9a-f]{2})+\.[0-7](?::[0-9a-f]{2}\.[0-7])*/")
_COMPARED = re.compile(r"\b[0-9a-f]+ (!=|<|>|<=|>=|==) [0-9a-f]+\b")
_NUMBERS = re.compile(
    r"\b0x[0-9a-fA-F]+|(?<![\w.$-])-?\d+(?:[.,:]\d+)*(?![\w])|(?<![\w-])\d+(?=(?:s|[mun]s|[KMGT]i?B?|B)\b)"
)
_LEFT_OVER = re.compile(r"[^\x20-\x7e]+")


def normal(text: str) -> str:
    """A line without what differs from run to run: numbers become ``#``, paths their last name."""
    text = _LEFT_OVER.sub("", PROGRAM.sub("", text.strip()))
    text = _MACHINES.sub(lambda match: family_of(match[0]), _BUS.sub("", text))
    text = _COMPARED.sub(r"# \1 #", _PATHS.sub(r"\1", text))
    text = re.sub(r"\s+", " ", _NUMBERS.sub("#", text)).strip().rstrip(".:")
    return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS].rpartition(" ")[0]


# What each cause is called. The words are the name's own: no report is made of them.

_SIGNAL = re.compile(r"SIG[A-Z0-9]+|signal \d+")
NO_REASON = "QEMU printed no reason"


def _ended(causes: Sequence[Cause]) -> Signature:
    (ended,) = _of(Ended, causes[:1])
    if ended.sanitizer:
        report = ended.sanitizer
        words = f"{report.tool}: {report.complaint}"
        return Signature(kind="crash", function=report.function, assertion=words, file=report.file)
    if ended.assertion:
        failed = ended.assertion
        return Signature(kind="crash", function=failed.function, assertion=failed.expression, file=failed.file)
    status = "" if ended.status is None else f"exit status {ended.status}"
    return Signature(kind="crash", assertion=ended.words or ended.signal or status)


def _refused(causes: Sequence[Cause]) -> Signature:
    (refused,) = _of(Refused, causes[:1])
    # a check that many fields have tells nothing without the field; another tells enough
    field = _of_section(refused) if _GENERIC.fullmatch(refused.reason) else ""
    reason = refused.reason
    if not reason and not field:
        reason = f"error {refused.errno}" if refused.errno else normal(refused.line) or refused.how or NO_REASON
    return Signature(kind="reject", function=refused.function or field, assertion=reason)


def _of_section(refused: Refused) -> str:
    """The field that was not taken. Builds before 10.1 name its description too; that of the section says nothing."""
    return refused.field.removeprefix(f"{plain_section(refused.section)}.")


_GENERIC = re.compile(r"# != #|Invalid value # expecting .*|")


def _broke(causes: Sequence[Cause]) -> Signature:
    (broke,) = _of(Broke, causes[:1])
    return Signature(kind="hang", function=str(broke.step))


_INDEX = re.compile(r"(?<!config)\[\d+\]")


def _drifted(causes: Sequence[Cause]) -> Signature:
    """The fields that drifted, in the state's order. The offset of a register is part of its name, an index is not."""
    fields = [each.field for drifted in _of(Drifted, causes) for each in drifted.fields[:_MAX_FIELDS]]
    names = dict.fromkeys(_INDEX.sub("", field) for field in fields)
    return Signature(kind="drift", assertion=", ".join(list(names)[:_MAX_FIELDS]))


_PLACES = re.compile(r"\b[0-9a-f]{6,16}(-[0-9a-f]{6,16})?\b|\b[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")


def _derived(causes: Sequence[Cause]) -> Signature:
    """What the loaded machine shows otherwise; where it lies is no part of the name."""
    (derived,) = _of(Derived, causes[:1])
    lines = [*derived.gone[:1], *derived.new[:1]][:1]
    words = ", ".join(normal(_PLACES.sub("#", line.rpartition(": ")[2])) for line in lines)
    return Signature(kind="drift", function=derived.about, assertion=words)


def _leaked(causes: Sequence[Cause]) -> Signature:
    order = list(Resource)
    worst = min((leaked.resource for leaked in _of(Leaked, causes)), key=order.index)
    # where it lies, in the heap or beside it, is no other leak
    return Signature(kind="leak", assertion=str(Resource.MEMORY if worst is Resource.PAGES else worst))


_CHECKS = {
    Check.HEARTBEAT: "the heartbeat went on by # in # s",
    Check.CLOCK: "the guest's clock went on by # s in # to # s",
    Check.CALENDAR: "the guest's calendar went on by # s while its clock went on by # s",
    Check.SILENT: "no end within # s",
    Check.CONSOLE: "the console does not answer",
    Check.EXITED: "QEMU ended with status #: the guest shut down or triple-faulted",
    Check.ENDED: "the guest ended",
    Check.REQUESTS: "requests that were held back did not succeed",
    Check.RESENT: "a request that was held back was not sent again",
    Check.STATE: "the machine is in another state",
}


#: What stands with these is this program's own.
_NO_WORDS = (Check.HEARTBEAT, Check.CLOCK, Check.CALENDAR, Check.CONSOLE)


def _guest_faulted(causes: Sequence[Cause]) -> Signature:
    (faulted,) = _of(GuestFaulted, causes[:1])
    return Signature(kind="guest-fault", assertion=_check(faulted.checks[0]) if faulted.checks else "")


def _check(failed: FailedCheck) -> str:
    if failed.check is Check.KERNEL_LOG:
        return f"kernel log: {failed.complaint}"
    words = "" if failed.check in _NO_WORDS else failed.said
    words = normal(re.sub(r"\b([a-zA-Z]+)\d+\b", r"\1#", words.partition("; ")[0]))
    if failed.check is Check.DEVICE:
        words = f"{words or 'nothing said'} (status #)"
    return ": ".join(part for part in (_CHECKS.get(failed.check, ""), words) if part)


def _kvm_refused(causes: Sequence[Cause]) -> Signature:
    """A host that does not have a register which the state holds: not a bug of a device."""
    (refused,) = _of(KvmRefused, causes[:1])
    if refused.msr is None:
        return Signature(kind="host", assertion=f"KVM refused {refused.group}")
    way = "get" if "_GET_" in refused.ioctl else "set"
    return Signature(kind="host", assertion=f"failed to {way} MSR {refused.msr:#x}")


def _hindered(causes: Sequence[Cause]) -> Signature:
    (hindered,) = _of(Hindered, causes[:1])
    return Signature(kind="host", assertion=f"killed by {hindered.signal}" if hindered.signal else str(hindered.how))


def _undecided(causes: Sequence[Cause]) -> Signature:
    (undecided,) = _of(Undecided, causes[:1])
    return Signature(kind="host", assertion=str(undecided.why))


def _of(kind: type[C], causes: Sequence[Cause]) -> list[C]:
    return [cause for cause in causes if isinstance(cause, kind)]


_NAMERS: Mapping[type, Callable[[Sequence[Cause]], Signature | None]] = {
    Ended: _ended,
    Refused: _refused,
    Broke: _broke,
    Drifted: _drifted,
    Derived: _derived,
    Leaked: _leaked,
    GuestFaulted: _guest_faulted,
    KvmRefused: _kvm_refused,
    Hindered: _hindered,
    Undecided: _undecided,
}
