# SPDX-License-Identifier: GPL-2.0-or-later
"""From the calls that gdb saw, and the heap behind them, to who leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell

from harness.errors import DeadlineError, QemuError
from harness.results.cause import Leaked, Resource
from harness.results.document import Cell, Qemu
from harness.results.frames import Frame
from harness.results.verdict import Verdict
from harness.triage.allocations import (
    Allocations,
    AllocationsHow,
    Call,
    CallSite,
    _keep,
    _why_not,
    asked_bytes,
    call_sites,
    find_allocations,
    kept_allocations,
    modules_of,
    of_sizes,
    read_calls,
    site_frames,
)

#: As gdb prints it of Debian's QEMU 7.2, where the C library has debug symbols and QEMU has not.
STACK = """\
#0  __GI___libc_malloc (bytes=...) at ./malloc/malloc.c:3288
#1  0x00007f8135b42688 in g_malloc () from /lib/x86_64-linux-gnu/libglib-2.0.so.0
#2  0x000056134979b4f2 in net_tx_pkt_init ()
#3  0x000056134979b014 in ?? ()
#4  0x0000561349768525 in vmstate_load_state ()
#5  0x00007f81356dd1f5 in start_thread (arg=...) at ./nptl/pthread_create.c:442
"""
MAPS = """\
561349200000-561349400000 r--p 00000000 fe:00 11 /usr/bin/qemu-system-x86_64
561349400000-561349900000 r-xp 00200000 fe:00 11 /usr/bin/qemu-system-x86_64
561349f00000-56134a000000 rw-p 00000000 00:00 0                          [heap]
7f8135b00000-7f8135c00000 r-xp 00000000 fe:00 12                         /lib/x86_64-linux-gnu/libglib-2.0.so.0
"""


def leaking(**changed: Any) -> Cell:
    chunks: Any = changed.pop("chunks", ((144, 3.0),))
    leak = Leaked(
        section="toy", resource=Resource.MEMORY, per_load=432, low=431, high=433, unit="bytes", loads=9, chunks=chunks
    )
    return made_cell("pc-i440fx-7.2/vmxnet3/bound/leak", Verdict.LEAK, causes=(leak,), **changed)


@pytest.mark.parametrize(("chunk", "asked"), [(32, (0, 24)), (48, (25, 40)), (144, (121, 136))])
def test_the_size_of_a_chunk_tells_what_was_asked_for(chunk: int, asked: tuple[int, int]) -> None:
    assert asked_bytes(chunk) == asked


def test_a_call_counts_once_it_has_returned() -> None:
    lines: list[dict[str, Any]] = [
        {"armed": ["malloc"]},
        {"call": 1, "stack": "a"},
        {"call": 2, "stack": "b"},
        {"call": 2, "pointer": 0x20},
        {"call": 1, "pointer": 0x10},
        {"call": 3, "stack": "c"},
        {"call": 4, "stack": "d"},
        {"call": 4, "pointer": 0},
    ]
    assert read_calls(lines) == [Call(number=2, stack="b", pointer=0x20), Call(number=1, stack="a", pointer=0x10)]


def test_what_is_freed_or_replaced_by_the_next_load_does_not_leak() -> None:
    """Eight loads, of which four count: one place leaks, one frees, one keeps what it allocated last."""
    calls: list[Call] = []
    for load in range(8):
        for place, pointer in (("leaks", 0x1000 + load * 0x90), ("frees", 0x5000), ("keeps", 0x6000 + load % 2 * 0x90)):
            calls.append(Call(number=len(calls) + 1, stack=f"#0  {place} ()\n", pointer=pointer))
    # of the first load malloc gave a step more than it had to; what was freed is something larger now
    heap = {0x1000 + load * 0x90: 144 for load in range(8)} | {0x1000: 160, 0x6090: 144, 0x5000: 320}
    (site,) = call_sites("toy", calls, 12, 4, of_sizes(heap, {144, 64}), ())
    assert [frame.function for frame in site.frames] == ["leaks"]
    assert (site.section, site.size_bytes, site.per_load) == ("toy", 144, 1.0)


def test_one_chunk_that_stays_is_no_leak() -> None:
    calls = [Call(number=1, stack="#0  cache ()\n", pointer=0x10)]
    assert call_sites("toy", calls, 1, 8, {0x10: 144}, ()) == ()


def test_a_stack_begins_with_who_asked_and_says_where_in_its_module() -> None:
    frames = site_frames(STACK, modules_of(MAPS))
    assert [frame.text for frame in frames] == [
        "#2 net_tx_pkt_init (qemu-system-x86_64+0x59b4f2)",
        "#3 ?? (qemu-system-x86_64+0x59b014)",
        "#4 vmstate_load_state (qemu-system-x86_64+0x568525)",
        "#5 start_thread (pthread_create.c:442)",
    ]


def test_a_library_that_allocates_for_qemu_is_named() -> None:
    stack = STACK.replace("in net_tx_pkt_init ()", "in ip_init () from /lib/libslirp.so.0")
    assert site_frames(stack, ())[0].function == "ip_init"


def test_why_there_is_none_is_said() -> None:
    assert _why_not(QemuError("did not start: Could not trace the inferior process.")).how is AllocationsHow.DENIED
    python = 'Scripting in the "Python" language is not supported in this copy of GDB.'
    assert _why_not(QemuError(f"did not start: {python}")).how is AllocationsHow.NO_PYTHON
    assert _why_not(DeadlineError("not within 90 s")).how is AllocationsHow.LATE
    assert _why_not(QemuError("no machine")) == Allocations(how=AllocationsHow.FAILED, said="no machine")


def test_without_sizes_or_without_gdb_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pack: Any = None
    assert find_allocations(leaking(chunks=()), tmp_path, pack, tmp_path).how is AllocationsHow.NO_CHUNKS
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_allocations(leaking(), tmp_path, pack, tmp_path).how is AllocationsHow.NO_GDB


def test_what_was_found_is_kept_for_the_next_who_asks(tmp_path: Path) -> None:
    frame = Frame(number=2, function="f", module="qemu-system-x86_64", offset="0x10")
    site = CallSite(section="toy", size_bytes=144, per_load=3.0, frames=(frame,), short="f")
    found = Allocations(how=AllocationsHow.SEEN, sites=(site,), loads=8, freed_per_load=1.5)
    qemu = Qemu(version="7.2", build="b", path="/q", sha256="00", label="7.2")
    cell = leaking(load_qemu=qemu)
    binary: Any = _Identity()
    _keep(tmp_path, cell, binary, found)
    assert kept_allocations(tmp_path, cell) == found
    assert kept_allocations(tmp_path, cell, "00") == found
    assert kept_allocations(tmp_path, cell, "ff") is None
    assert kept_allocations(tmp_path, made_cell("pc-i440fx-7.2/ahci/bound/leak", Verdict.LEAK)) is None
    assert found.of(["toy"]) == found
    assert found.of([]).sites == ()


class _Identity:
    identity = staticmethod(lambda: {"sha256": "00"})
