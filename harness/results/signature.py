# SPDX-License-Identifier: GPL-2.0-or-later
"""A stable name for a failure, so that nobody looks at one bug twice. Pure.

A name holds what belongs to the bug: function or assertion, what the log complains of, section, machine family. What
differs from one run, host or version to the next stays out: addresses, counts, line numbers, paths, bus paths,
instance numbers, and the directory of a source file (``softmmu/memory.c`` became ``system/memory.c``).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.arch import family_of as machine_family
from harness.oracles.guestfault import LOG_RULES
from harness.results.frames import plain_function, source_file
from harness.results.sanitizer import first_report
from harness.results.verdict import UNDECIDED, Verdict

if TYPE_CHECKING:
    from harness.results.document import Cell

#: Stands in a name for a part that is not known.
UNKNOWN = "-"
#: A complaint is cut here; what tells two apart stands in front.
_TEXT_CHARS = 100
_MAX_FIELDS = 3
THREADS = "threads of QEMU while it did not answer:"


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

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Signature:
        """What :meth:`to_json` gave; keys that are missing are empty."""
        names = ("kind", "function", "assertion", "file", "section", "family")
        return cls(**{name: str(document.get(name) or "") for name in names})


def signature_of(
    *,
    verdict: Verdict,
    text: str,
    log: str,
    section: str | None,
    machine: str,
    exit: str | None = None,
    oracle: str = "load",
    step: str | None = None,
    device: str | None = None,
    function: str | None = None,
) -> Signature | None:
    """Name a failure.

    :param text: the finding's one line
    :param log: what QEMU printed
    :param section: the one to blame, with its bus path; several with a comma between; None when unknown
    :param machine: versioned machine type or family
    :param exit: signal's name or exit status
    :param oracle: ``load``, ``drift``, ``leak``, ``guest`` or ``io-error``
    :param step: where a session hung, by the name of :class:`harness.colo.messages.Step`; read from the text if None,
        which cannot tell ``request`` and ``send`` from ``load``: give it always or never
    :param device: the row; it names a failure that nothing else does
    :param function: of a backtrace, for a crash whose log tells none
    :return: None when it is ok, unsupported, or this program's own failure
    """
    kind = _kind(verdict, text)
    if kind is None:
        return None
    words = log.partition(THREADS)[0].strip()
    if kind is Verdict.CRASH:
        found = _crash(words, text, exit, function)
    elif kind is Verdict.REJECT:
        found = _reject(words, text)
    elif kind is Verdict.HANG:
        found = Signature(kind="hang", function=_step(step, text))
    elif kind is Verdict.DRIFT:
        found = Signature(kind="drift", assertion=_fields(text))
    elif kind is Verdict.LEAK:
        found = Signature(kind="leak", assertion=_leaked(text))
    elif kind is Verdict.HOST:
        found = _msr(words) or _msr(text) or Signature(kind="host", assertion=normal(_cause(text)))
    else:
        found = Signature(kind="guest-fault", assertion=_fault(text))
    labels = plain_sections(section) or (_named(words) if kind is Verdict.REJECT else "")
    if not labels and device and not (found.function or _tells(found)):
        labels = f"device {device}"
    return replace(found, section=labels, family=family_of(machine))


def signature_of_cell(cell: Cell) -> Signature | None:
    """The name of a cell's finding; None where there is none."""
    if cell.finding is None:
        return None
    return signature_of(
        verdict=cell.verdict,
        text=cell.finding.text,
        log=cell.finding.log,
        section=cell.finding.section,
        machine=cell.machine,
        exit=cell.finding.exit,
        oracle=cell.oracle,
        device=cell.device,
    )


def _kind(verdict: Verdict, text: str) -> Verdict | None:
    """The verdict; of a flaky one what it came to when it failed."""
    if verdict is Verdict.FLAKY:
        match = re.search(r"\b(crash|hang|reject|guest-fault|drift|leak) in \d+ of \d+ runs", text)
        return Verdict(match[1]) if match else Verdict.CRASH
    if verdict in UNDECIDED:
        return Verdict.HOST if verdict is Verdict.HOST else None
    return verdict if verdict.is_finding else None


def _tells(found: Signature) -> bool:
    """Whether the complaint alone tells a bug from others: a signal, a step, or a symptom of the guest does not."""
    words = found.assertion
    return found.kind in ("crash", "reject", "host") and bool(words) and not _SIGNAL.fullmatch(words)


# Machines and sections

_MACHINES = re.compile(r"\bpc-(q35|i440fx)-[\w.+-]*\w")
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


