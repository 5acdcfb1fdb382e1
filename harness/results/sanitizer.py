# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of AddressSanitizer and its kin, and of valgrind, in what a QEMU printed. Pure.

A build made with ``--enable-asan``, ``--enable-ubsan`` or ``--enable-tsan`` prints them by itself; one that runs under
valgrind does when its wrapper says so. Formats: ``compiler-rt/lib/*/*_report.cpp`` and ``*_errors.cpp`` of LLVM (GCC's
libsanitizer is a copy), ``coregrind/m_errormgr.c`` and ``memcheck/mc_errors.c`` of valgrind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.results.frames import Frame, first_in_qemu, plain_function, source_file

#: Reports after this many are not read: a build with UBSan may print thousands.
MAX_REPORTS = 50
_MAX_FRAMES = 40

_HEADER = re.compile(r"(?:ERROR|WARNING): (Address|Leak|Thread|Memory|HWAddress)Sanitizer: (.+)")
_UBSAN = re.compile(r"^(?P<file>\S+?):(?P<line>\d+):(?:\d+:)? runtime error: (?P<text>.+)$")
_ACCESS = re.compile(r"\b(READ|WRITE|Read|Write|Atomic read|Atomic write) of size (\d+)")
_SIGNAL_ACCESS = re.compile(r"The signal is caused by a (READ|WRITE) memory access")
_FRAME = re.compile(r"^\s*#(?P<number>\d+) (?:(?P<address>0x[0-9a-f]+)\s+)?(?:in )?(?P<rest>.*)$")
_LEAK = re.compile(r"^(Direct|Indirect) leak of \d+ byte\(s\) in \d+ object\(s\) allocated from:")
_PLACE = re.compile(r"^(?P<file>[^\s()]+\.(?:c|h|cc|cpp|cxx|hpp|inc|S|rs))(?::(?P<line>\d+))?(?::\d+)?$")
_MODULE = re.compile(r"^\((?P<module>[^()]+?)\+0x[0-9a-f]+\)$")
_BUILD_ID = re.compile(r"\s+\(BuildId: [0-9a-f]+\)$")

_VALGRIND_LINE = re.compile(r"^(?:==|--|\*\*)\d+(?:==|--|\*\*) ?(.*)$")
_VALGRIND_FRAME = re.compile(r"^\s+(?:at|by) (?P<address>0x[0-9A-F]+): (?P<function>.*?)(?: \((?P<where>[^()]*)\))?$")
_VALGRIND_KINDS = re.compile(
    r"^(Invalid (?:read|write|free|fastcall)|Conditional jump or move depends|Use of uninitialised|Syscall param|"
    r"Source and destination overlap|Mismatched free|Jump to the invalid address|Process terminating with|"
    r"[\d,]+(?: \([\d,]+ direct, [\d,]+ indirect\))? bytes in [\d,]+ blocks are (?:definitely|possibly) lost|"
    r"Possible data race|Argument '\w+' of function)"
)
#: What begins another stack of the same report.
_FREED = re.compile(r"^\s*(freed by thread|.*a block of size [\d,]+ free'd)")
_ALLOCATED = re.compile(
    r"^\s*(previously allocated by|allocated by thread|Block was alloc'd|.*a block of size [\d,]+ alloc'd)"
)
_TSAN_OTHER = re.compile(
    r"^\s+(Previous (?:atomic )?(?:read|write)|As if synchronized|Location is|Thread T\d+|Mutex M\d+)"
)
_TSAN_HEAP = re.compile(r"^\s+Location is heap block .*allocated by")
_NUMBER = re.compile(r"\b0x[0-9a-fA-F]+\b|(?<![\w'])-?\d[\d,]*(?:\.\d+)?(?![\w'-])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report.

    :param tool: ``AddressSanitizer``, ``UndefinedBehaviorSanitizer``, ..., ``valgrind``
    :param kind: what is wrong in the tool's words, without numbers and addresses
    :param access: ``read`` or ``write``, empty where that is not the matter
    :param size_bytes: of the access, 0 where unknown
    :param frames: the stack of what is reported, innermost first; of the allocation for a leak
    :param freed: who freed the memory
    :param allocated: who had allocated it
    :param file: where it happened, for a report without a stack
    """

    tool: str
    kind: str
    access: str = ""
    size_bytes: int = 0
    frames: tuple[Frame, ...] = ()
    freed: tuple[Frame, ...] = ()
    allocated: tuple[Frame, ...] = ()
    file: str = ""
    line: int = 0

    @property
    def first(self) -> Frame | None:
        """The innermost frame of QEMU itself."""
        return first_in_qemu(self.frames)

    @property
    def function(self) -> str:
        """The function to name the report by; empty when no stack was printed."""
        return plain_function(self.first.function) if self.first else ""

    @property
    def source(self) -> str:
        """Source file in QEMU's tree; empty when unknown."""
        named = self.first.file if self.first and self.first.file else self.file
        return source_file(named)

    @property
    def text(self) -> str:
        """One line for a report."""
        access = f", {self.access} of {self.size_bytes} bytes" if self.access and self.size_bytes else ""
        where = f" in {self.function}" if self.function else f" in {source_file(self.file)}" if self.file else ""
        parts = [f"{self.tool}: {self.kind}{access}{where}"]
        for verb, frames in (("freed", self.freed), ("allocated", self.allocated)):
            frame = first_in_qemu(frames)
            parts += [f"{verb} in {plain_function(frame.function)}"] if frame else []
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "kind": self.kind,
            "access": self.access,
            "size_bytes": self.size_bytes,
            "frames": [frame.to_json() for frame in self.frames],
            "freed": [frame.to_json() for frame in self.freed],
            "allocated": [frame.to_json() for frame in self.allocated],
            "text": self.text,
        }


class _Draft:
    """A report while it is read."""

    def __init__(self, tool: str, kind: str, *, file: str = "", line: int = 0, inner: str = "frames") -> None:
        self.tool, self.kind, self.file, self.line = tool, kind, file, line
        self.access, self.size_bytes = "", 0
        self.stacks: dict[str, list[Frame]] = {"frames": [], "freed": [], "allocated": [], "other": []}
        self.into = inner

    def add(self, frame: Frame) -> None:
        stack = self.stacks[self.into]
        # a stack that begins anew without a line that says what it is, is not ours
        if frame.number == 0 and stack:
            self.into = "other"
            return
        if len(stack) < _MAX_FRAMES:
            stack.append(frame)

    def said(self, line: str) -> None:
        access = _ACCESS.search(line) or _SIGNAL_ACCESS.search(line)
        if access and not self.access and not line.lstrip().startswith("Previous"):
            self.access = access[1].lower().rpartition(" ")[2]
            self.size_bytes = int(access[2]) if access.re is _ACCESS else 0
        if _FREED.match(line):
            self.into = "freed"
        elif _ALLOCATED.match(line) or _TSAN_HEAP.match(line):
            self.into = "allocated"
        elif _TSAN_OTHER.match(line):
            self.into = "other"

    def done(self) -> Report:
        return Report(
            tool=self.tool,
            kind=self.kind,
            access=self.access,
            size_bytes=self.size_bytes,
            frames=tuple(self.stacks["frames"]),
            freed=tuple(self.stacks["freed"]),
            allocated=tuple(self.stacks["allocated"]),
            file=self.file,
            line=self.line,
        )


def parse_reports(log: str) -> tuple[Report, ...]:
    """Every report in a log, in its order; a log that is cut gives what is there of the last one."""
    drafts: list[_Draft] = []
    for draft in _drafts(log):
        if len(drafts) >= MAX_REPORTS:
            break
        drafts.append(draft)
    return tuple(draft.done() for draft in drafts)


def first_report(log: str) -> Report | None:
    """The report to name a crash by: the first that is an error, else the first at all."""
    reports = parse_reports(log)
    return next((r for r in reports if r.tool != "valgrind" or not r.kind.startswith("Process terminating")), None) or (
        reports[0] if reports else None
    )


def _drafts(log: str) -> Iterator[_Draft]:
    now: _Draft | None = None
    for line in log.splitlines():
        started = _begins(line)
        if started:
            if now:
                yield now
            now = started
            continue
        if now is None:
            continue
        frame = _valgrind_frame(line, now) if now.tool == "valgrind" else _frame(line)
        if frame:
            now.add(frame)
        elif line.startswith("SUMMARY:"):
            yield now
            now = None
        else:
            match = _VALGRIND_LINE.match(line) if now.tool == "valgrind" else None
            now.said(match[1] if match else line)
    if now:
        yield now


def _begins(line: str) -> _Draft | None:
    header = _HEADER.search(line)
    if header:
        # a leak report is a list, and each of its entries is one
        return None if header[1] == "Leak" else _Draft(f"{header[1]}Sanitizer", _kind(header[2]))
    leak = _LEAK.match(line)
    if leak:
        return _Draft("LeakSanitizer", f"{leak[1].lower()} leak")
    ubsan = _UBSAN.match(line)
    if ubsan:
        kind = _without_numbers(ubsan["text"])
        return _Draft("UndefinedBehaviorSanitizer", kind, file=ubsan["file"], line=int(ubsan["line"]))
    valgrind = _VALGRIND_LINE.match(line)
    if valgrind and _VALGRIND_KINDS.match(valgrind[1]):
        return _valgrind(valgrind[1])
    return None


def _kind(text: str) -> str:
    """``heap-use-after-free on address 0x60600007f600 at pc ...`` is ``heap-use-after-free``."""
    kind = re.split(r" on (?:unknown )?address| on 0x|: memory ranges| \(pid=|\s+\(", text, maxsplit=1)[0]
    return _without_numbers(kind).strip().rstrip(":")


def _without_numbers(text: str) -> str:
    return _NUMBER.sub("#", text).strip()


def _valgrind(text: str) -> _Draft:
    access = re.match(r"Invalid (read|write) of size (\d+)", text)
    kind = re.sub(r" of size \d+", "", text) if access else text
    kind = re.sub(r"^.*bytes in .* blocks are (\w+ lost).*", r"memory \1", kind)
    draft = _Draft("valgrind", _without_numbers(kind))
    if access:
        draft.access, draft.size_bytes = access[1], int(access[2])
    return draft


def _valgrind_frame(line: str, draft: _Draft) -> Frame | None:
    outer = _VALGRIND_LINE.match(line)
    match = _VALGRIND_FRAME.match(outer[1]) if outer else None
    if match is None:
        return None
    where = match["where"] or ""
    file, _, number = where.partition(":")
    module = where.removeprefix("in ") if where.startswith("in ") else ""
    function = "" if match["function"] == "???" else match["function"]
    return Frame(
        number=len(draft.stacks[draft.into]),
        function=function,
        file="" if module else file,
        line=int(number) if number.isdigit() and not module else 0,
        module=module,
        address=match["address"],
    )


def _frame(line: str) -> Frame | None:
    """``#0 0x55 in f hw/x.c:12:3``, ``#0 0x55 in f (/lib/x.so+0x1)``, ``#1 f hw/x.c:12 (program+0x1)``, ``#2 0x55``."""
    match = _FRAME.match(line)
    if match is None:
        return None
    rest, module = _BUILD_ID.sub("", match["rest"].rstrip()), ""
    tail = re.search(r"\s*(\([^()]*\+0x[0-9a-f]+\))$", rest)
    if tail:
        inside = _MODULE.match(tail[1])
        module, rest = (inside["module"] if inside else ""), rest[: tail.start()]
    function, _, place = rest.strip().rpartition(" ")
    found = _PLACE.match(place)
    if found is None:
        function, place = rest.strip(), ""
        function = function.removesuffix(" <null>")
    return Frame(
        number=int(match["number"]),
        function="" if function == "<null>" else function,
        file=found["file"] if found else "",
        line=int(found["line"] or 0) if found else 0,
        module=module,
        address=match["address"] or "",
    )
