# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside of gdb: who asks the C library for memory of certain sizes. Nothing here imports it.

``sys.argv`` holds the file to write to and the sizes that are looked for, each as ``LEAST:MOST`` bytes. QEMU runs at
full speed until gdb gets a SIGINT. From then on it stops in each call of an allocator that asks for such a size, and
the file gets a line of JSON for each: where gdb begins to look, ``{"armed": [NAME, ...]}``; a call,
``{"call": NUMBER, "stack": TEXT}``; and what it returned, ``{"call": NUMBER, "pointer": ADDRESS}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gdb  # type: ignore[import-untyped]

#: Architecture, as gdb names it, to the registers of three arguments and of a result.
_REGISTERS = {
    "i386:x86-64": ("$rdi", "$rsi", "$rdx", "$rax"),
    "aarch64": ("$x0", "$x1", "$x2", "$x0"),
}
#: Allocators of the C library, with the bytes that each is asked for, out of its arguments. What ``posix_memalign``
#: gives stands where its first argument points to.
_ASKED = {
    "malloc": "{0}",
    "calloc": "{0} * {1}",
    "realloc": "{1}",
    "memalign": "{1}",
    "aligned_alloc": "{1}",
    "posix_memalign": "{2}",
}


class Returned(gdb.FinishBreakpoint):  # type: ignore[misc]
    """Behind the call that is in the newest frame. Does not stop the program."""

    def __init__(self, report: Notes, number: int, place: str) -> None:
        super().__init__(gdb.newest_frame(), internal=True)
        self._report = report
        self._number = number
        self._place = place

    def stop(self) -> bool:
        """Called by gdb."""
        self._report.write(call=self._number, pointer=_number(self._place))
        return False


class Notes:
    """The file of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **facts: Any) -> None:
        """One line, at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def _number(expression: str) -> int:
    return int(gdb.parse_and_eval(f"(unsigned long) ({expression})"))


def _condition(asked: str, sizes: list[str]) -> str:
    ranges = (size.split(":") for size in sizes)
    return " || ".join(f"({asked} >= {least} && {asked} <= {most})" for least, most in ranges)


def _arm(registers: tuple[str, ...], sizes: list[str]) -> dict[int, str]:
    """Stop in every allocator that the program has; returns their names by number of the breakpoint."""
    armed = {}
    for name, asked in _ASKED.items():
        # in all that have it: up to glibc 2.31 the dynamic linker has a malloc as well, for its own start
        stop = gdb.Breakpoint(function=name, qualified=True, internal=True)
        if stop.pending:
            stop.delete()
            continue
        stop.condition = _condition(asked.format(*(f"(unsigned long) {each}" for each in registers)), sizes)
        armed[stop.number] = name
    return armed


def main(path: Path, sizes: list[str]) -> None:
    """Run the program, and look at it from its first SIGINT on."""
    report, calls = Notes(path), 0
    stops: list[Any] = []
    gdb.events.stop.connect(stops.append)
    gdb.execute("run")
    if not stops:
        return  # it ended by itself
    registers = _REGISTERS.get(gdb.newest_frame().architecture().name())
    armed = _arm(registers, sizes) if registers else {}
    report.write(armed=list(armed.values()))
    while registers:
        stops.clear()
        gdb.execute("continue")
        if not stops or not isinstance(stops[-1], gdb.BreakpointEvent):
            return
        name = armed.get(stops[-1].breakpoints[0].number)
        place = f"*(unsigned long *) {_number(registers[0])}" if name == "posix_memalign" else registers[3]
        calls += 1
        report.write(call=calls, stack=gdb.execute("bt", to_string=True))
        Returned(report, calls, place)


main(Path(sys.argv[0]), sys.argv[1:])