def plain_sections(labels: str | None) -> str:
    """Several of them, each once."""
    names = {plain_section(label) for label in (labels or "").split(",") if label.strip()}
    return "+".join(sorted(names))


# Text

_PROGRAM = re.compile(
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
    text = _LEFT_OVER.sub("", _PROGRAM.sub("", text.strip()))
    text = _MACHINES.sub(lambda match: family_of(match[0]), _BUS.sub("", text))
    text = _COMPARED.sub(r"# \1 #", _PATHS.sub(r"\1", text))
    text = re.sub(r"\s+", " ", _NUMBERS.sub("#", text)).strip().rstrip(".:")
    return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS].rpartition(" ")[0]


def _cause(text: str) -> str:
    """A finding's text without what this program says in front: ``load 3: SIGABRT: why`` is ``why``."""
    text = re.sub(r"^.*? in \d+ of \d+ runs, [\w, -]+ in the others?: ", "", text)
    text = re.sub(r" \(\d+ of \d+ runs\)$", "", text)
    return re.sub(
        r"^(phase [\w-]+: |secondary with a [\w ]+: |"
        r"while looking for leaks: |load \d+(, by an incoming stream)?: |after load \d+: |"
        r"when the guest was started after load \d+: |in the incoming stream, before any checkpoint: |"
        r"after the failover: |every load was acknowledged, with a sanitizer report: |"
        r"(SIG[A-Z]+|signal \d+|exit status -?\d+): )+",
        "",
        text,
    )


# Crashes

_SIGNAL = re.compile(r"SIG[A-Z0-9]+|signal \d+")
_SIGNAL_IN_TEXT = re.compile(r"\bSIG(?:ABRT|SEGV|BUS|ILL|FPE|TRAP|SYS|PIPE|XCPU|XFSZ|QUIT|ALRM|USR1|USR2)\b")
_MSR = re.compile(r"error: failed to (set|get) MSR (0x[0-9a-fA-F]+)")
_ASSERTIONS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        # glibc's __assert_fail_base; the function is a whole prototype where the compiler says so
        r"(?P<file>[^\s:]+):\d+: (?P<function>[^`'\"\n]*): Assertion [`'\"](?P<text>.*)['\"] failed",
        # musl, and the C library of macOS
        r"Assertion failed: (?P<text>.*) \((?P<file>[^\s:()]+): (?P<function>\w+): \d+\)",
        r"Assertion failed: \((?P<text>.*)\), function (?P<function>\w+), file (?P<file>[^\s,]+)",
        # glib's g_assertion_message_expr, then those that print what was compared, then g_assert_not_reached
        r"ERROR:(?P<file>[^\s:]+):\d+:(?P<function>[^:\s]+): +assertion failed: \((?P<text>.*)\)$",
        r"ERROR:(?P<file>[^\s:]+):\d+:(?P<function>[^:\s]+): +assertion failed \((?P<text>.*?)\): .*$",
        r"ERROR:(?P<file>[^\s:]+):\d+:(?P<function>[^:\s]+): +(?P<text>.+)$",
        # error_abort: error_handle in util/error.c
        r"Unexpected error in (?P<function>\w+)\(\) at (?P<file>[^\s:]+):\d+:\s*(?P<text>[^\n]*)",
    )
)
#: What the C library, glib and ``hw_error`` print before they abort.
_LAST_WORDS = re.compile(
    r"^(?:\*\*\* )?((?:free|malloc|realloc|calloc|munmap_chunk|malloc_consolidate)\(\): .+|double free or corruption.*|"
    r"corrupted (?:size|double-linked list).*|(?:stack smashing|buffer overflow) detected.*|"
    r"(?:hardware error|fatal): .+|[\w-]+-ERROR \*\*: .+|KVM internal error.*)$"
)
_GLIB_STAMP = re.compile(r"^\([^)]*:\d+\): |(?<=\*\*: )[\d:.]+: ")
_NOT_A_REASON = re.compile(r"(?i)\bwarning: |^(Aborted|Bail out!|\*\*$|#\d+ |Thread \d+)|terminating on signal")


def _crash(log: str, text: str, exit: str | None, function: str | None) -> Signature:
    report = first_report(log)
    if report and report.tool != "valgrind":
        return Signature(
            kind="crash",
            function=report.function or plain_function(function or ""),
            assertion=f"{report.tool}: {report.kind}",
            file=report.source.rpartition("/")[2],
        )
    said = log or _cause(text)
    found = _msr(said) or _assertion(said) or _last_words(said)
    if found:
        return found
    signal = _signal(text, exit)
    reason = _reason(said) if signal in ("SIGABRT", "SIGTRAP", "") else ""
    if reason:
        return Signature(kind="crash", function=plain_function(function or ""), assertion=reason)
    return Signature(kind="crash", function=plain_function(function or ""), assertion=signal or normal(_cause(text)))


