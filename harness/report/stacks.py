# SPDX-License-Identifier: GPL-2.0-or-later
"""How a stack was got, or why there is none, and where names come from that it lacks, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.arch import architecture_of
from harness.triage.backtrace import Backtrace, StackHow


def _symbols(stack: Backtrace) -> str:
    return "debug symbols" if stack.debug else "exported names only: no debug symbols were found"


def _not_again(stack: Backtrace) -> str:
    return f"no backtrace: it did not crash again under gdb{f': QEMU {stack.said}' if stack.said else ''}"


_HOW: Mapping[StackHow, Callable[[Backtrace], str]] = {
    StackHow.NO_GDB: lambda _: "no backtrace: gdb is not installed (Debian package gdb)",
    StackHow.LATE: lambda _: "no backtrace: gdb was not done within its deadline",
    StackHow.DENIED: lambda stack: f"no backtrace: gdb may not trace here: {stack.said}",
    StackHow.FAILED: lambda stack: f"no backtrace: {stack.said}",
    StackHow.NOT_AGAIN: _not_again,
    StackHow.NO_MACHINE: lambda stack: f"no backtrace: QEMU {stack.qemu} has no machine {stack.said}",
    StackHow.INTERRUPTED: lambda stack: (
        f"repeated under gdb and interrupted while it did not answer; {_symbols(stack)}"
    ),
    StackHow.STOPPED: lambda stack: f"repeated under gdb, stopped by {stack.signal}; {_symbols(stack)}",
    StackHow.PRINTED: lambda stack: f"as {stack.said} printed it",
    StackHow.THREADS: lambda _: "threads of the QEMU that hung, as the run saw them",
}


def stack_how(stack: Backtrace) -> str:
    """How it was got, or why not, in one line."""
    how = _HOW[stack.how](stack)
    other = stack.qemu and stack.how is not StackHow.NO_MACHINE
    return f"{how}; by QEMU {stack.qemu}, not the cell's own" if other else how


def stack_text(stack: Backtrace) -> str:
    """A line for how it was got, and one for each frame."""
    return "\n".join([stack_how(stack), *(frame.text for frame in stack.frames)])


def symbols_text(machine: str, build: str) -> str:
    """Where the names for ``??`` come from.

    :param build: of the QEMU, as its version says; empty where that says nothing
    """
    package = architecture_of(machine).program.package
    if build.startswith("Debian"):
        return (
            f"`??` are functions that QEMU does not export. Their names are in package {package}-dbgsym of Debian's "
            "debug archive (deb http://deb.debian.org/debian-debug/ SUITE-debug main), or come by themselves with "
            "DEBUGINFOD_URLS=https://debuginfod.debian.net in the environment."
        )
    return (
        "`??` are functions that QEMU does not export: a build with debug symbols (configure --enable-debug) has them."
    )
