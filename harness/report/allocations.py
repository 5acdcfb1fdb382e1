# SPDX-License-Identifier: GPL-2.0-or-later
"""Where what a leak leaves behind was allocated, or why nobody can tell, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.report.text import plural
from harness.results.frames import to_dispatcher
from harness.triage.allocations import Allocations, AllocationsHow, CallSite


def _seen(found: Allocations) -> str:
    symbols = "debug symbols" if found.debug else "exported names only: no debug symbols were found"
    freed = f"; {found.freed_per_load:.2f} further calls a load ask for as much and free it again"
    return f"{plural(found.loads, 'load')} under gdb; {symbols}{freed if found.freed_per_load else ''}"


#: Behind "call sites are not known: ".
_WHY_NOT: Mapping[AllocationsHow, Callable[[Allocations], str]] = {
    AllocationsHow.NO_CHUNKS: lambda _: "what stays is no heap, or the sizes of its chunks are not known",
    AllocationsHow.NO_GDB: lambda _: "gdb is not installed (Debian package gdb)",
    AllocationsHow.NO_PYTHON: lambda _: "this gdb has no Python; install Debian package gdb in place of gdb-minimal",
    AllocationsHow.NO_ALLOCATOR: lambda _: "gdb finds no malloc in it, or the host is neither x86_64 nor aarch64",
    AllocationsHow.DENIED: lambda found: f"gdb may not trace here: {found.said}",
    AllocationsHow.LATE: lambda _: "gdb was not done within its deadline",
    AllocationsHow.FOREIGN: lambda _: "the state comes from elsewhere, and a QEMU under gdb has no walls around it",
    AllocationsHow.NO_PACK: lambda _: "the run does not say which state pack was loaded",
    AllocationsHow.NO_HEAP: lambda _: "the heap of the QEMU under gdb could not be walked",
    AllocationsHow.NOT_AGAIN: lambda _: "nothing stayed allocated under gdb",
    AllocationsHow.FAILED: lambda found: found.said,
}


def allocations_how(found: Allocations) -> str:
    """How call sites were found, or why not, in one line."""
    if found.how is not AllocationsHow.SEEN:
        return f"call sites are not known: {_WHY_NOT[found.how](found)}"
    return f"{_seen(found)}; by QEMU {found.qemu}, not the cell's own" if found.qemu else _seen(found)


def site_title(site: CallSite) -> str:
    """What stays of a call site: ``3.00 of 144 bytes``."""
    return f"{site.per_load:.2f} of {plural(site.size_bytes, 'byte')}"


def allocations_text(found: Allocations, *, whole: bool) -> str:
    """How they were found, then each call site with its stack.

    :param whole: with the frames that every load has
    """
    sites = (
        "\n".join([site_title(site), *(f.text for f in (site.frames if whole else to_dispatcher(site.frames)))])
        for site in found.sites
    )
    return "\n\n".join([allocations_how(found), *sites])