def _msr(log: str) -> Signature | None:
    """A host that does not have a register which the state holds: not a bug of a device."""
    match = _MSR.search(log)
    if match is None:
        return None
    return Signature(kind="host", assertion=f"failed to {match[1]} MSR {match[2].lower()}")


def _assertion(log: str) -> Signature | None:
    """The first assertion of a log: a second one is a consequence."""
    found = [match for pattern in _ASSERTIONS if (match := pattern.search(log))]
    if not found:
        return None
    match = min(found, key=lambda match: match.start())
    expression = re.sub(r"\s+", " ", match["text"]).strip()
    if "Unexpected error" in match[0]:
        expression = normal(expression)
    return Signature(
        kind="crash",
        function=plain_function(match["function"]),
        assertion=expression,
        file=source_file(match["file"]).rpartition("/")[2],
    )


def _last_words(log: str) -> Signature | None:
    for line in log.splitlines():
        bare = _PROGRAM.sub("", _GLIB_STAMP.sub("", _GLIB_STAMP.sub("", line.strip())))
        match = _LAST_WORDS.match(bare)
        if match:
            said = re.sub(r"[\w./+-]*/([\w.+-]+\.c):\d+: ", r"\1: ", match[1])
            return Signature(kind="crash", assertion=normal(said).removesuffix(" ***"))
    return None


def _reason(log: str) -> str:
    """What was said last before it aborted."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOT_A_REASON.search(line.strip())]
    reason = normal(lines[-1]) if lines else ""
    return "" if reason == "QEMU printed no reason" else reason


def _signal(text: str, exit: str | None) -> str:
    if exit and _SIGNAL.fullmatch(exit):
        return exit
    match = _SIGNAL_IN_TEXT.search(text)
    return match[0] if match else ""


# Loads that are refused

#: The innermost of these stands first. Builds from 10.1 on name the element alone (``migration/vmstate.c``).
_LOADING = re.compile(
    r"(?:warning: )?(?:\w+: )?(?:Failed to load element of type .+ for (?P<element>[\w./-]+)|"
    r"Loading VM subsection '(?P<subsection>[^']+)' in .*|Failed to load (?P<field>[\w./ -]+?:[\w./\[\]-]+)$)"
)
_GIVEN_UP = re.compile(
    r"error while loading state for instance 0x[0-9a-f]+ of device '(?P<name>[^']+)'(?:: (?P<why>.+))?"
)
_NAMED = (
    _GIVEN_UP,
    re.compile(r"Unknown (?:savevm )?section or instance '(?P<name>[^']+)'"),
    re.compile(r"unsupported version \d+ for '(?P<name>[^']+)'"),
    re.compile(r"Missing section footer for (?P<name>\S+)"),
)
_GENERAL = re.compile(
    r"^(COLO: |Failed to load device state|load of migration failed|loadvm failed during postcopy|"
    r"Failed to load vm state|Section footer error|"
    r"error while loading state section id|post load hook failed for|pre load hook failed for|"
    r"Failed to load vmstate version_id|.*terminating on signal)"
)
_FEATURES = re.compile(r"Features 0x([0-9a-fA-F]+) unsupported\. Allowed features: 0x([0-9a-fA-F]+)")
_CONFIG = re.compile(r"(get_pci_config_device): (Bad config data: i=0x[0-9a-f]+)")
_ERRNO = re.compile(
    r"(?:Failed to load device state|loadvm failed during postcopy): (-\d+)|load of migration failed: ([\w /]+)|"
    r"\bret: (-\d+)"
)
#: Complaints whose values are what the guest had.
_VALUES = (
    (re.compile(r"^(?:savevm: )?unsupported version \d+ for '.*"), "unsupported version"),
    (re.compile(r"^Unknown (?:savevm )?section or instance '.*"), "unknown section"),
    (re.compile(r"^Missing section footer for .*"), "missing section footer"),
    (re.compile(r"^(invalid parameter value):.*"), r"\1"),
    (re.compile(r"^(Input validation failed: .*) version_id: \d+$"), r"\1"),
)
#: A check that many fields have tells nothing without the field.
_GENERIC = re.compile(r"# != #|Invalid value # expecting .*|")


def _reject(log: str, text: str) -> Signature:
    lines = list(_complaints(log or _cause(text)))
    config = _CONFIG.search(log)
    if config:
        return Signature(kind="reject", function=config[1], assertion=config[2])
    chain = next((match for line in lines if (match := _LOADING.match(line))), None)
    field = _plain_field(chain["field"] or chain["element"] or chain["subsection"]) if chain else ""
    cause = _complaint(lines)
    if not _GENERIC.fullmatch(cause):
        field = ""
    if not cause and not field:
        cause = _error_number(log) or normal(_cause(text))
    return Signature(kind="reject", function=field, assertion=cause)


def _complaints(log: str) -> Iterator[str]:
    """Lines without the program's name; a reason behind the section that QEMU gave up on is a line before it."""
    for line in log.splitlines():
        line = _PROGRAM.sub("", line.strip())
        given_up = _GIVEN_UP.match(line)
        if given_up and given_up["why"]:
            yield given_up["why"]
        if line:
            yield line


