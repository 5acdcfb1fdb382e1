# SPDX-License-Identifier: GPL-2.0-or-later
"""The control engines without QEMU: images, machines, streams, and counting what a pair did."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.colo.messages import Step
from harness.engines.colo import Break, Buffers, Evidence
from harness.engines.disks import empty_qcow2
from harness.engines.fresh import merge
from harness.engines.incoming import State
from harness.engines.loadvm import make_images, with_snapshots
from harness.engines.pair import count_checkpoints
from harness.errors import HostError
from harness.guests.machine import Machine
from harness.oracles.marker import marker
from harness.packs.pack import StatePack
from harness.qemu.cmdline import Option
from harness.qemu.process import Exit

CLUSTER = 65536


def machine(*options: Option, files: tuple[tuple[str, int], ...] = (("a.img", 1 << 20),)) -> Machine:
    return Machine(name="pc-q35-7.2", family="q35", accel="tcg", options=options, files=files)


def node(driver: str, name: str, **props: str) -> Option:
    return Option(name="blockdev", first=driver, props={"node-name": name, **props})


@pytest.mark.parametrize(("size", "l1"), [(1 << 20, 1), (512 << 20, 1), ((512 << 20) + 1, 2), (64 << 30, 128)])
def test_an_empty_image_is_qcow2_as_its_specification_has_it(size: int, l1: int) -> None:
    image = empty_qcow2(size)
    assert image[:8] == b"QFI\xfb\x00\x00\x00\x03"
    assert struct.unpack_from(">QI", image, 8) == (0, 0)
    bits, disk, crypt, l1_size = struct.unpack_from(">IQII", image, 20)
    assert (bits, disk, crypt, l1_size) == (16, size, 0, l1)
    l1_offset, table, clusters, snapshots = struct.unpack_from(">QQII", image, 40)
    assert (clusters, snapshots) == (1, 0)
    (block,) = struct.unpack_from(">Q", image, table)
    counts = struct.unpack_from(f">{len(image) // CLUSTER}H", image, block)
    assert counts == (1,) * len(counts)
    assert not any(image[block + 2 * len(counts) : block + CLUSTER])
    assert not any(image[l1_offset : l1_offset + 8 * l1_size])
    assert len({0, table, block, l1_offset}) == 4


def test_an_image_too_large_for_one_table_is_refused() -> None:
    with pytest.raises(HostError, match="too large"):
        empty_qcow2((4 << 40) + 1)


def test_scratch_images_become_qcow2_and_nothing_else_does() -> None:
    scratch = node("file", "f", filename="{workdir}/a.img")
    filtered = node("blkdebug", "b", image="f")
    foreign = node("file", "g", filename="/somewhere/a.img")
    drive = Option(name="drive", props={"file": "{workdir}/a.img", "format": "raw", "if": "none"})
    changed = with_snapshots(
        machine(
            scratch,
            node("raw", "direct", file="f"),
            filtered,
            node("raw", "through", file="b"),
            foreign,
            node("raw", "other", file="g"),
            drive,
        )
    )
    drivers = {o.props.get("node-name"): o.first for o in changed.options if o.name == "blockdev"}
    assert (drivers["f"], drivers["direct"], drivers["b"], drivers["through"]) == ("file", "qcow2", "blkdebug", "qcow2")
    assert drivers["other"] == "raw"
    assert [o.props["format"] for o in changed.options if o.name == "drive"] == ["qcow2"]
    assert drivers["postload-vmstate"] == "qcow2"


def test_a_machine_without_a_disk_still_has_a_place_for_its_snapshot(tmp_path: Path) -> None:
    changed = with_snapshots(machine(files=()))
    make_images(changed, tmp_path)
    (image,) = tmp_path.iterdir()
    filenames = [o.props.get("filename") for o in changed.options]
    assert f"{{workdir}}/{image.name}" in filenames
    assert image.read_bytes()[:4] == b"QFI\xfb"


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
    second = Break(step=Step.INCOMING, kind="closed", detail="", load=2, phase="busy")
    third = Break(step=Step.RESUME, kind="closed", detail="", load=3, phase="busy")
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
