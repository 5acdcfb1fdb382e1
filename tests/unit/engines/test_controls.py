# SPDX-License-Identifier: GPL-2.0-or-later
"""The control engines without QEMU: images, machines, streams, and counting what a pair did."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.engines.buffers import Buffers
from harness.engines.evidence import Break, Evidence
from harness.engines.fresh import merge
from harness.engines.incoming import State
from harness.engines.pair import count_checkpoints
from harness.engines.spare import memory_option, spare_of
from harness.errors import HarnessError
from harness.guests.machine import SPARE_BYTES
from harness.oracles.marker import marker
from harness.packs.manifest import BlockModel
from harness.packs.pack import StatePack
from harness.qemu.process import Exit


def test_a_state_is_a_whole_stream_without_what_is_excluded(make_pack: Callable[..., Path], handmade: Any) -> None:
    with StatePack(make_pack("pack", "kernel")) as pack:
        whole = b"".join(State(buffers=Buffers(pack), phase="kernel").stream())
        less = b"".join(State(buffers=Buffers(pack), phase="kernel", excluded=frozenset({handmade.ahci})).stream())
    _, mark = handmade.phases["kernel"]
    tail = handmade.devices(mark) + b"\0" + struct.pack(">BI", 6, len(handmade.vmdesc)) + handmade.vmdesc
    assert whole.startswith(handmade.head + handmade.ram_start())
    assert whole.endswith(tail)
    number = handmade.sections.index(handmade.ahci)
    assert less == whole.replace(handmade.full(number, mark), b"")
    assert len(less) < len(whole)


def test_an_early_load_stands_before_the_whole_one(make_pack: Callable[..., Path], handmade: Any) -> None:
    with StatePack(make_pack("pack", "kernel")) as pack:
        state = State(buffers=Buffers(pack), phase="kernel", excluded=frozenset({handmade.ahci}), early=True)
        stream = b"".join(state.stream())
    _, mark = handmade.phases["kernel"]
    number = handmade.sections.index(handmade.ahci)
    devices = handmade.devices(mark).replace(handmade.full(number, mark), b"")
    assert stream.count(devices) == 2
    assert stream.count(devices * 2 + b"\0") == 1


def test_a_stream_for_a_machine_with_spare_memory_announces_it_and_is_the_same_otherwise(
    make_pack: Callable[..., Path],
) -> None:
    def listed(size: int) -> bytes:
        return struct.pack(">Q", size | 4) + b"\x06pc.ram" + struct.pack(">Q", size)

    with StatePack(make_pack("pack", "kernel")) as pack:
        with pytest.raises(HarnessError, match="no RAM block has the 16777216 bytes of the guest's memory"):
            State(buffers=Buffers(pack), phase="kernel").stream(SPARE_BYTES)
        start = struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4)
        recording = replace(pack.recordings["kernel"], setup=start + listed(16 << 20) + b"behind")
        pack.recordings = {"kernel": recording}
        pack.manifest = pack.manifest.model_copy(update={"blocks": [BlockModel(name="pc.ram", size_bytes=16 << 20)]})
        state = State(buffers=Buffers(pack), phase="kernel")
        usual, spare = b"".join(state.stream()), b"".join(state.stream(SPARE_BYTES))
    assert usual.count(listed(16 << 20)) == 1
    assert spare == usual.replace(listed(16 << 20), listed((16 << 20) + SPARE_BYTES))


def test_spare_memory_is_for_tcg_and_no_whole_number_of_64_pages(make_pack: Callable[..., Path]) -> None:
    with StatePack(make_pack("pack", "kernel")) as pack:
        machine = pack.machine
    assert spare_of(replace(machine, accel="kvm")) == 0
    assert memory_option(machine, spare_of(machine)).argv() == ["-m", "16392k"]
    assert 16392 * 1024 % (64 * 4096)


@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ("", (0, 0)),
        ("RESUME", (0, 0)),
        ("RESUME STOP", (1, 0)),
        ("RESUME STOP RESUME", (1, 1)),
        ("MIGRATION RESUME STOP NIC_RX_FILTER_CHANGED RESUME STOP RESUME STOP", (3, 2)),
    ],
)
def test_checkpoints_are_counted_by_stops_and_resumes(events: str, counted: tuple[int, int]) -> None:
    assert count_checkpoints(events.split()) == counted


def evidence(broken: Break | None = None, ended: Exit | None = None, log: str = "") -> Evidence:
    acked = 0 if broken else 1
    return Evidence(loads_asked=1, loads_acked=acked, checkpoints_acked=acked, broken=broken, exit=ended, log=log)


def test_processes_are_added_up_and_the_first_that_broke_speaks() -> None:
    second = Break(step=Step.INCOMING, kind="closed", symptom=symptom(""), load=2, phase="busy")
    third = Break(step=Step.RESUME, kind="closed", symptom=symptom(""), load=3, phase="busy")
    merged = merge(
        [
            evidence(log="one"),
            evidence(second, Exit(status=-6, signal="SIGABRT"), "two"),
            evidence(third, Exit(status=0), "three"),
            evidence(log="four"),
        ]
    )
    assert (merged.loads_asked, merged.loads_acked) == (4, 2)
    assert (merged.broken, merged.log) == (second, "two")
    assert merged.exit == Exit(status=-6, signal="SIGABRT")


def test_the_marker_is_a_whole_section_that_nobody_registers() -> None:
    name = b"postload/end-of-load"
    head = struct.pack(">BIB", 4, 0x7FFFFFFF, len(name)) + name + struct.pack(">II", 0, 1)
    assert marker() == head + struct.pack(">BI", 0x7E, 0x7FFFFFFF)


def test_draining_a_console_neither_waits_nor_minds_a_closed_one() -> None:
    from harness.engines.incoming import drain_console

    class Quiet:
        def __init__(self) -> None:
            self.console, self.far = socket.socketpair()

    quiet: Any = Quiet()
    quiet.far.send(b"x" * 1000)
    drain_console(quiet)
    with pytest.raises(BlockingIOError):
        quiet.console.recv(1, socket.MSG_DONTWAIT)
    quiet.far.close()
    drain_console(quiet)
    quiet.console.close()