def _complaint(lines: Sequence[str]) -> str:
    """The last complaint before QEMU names the field or the section that it gave up on."""
    cause = ""
    for line in lines:
        if _LOADING.match(line) or _GIVEN_UP.match(line):
            break
        if not _GENERAL.match(line) and not line.lower().startswith("warning: "):
            cause = line
    features = _FEATURES.search(cause)
    if features:
        missing = int(features[1], 16) & ~int(features[2], 16)
        bits = ", ".join(str(bit) for bit in range(missing.bit_length()) if missing >> bit & 1)
        return f"unsupported feature bits {bits}"
    for pattern, plain in _VALUES:
        if pattern.match(cause):
            return pattern.sub(plain, cause)
    return normal(cause)


def _plain_field(field: str) -> str:
    """``virtio-net:virtio`` without indices; the colon would be one of the name's own."""
    return re.sub(r"\[\d+\]", "", field).replace(":", ".")


def _named(log: str) -> str:
    for pattern in _NAMED:
        match = pattern.search(log)
        if match:
            return plain_section(match["name"])
    return ""


def _error_number(log: str) -> str:
    """``-22`` and ``Invalid argument`` are both ``EINVAL``."""
    match = _ERRNO.search(log)
    if match is None:
        return ""
    if match[2]:
        names = {os.strerror(number): name for number, name in errno.errorcode.items()}
        return f"error {names.get(match[2].strip(), match[2].strip())}"
    number = int(match[1] or match[3])
    return f"error {errno.errorcode.get(-number, number)}"


# Hangs, drift, leaks, guests

_STEPS = {"INCOMING": "incoming", "REQUEST": "request", "SEND": "send", "LOAD": "load", "RESUME": "resume"}


def _step(step: str | None, text: str) -> str:
    if step and step.upper() in _STEPS:
        return _STEPS[step.upper()]
    if "failover" in text:
        return "failover"
    if "main loop" in text:
        return "main-loop"
    if "when the guest was started" in text:
        return "resume"
    if "incoming stream, before" in text:
        return "incoming"
    return "load"


_DRIFTED = re.compile(r"(?:^|; |: )(?P<field>[^\s;:]+) (?:goes from|is) ")
_INDEX = re.compile(r"(?<!config)\[\d+\]")
_MORE = re.compile(r", and \d+ more fields?$")


def _fields(text: str) -> str:
    """The fields that drifted, in the state's order. The offset of a register is part of its name, an index is not."""
    names: dict[str, None] = {}
    for match in _DRIFTED.finditer(_MORE.sub("", text)):
        name = match["field"]
        if name != "it":
            names.setdefault(_INDEX.sub("", name))
    return ", ".join(list(names)[:_MAX_FIELDS])


#: The most telling first: what leaks a descriptor leaks memory too.
_LEAKS = {"descriptors": r"\bdescriptors\b", "threads": r"\bthreads\b", "state": "saved state", "memory": "memory"}


def _leaked(text: str) -> str:
    return next((name for name, pattern in _LEAKS.items() if re.search(pattern, text)), "")


def _fault(text: str) -> str:
    """What the guest complains of: of a line of its kernel's log the kind of complaint."""
    bare = _cause(text)
    if bare.startswith("kernel log: "):
        line = bare.removeprefix("kernel log: ").partition("; ")[0]
        rule = next((rule for rule in LOG_RULES if re.search(rule.pattern, line)), None)
        if rule is not None:
            return f"kernel log: {rule.reason}"
    clause = re.sub(r"\b([a-zA-Z]+)\d+\b", r"\1#", bare.partition("; ")[0])
    return normal(re.sub(r"\d+(?:\.\d+)? s\b", "# s", clause))
