# SPDX-License-Identifier: GPL-2.0-or-later
"""Which machine type guests bring along, and which pairs a run has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.arch import family_of
from harness.errors import NothingToRun
from harness.qemu.binary import MachineType, QemuBinary
from harness.qualify.explained import OtherTypes
from harness.qualify.pairs import at_home, ending, machine_for, other_types, plan_pairs
from harness.report.reasons import remedy_text


def build(binary: QemuBinary, mark: str, *names: str, deprecated: tuple[str, ...] = ()) -> QemuBinary:
    """A QEMU on paper; the last machine of a family is its alias."""
    machines = [MachineType(name=name, alias=None, deprecated=name in deprecated) for name in names]
    for prefix, alias in (("pc-i440fx-", "pc"), ("pc-q35-", "q35")):
        mine = [i for i, machine in enumerate(machines) if machine.name.startswith(prefix)]
        if mine:
            machines[mine[-1]] = replace(machines[mine[-1]], alias=alias)
    return replace(binary, sha256=mark * 64, machines=tuple(machines))


@pytest.fixture
def old(binary: QemuBinary) -> QemuBinary:
    return build(binary, "a", "pc-i440fx-4.2", "pc-i440fx-5.2", "pc-q35-5.2")


@pytest.fixture
def new(binary: QemuBinary) -> QemuBinary:
    return build(binary, "b", "pc-i440fx-5.2", "pc-i440fx-9.2", "pc-i440fx-10.0", "pc-q35-9.2", "pc-q35-10.0")


def test_guests_bring_the_newest_type_of_their_own_qemu(old: QemuBinary, new: QemuBinary) -> None:
    assert machine_for(old, new, "pc") == "pc-i440fx-5.2"


def test_on_the_way_back_only_a_type_that_the_old_one_knows_can_come(old: QemuBinary, new: QemuBinary) -> None:
    assert machine_for(new, old, "pc") == "pc-i440fx-5.2"


def test_versions_are_compared_as_numbers(binary: QemuBinary, new: QemuBinary) -> None:
    middle = build(binary, "c", "pc-i440fx-9.2", "pc-i440fx-9.1")
    assert machine_for(new, middle, "pc") == "pc-i440fx-9.2"
    assert machine_for(middle, new, "pc") == "pc-i440fx-9.2"


def test_a_removed_type_is_tried_all_the_same(old: QemuBinary, new: QemuBinary) -> None:
    """It is what the guests have; that the new QEMU lacks it is the answer."""
    assert machine_for(old, new, "q35") == "pc-q35-5.2"
    assert ending(new, "pc-q35-5.2") == "removed"


def test_a_named_type_is_taken_as_it_is(old: QemuBinary, new: QemuBinary) -> None:
    assert machine_for(old, new, "pc-i440fx-4.2") == "pc-i440fx-4.2"


def test_a_family_that_the_recorder_has_not_gives_nothing(binary: QemuBinary, new: QemuBinary) -> None:
    assert machine_for(build(binary, "d", "pc-i440fx-5.2"), new, "q35") is None


def test_pairs_there_then_back(old: QemuBinary, new: QemuBinary) -> None:
    pairs = plan_pairs([old], [new], ["pc"], both_ways=True)
    assert [(p.recorder.sha256[0], p.loader.sha256[0], p.machine) for p in pairs] == [
        ("a", "b", "pc-i440fx-5.2"),
        ("b", "a", "pc-i440fx-5.2"),
    ]


def test_guests_at_home_each_once(old: QemuBinary, new: QemuBinary) -> None:
    pairs = plan_pairs([old], [new], ["pc", "pc-i440fx-5.2"], both_ways=True)
    assert [p.key for p in at_home([*pairs, *pairs])] == [
        ("pc-i440fx-5.2", "a" * 64, "a" * 64),
        ("pc-i440fx-5.2", "b" * 64, "b" * 64),
    ]


def test_every_pair_once_when_all_go_to_all(old: QemuBinary, new: QemuBinary) -> None:
    both = [old, new]
    pairs = plan_pairs(both, both, ["pc", "pc-i440fx-5.2"], both_ways=True)
    keys = [(p.recorder.sha256, p.loader.sha256, p.machine) for p in pairs]
    assert len(keys) == len(set(keys)) == 2


def test_one_qemu_on_both_sides_is_nothing_to_run(old: QemuBinary) -> None:
    with pytest.raises(NothingToRun, match="the same QEMU"):
        plan_pairs([old], [replace(old, path="/elsewhere")], ["pc"], both_ways=False)


@pytest.mark.parametrize(
    ("machine", "family"), [("pc-q35-10.0", "q35"), ("pc-i440fx-5.2", "pc"), ("pc-1.3", "pc-1.3"), ("q35", "q35")]
)
def test_families(machine: str, family: str) -> None:
    assert family_of(machine) == family


def test_versions_of_virt_are_versions_too(binary: QemuBinary) -> None:
    old, new = build(binary, "d", "virt-7.2", "virt-6.2"), build(binary, "e", "virt-10.0", "virt-7.2", "virt-6.2")
    assert machine_for(old, new, "virt") == "virt-7.2"
    assert machine_for(new, old, "virt") == "virt-7.2"
    assert ending(old, "virt-10.0") == "not-yet"


def test_a_deprecated_type_is_near_its_end(binary: QemuBinary) -> None:
    there = build(binary, "e", "pc-q35-5.2", "pc-q35-10.0", deprecated=("pc-q35-5.2",))
    names = ("pc-q35-5.2", "pc-q35-10.0", "pc-q35-4.2", "pc-q35-11.0", "pc-i440fx-5.2")
    assert [ending(there, name) for name in names] == ["deprecated", None, "removed", "not-yet", "not-yet"]


def test_a_named_type_that_the_recorder_has_not_is_nobodys_guest(old: QemuBinary, new: QemuBinary) -> None:
    assert machine_for(old, new, "pc-i440fx-10.0") is None
    both = plan_pairs([old], [new], ["pc-i440fx-10.0"], both_ways=True)
    assert [(pair.recorder.sha256[0], pair.loader.sha256[0]) for pair in both] == [("b", "a")]
    with pytest.raises(NothingToRun, match=r"no guest with machine pc-i440fx-10\.0"):
        plan_pairs([old], [new], ["pc-i440fx-10.0"], both_ways=False)


def test_a_type_that_is_not_there_comes_with_those_that_are(old: QemuBinary, new: QemuBinary) -> None:
    types = OtherTypes(version="7.2.22", oldest="pc-i440fx-4.2", newest="pc-i440fx-5.2")
    assert other_types(old, "pc-i440fx-10.0") == types
    assert remedy_text(types).endswith("QEMU 7.2.22 has pc-i440fx-4.2 to pc-i440fx-5.2")
    assert other_types(replace(old, machines=()), "pc-i440fx-10.0") is None
