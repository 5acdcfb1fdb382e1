# SPDX-License-Identifier: GPL-2.0-or-later
"""Pieces of a candidate: options that belong together, ranges of pages, stable names."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import cast

import pytest
from made_cells import made_cell

from harness.devices.backends import Disk
from harness.engines.schedule import Checkpoint
from harness.errors import UsageError
from harness.guests.machine import Machine
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.cmdline import Option
from harness.results.document import Cell
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.stream.vmdesc import VmDesc
from harness.triage.fields import Atom
from harness.triage.minimise import Attempt, Search
from harness.triage.reduced import Candidate, Pages, connected, halves, without_options
from harness.triage.reduction import Reduction
from harness.triage.tries import Target, check_target

OPTIONS = (
    Option(name="m", first="128"),
    Option(name="device", first="ich9-ahci", props={"id": "ahci0", "addr": "03.0"}),
    Option(name="blockdev", first="file", props={"node-name": "a-file", "filename": "{workdir}/a.img"}),
    Option(name="netdev", first="user", props={"id": "net0"}),
    Option(name="blockdev", first="raw", props={"node-name": "a-disk", "file": "a-file"}),
    Option(name="device", first="virtio-net-pci", props={"id": "vnet0", "netdev": "net0"}),
    Option(name="device", first="ide-hd", props={"id": "hd", "drive": "a-disk", "bus": "ahci0.0"}),
)
MACHINE = Machine(
    plan=GuestPlan(
        machine="pc-1",
        family="pc",
        memory_mib=128,
        devices=(
            PlacedDevice(id="hd", type="ide-hd", backends={"drive": "a"}),
            PlacedDevice(id="blk", type="virtio-blk-pci", backends={"drive": "b"}),
        ),
        backends={"a": Disk(size_bytes=1024), "b": Disk(size_bytes=2048)},
    ),
    accel="tcg",
)
CANDIDATE = Candidate(
    mode=GuestMode.PARKED,
    incoming="bound",
    steps=(Checkpoint(phase="bound", repeat=3), Checkpoint(phase="busy")),
    sections=frozenset({"a", "b"}),
    own=frozenset({"a"}),
)


def test_options_that_name_each_other_are_one_group() -> None:
    assert connected(OPTIONS) == [frozenset({0}), frozenset({1, 2, 4, 6}), frozenset({3, 5})]


def test_images_go_with_the_options_that_name_them() -> None:
    assert without_options(MACHINE, ()) == MACHINE
    assert MACHINE.files == (("a.img", 1024), ("b.img", 2048))
    left = without_options(MACHINE, {1, 5, 6, 7})
    assert [option.first for option in left.options] == ["128", "file", "raw", "ide-hd"]
    assert left.files == (("a.img", 1024),)
    assert without_options(MACHINE, {2, 3, 4, 5, 6, 7}).files == ()


def test_ranges_are_halved_down_to_a_page() -> None:
    assert halves([Pages(0, 0, 5), Pages(1, 7, 8)]) == (Pages(0, 0, 2), Pages(0, 2, 5), Pages(1, 7, 8))


def test_a_candidate_has_a_stable_name() -> None:
    assert CANDIDATE.loads == 4
    assert CANDIDATE.key == replace(CANDIDATE, sections=frozenset(["b", "a"])).key
    atom = Atom(section="a", path="p", field_offset=0, kind="uint8", offset=0, mask=b"\1", healthy=b"\0")
    others = [
        replace(CANDIDATE, mode=GuestMode.RUNNING),
        replace(CANDIDATE, incoming="busy"),
        replace(CANDIDATE, steps=CANDIDATE.steps[:1]),
        replace(CANDIDATE, sections=frozenset({"a"})),
        replace(CANDIDATE, own=frozenset({"b"})),
        replace(CANDIDATE, start=frozenset()),
        replace(CANDIDATE, ram=()),
        replace(CANDIDATE, ram=(Pages(0, 1, 2),)),
        replace(CANDIDATE, dropped=frozenset({1})),
        replace(CANDIDATE, healthy=frozenset({atom})),
        replace(CANDIDATE, healthy=frozenset({replace(atom, mask=b"\2")})),
    ]
    assert len({CANDIDATE.key, *(other.key for other in others)}) == len(others) + 1


def test_the_description_of_some_sections() -> None:
    devices = [
        {"name": name, "instance_id": n, "size": 1, "fields": [{"name": "data", "size": 1, "type": "buffer"}]}
        for name, n in (("a", 0), ("b", 0), ("a", 1))
    ]
    whole = VmDesc.from_json(json.dumps({"page_size": 4096, "devices": devices}).encode())
    part = whole.only({("a", 1)})
    assert list(part.by_key) == [("a", 1)]
    assert part.page_size == 4096
    assert len(part.raw) < len(whole.raw)


def cell(verdict: Verdict, lane: str = "same", section: str | None = "a") -> Cell:
    return made_cell(f"pc/d/bound/{lane}", verdict, blamed=() if section is None else (section,))


@pytest.mark.parametrize(
    "one",
    [cell(Verdict.OK), cell(Verdict.HOST), cell(Verdict.DRIFT, "drift"), cell(Verdict.LEAK, "leak", None),
     cell(Verdict.CRASH, "leak"), cell(Verdict.GUEST_FAULT, "guest")],
)  # fmt: skip
def test_what_cannot_be_minimised_is_refused(one: Cell) -> None:
    with pytest.raises(UsageError, match="minimise"):
        check_target(one)


@pytest.mark.parametrize("one", [cell(Verdict.CRASH), cell(Verdict.REJECT, "plain"), cell(Verdict.LEAK, "leak")])
def test_what_can(one: Cell) -> None:
    check_target(one)


def test_a_piece_is_needed_only_where_all_loads_pass_without_it() -> None:
    """Without the address it does not fail; with another size the load is refused, and says nothing."""

    def piece(path: str, offset: int) -> Atom:
        return Atom(
            section="a", path=path, field_offset=offset, kind="uint8", offset=offset, mask=b"\xff", healthy=b"\0"
        )

    address, size = piece("address", 0), piece("size", 1)

    def attempt(candidate: Candidate) -> Attempt:
        return Attempt(hit=not candidate.healthy, tested=size not in candidate.healthy)

    search: Search[Candidate] = Search(attempt=attempt, key=lambda candidate: candidate.key)
    search.confirm(CANDIDATE)
    reduction = Reduction(cast(Target, None), search)
    reduction._prove((address, size))
    assert (reduction._needed, reduction._untested) == ((address,), (size,))
