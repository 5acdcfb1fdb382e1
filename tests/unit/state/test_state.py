# SPDX-License-Identifier: GPL-2.0-or-later
"""Device state made ready to be sent: nothing but the parked CPU differs from what was recorded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.arch import AARCH64, X86_64
from harness.engines.buffers import Buffers, Selection
from harness.errors import HarnessError
from harness.packs.pack import StatePack
from harness.state.transforms import (
    GuestMode,
    cpu_labels,
    encode,
    label_of,
    labels_of,
    only,
    park,
    sections_for,
    without,
)
from harness.stream.model import Section
from harness.stream.vmdesc import VmDesc
from harness.stream.wire import SectionType

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

RUNNING, PARKED = GuestMode.RUNNING, GuestMode.PARKED


@pytest.fixture
def pack(make_pack: Callable[..., Path]) -> Iterator[StatePack]:
    with StatePack(make_pack()) as opened:
        yield opened


def parked_cpus(handmade: Handmade, mark: int) -> bytes:
    """The two CPU sections of a phase, halted, without interrupts and with IF clear."""
    common = handmade.full(0, mark).replace(struct.pack(">II", 0, 0x100 | mark), struct.pack(">II", 1, 0))
    flags = struct.pack(">QQ", 0xFFF0 + mark, 0x246)
    return common + handmade.full(1, mark).replace(flags, struct.pack(">QQ", 0xFFF0 + mark, 0x46))


def test_a_running_guest_is_sent_as_it_was_recorded(pack: StatePack, handmade: Handmade) -> None:
    assert encode(sections_for(pack.recordings["bound"], RUNNING)) == handmade.devices(0x22)


def test_a_parked_guest_has_its_cpu_halted_and_nothing_else_changed(pack: StatePack, handmade: Handmade) -> None:
    wanted = parked_cpus(handmade, 0x22) + b"".join(handmade.full(n, 0x22) for n in range(2, 6))
    assert encode(sections_for(pack.recordings["bound"], PARKED)) == wanted


def test_sections_are_chosen_by_label_in_stream_order(pack: StatePack, handmade: Handmade) -> None:
    sections = pack.recordings["bound"].sections
    assert tuple(label_of(s) for s in sections) == handmade.sections
    assert [label_of(s) for s in only(sections, frozenset({"i8259#1", "cpu", "nosuch"}))] == ["cpu", "i8259#1"]
    assert [label_of(s) for s in without(sections, frozenset({"i8259", "cpu", "nosuch"}))] == [
        "cpu_common", "i8259#1", handmade.ahci, handmade.blk,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['{"devices": []}', '{"devices": [{"name": "cpu", "instance_id": 0, "fields": []}]}'])
def test_a_cpu_that_is_described_otherwise_cannot_be_parked(pack: StatePack, text: str) -> None:
    desc = next(iter(VmDesc.from_json(text.encode()).devices), None)
    cpu = replace(pack.recordings["bound"].sections[1], payload=b"", desc=desc)
    with pytest.raises(HarnessError, match="cannot park: section cpu "):
        park(cpu, X86_64)


def cpu_state(fields: list[tuple[str, str, int]], instance: int, payload: bytes) -> Section:
    """Section ``cpu`` of one instance with fields of a name, a type and a size."""
    described = [{"name": name, "type": kind, "size": size} for name, kind, size in fields]
    device = {"name": "cpu", "instance_id": instance, "vmsd_name": "cpu", "version": 22, "fields": described}
    return Section(
        type=SectionType.FULL, section_id=9, idstr="cpu", instance_id=instance, version_id=22,
        offset=0, header_size=0, payload=payload, footer=True,
        desc=VmDesc.from_json(json.dumps({"devices": [device]}).encode()).devices[0],
    )  # fmt: skip


@pytest.mark.parametrize("instance", [0, 1])
def test_each_cpu_of_each_architecture_is_parked(instance: int) -> None:
    fields = [("env.eip", "uint64", 8), ("env.eflags", "uint64", 8)]
    section = cpu_state(fields, instance, struct.pack(">QQ", 5, 0x246))
    assert park(section, X86_64).payload == struct.pack(">QQ", 5, 0x46)
    fields = [("env.pc", "uint64", 8), ("power_state", "powered_off", 1)]
    section = cpu_state(fields, instance, struct.pack(">QB", 7, 0))
    assert park(section, AARCH64).payload == struct.pack(">QB", 7, 1)


def test_all_cpus_of_a_recording_are_named(pack: StatePack) -> None:
    recording = pack.recordings["bound"]
    second = replace(recording.sections[1], instance_id=1)
    assert cpu_labels(recording) == {"cpu_common", "cpu"}
    assert cpu_labels(replace(recording, sections=(*recording.sections, second))) == {"cpu_common", "cpu", "cpu#1"}


def test_a_buffer_has_everything_once_and_its_own_as_often_as_asked(pack: StatePack, handmade: Handmade) -> None:
    buffers = Buffers(pack)
    own = frozenset({handmade.ahci})
    whole, ahci = handmade.devices(0x22), handmade.full(4, 0x22)

    def devices(repeat: int, **more: object) -> bytes:
        return buffers.devices("bound", RUNNING, Selection(own=own, **more), repeat)  # type: ignore[arg-type]

    assert devices(1) == whole
    assert devices(3) == whole + ahci * 2
    assert devices(1, again=True) == whole + ahci
    assert devices(1, whole=False) == ahci
    assert devices(3, whole=False) == ahci * 3
    assert devices(1, whole=False, again=True) == ahci * 2
    without_cpu = whole.replace(handmade.full(1, 0x22), b"")
    assert devices(2, excluded=frozenset({"cpu"})) == without_cpu + ahci
    selection = Selection(own=own)
    assert buffers.parts("bound", RUNNING, selection) == (whole, ahci)
    assert buffers.parts("bound", RUNNING, selection) is buffers.parts("bound", RUNNING, selection)


def test_a_buffer_without_its_own_section_is_not_sent(pack: StatePack, handmade: Handmade) -> None:
    buffers = Buffers(pack)
    own = frozenset({handmade.ahci})
    with pytest.raises(HarnessError, match="none of the sections"):
        buffers.devices("bound", RUNNING, Selection(own=own, excluded=own), 1)
    with pytest.raises(HarnessError, match="none of the sections"):
        buffers.devices("bound", RUNNING, Selection(own=frozenset({"nosuch"})), 1)


def test_ram_buffers_are_made_once_and_none_for_the_same_phase(pack: StatePack) -> None:
    buffers = Buffers(pack)
    assert buffers.ram_whole("bound") is buffers.ram_whole("bound")
    assert buffers.ram_difference("bound", "kernel") is buffers.ram_difference("bound", "kernel")
    assert b"".join(buffers.ram_difference("bound", "kernel")) != b"".join(buffers.ram_difference("kernel", "bound"))
    assert buffers.ram_difference("bound", "bound") == []


def test_a_name_that_two_sections_share_is_named_once(pack: StatePack) -> None:
    sections = pack.recordings["bound"].sections
    assert labels_of([*sections, sections[0], *sections]) == [label_of(section) for section in sections]
