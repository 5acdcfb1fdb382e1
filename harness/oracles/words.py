# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU, glib, the C library or a sanitizer print before the end, taken apart. Pure.

This happens once, where an oracle makes a cause of it: nothing behind reads a log again. What differs from one run,
host or version to the next is left out of the words: addresses, counts, line numbers, paths.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.devices.device import section_label
from harness.qemu.threads import THREADS
from harness.results.cause import Assertion, SanitizerReport
from harness.results.frames import plain_function, source_file
from harness.results.sanitizer import first_report
from harness.results.signature import PROGRAM, normal

# Crashes

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


def own_words(log: str) -> str:
    """What QEMU printed, without the stacks of its threads."""
    return log.partition(THREADS)[0].strip()


def sanitizer_report(log: str) -> SanitizerReport | None:
    """The first report of a sanitizer."""
    report = first_report(log)
    if report is None or report.tool == "valgrind":
        return None
    file = report.source.rpartition("/")[2]
    return SanitizerReport(tool=report.tool, complaint=report.kind, function=report.function, file=file)


def failed_assertion(log: str) -> Assertion | None:
    """The first assertion of a log: a second one is a consequence."""
    found = [match for pattern in _ASSERTIONS if (match := pattern.search(log))]
    if not found:
        return None
    match = min(found, key=lambda match: match.start())
    expression = re.sub(r"\s+", " ", match["text"]).strip()
    if "Unexpected error" in match[0]:
        expression = normal(expression)
    return Assertion(
        function=plain_function(match["function"]),
        expression=expression,
        file=source_file(match["file"]).rpartition("/")[2],
    )


def last_words(log: str, *, aborted: bool) -> str:
    """What was said before QEMU ended: by a library that aborts, else the last line of one that aborted."""
    for line in log.splitlines():
        bare = PROGRAM.sub("", _GLIB_STAMP.sub("", _GLIB_STAMP.sub("", line.strip())))
        match = _LAST_WORDS.match(bare)
        if match:
            said = re.sub(r"[\w./+-]*/([\w.+-]+\.c):\d+: ", r"\1: ", match[1])
            return normal(said).removesuffix(" ***")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOT_A_REASON.search(line.strip())]
    return normal(lines[-1]) if lines and aborted else ""


# Loads that are refused

#: The innermost of these stands first. Builds from 10.1 on name the element alone (``migration/vmstate.c``).
_LOADING = re.compile(
    r"(?:warning: )?(?:\w+: )?(?:Failed to load element of type .+ for (?P<element>[\w./-]+)|"
    r"Loading VM subsection '(?P<subsection>[^']+)' in .*|Failed to load (?P<field>[\w./ -]+?:[\w./\[\]-]+)$)"
)
_GIVEN_UP = re.compile(
    r"error while loading state for instance 0x[0-9a-f]+ of device '(?P<name>[^']+)'(?:: (?P<why>.+))?"
)
_INSTANCE_DEVICE = re.compile(r"error while loading state for instance 0x([0-9a-f]+) of device '([^']+)'")
_VERSION_DEVICE = re.compile(r"unsupported version \d+ for '([^']+)'")
_UNKNOWN_SECTION = re.compile(r"Unknown (?:savevm )?section or instance '([^']+)' (\d+)")
_FOOTER_DEVICE = re.compile(r"(?:Missing section footer|Mismatched section id in footer) for ([^\s,]+)")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Why a load was refused; see :class:`harness.results.cause.Refused`."""

    field: str = ""
    function: str = ""
    reason: str = ""
    errno: str = ""


def complaint_of(log: str) -> Complaint:
    """What QEMU complained of before it named the section that it gave up on."""
    config = _CONFIG.search(log)
    if config:
        return Complaint(function=config[1], reason=config[2])
    lines = list(_complaints(log))
    chain = next((match for line in lines if (match := _LOADING.match(line))), None)
    field = _plain_field(chain["field"] or chain["element"] or chain["subsection"]) if chain else ""
    return Complaint(field=field, reason=_complaint(lines), errno=_error_number(log))


def named_section(log: str) -> str | None:
    """The section that QEMU itself names, with its bus path and instance."""
    match = _INSTANCE_DEVICE.search(log)
    if match:
        return section_label(match[2], int(match[1], 16))
    match = _UNKNOWN_SECTION.search(log)
    if match:
        return section_label(match[1], int(match[2]))
    match = _VERSION_DEVICE.search(log) or _FOOTER_DEVICE.search(log)
    return match[1] if match else None


def _complaints(log: str) -> Iterator[str]:
    """Lines without the program's name; a reason behind the section that QEMU gave up on is a line before it."""
    for line in log.splitlines():
        line = PROGRAM.sub("", line.strip())
        given_up = _GIVEN_UP.match(line)
        if given_up and given_up["why"]:
            yield given_up["why"]
        if line:
            yield line


def last_complaint(log: str) -> str:
    """What QEMU said is wrong before it named what it gave up on, as it said it; empty when it said nothing."""
    return _last(_complaints(log))


def _last(lines: Iterable[str]) -> str:
    cause = ""
    for line in lines:
        if _LOADING.match(line) or _GIVEN_UP.match(line):
            break
        if not _GENERAL.match(line) and not line.lower().startswith("warning: "):
            cause = line
    return cause


def _complaint(lines: Sequence[str]) -> str:
    """The last complaint, without what differs from one guest to the next."""
    cause = _last(lines)
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


def _error_number(log: str) -> str:
    """``-22`` and ``Invalid argument`` are both ``EINVAL``."""
    match = _ERRNO.search(log)
    if match is None:
        return ""
    if match[2]:
        names = {os.strerror(number): name for number, name in errno.errorcode.items()}
        return names.get(match[2].strip(), match[2].strip())
    number = int(match[1] or match[3])
    return str(errno.errorcode.get(-number, number))
