# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of cells: written and read back, and how a user names one by a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.results.key import CellKey, Route, find_by_key, labels

HOME = Route(recorder="7.2.22", loader="7.2.22")
USUAL = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
KEY = CellKey(route=HOME, machine="pc-q35-7.2", device="virtio-blk", phases=("bound",), lane="same")

TEXTS = [
    ("7.2.22/pc-q35-7.2/virtio-blk/bound/same", KEY),
    ("7.2.22/pc-q35-7.2/virtio-blk/bound/same+rest", replace(KEY, rest=1)),
    ("7.2.22/pc-q35-7.2/virtio-blk/bound/same+rest2", replace(KEY, rest=2)),
    ("7.2.22/pc-q35-7.2/virtio-blk/bound/same/parked", replace(KEY, guest_mode="parked")),
    ("7.2.22/pc-q35-7.2/virtio-blk/bound/same/parked+rest", replace(KEY, guest_mode="parked", rest=1)),
    ("7.2.22/pc-q35-7.2/virtio-blk/all/walk", replace(KEY, phases=USUAL, lane="walk")),
    ("7.2.22/pc-q35-7.2/virtio-blk/bound+busy/walk", replace(KEY, phases=("bound", "busy"), lane="walk")),
    ("7.2.22/pc-q35-7.2+cpus=2/virtio-blk/bound/same", replace(KEY, cpus=2)),
    ("7.2.22/pc-q35-7.2+cpus=2+accel=kvm/virtio-blk/bound/same", replace(KEY, cpus=2, accel="kvm")),
    ("7.2.22/virt-9.0/virtio-blk/bound/same", replace(KEY, machine="virt-9.0", arch="aarch64")),
    ("7.2.22/virt-9.0+arch=x86_64/virtio-blk/bound/same", replace(KEY, machine="virt-9.0")),
    (
        "7.2.22>10.0.13/pc-q35-7.2/virtio-blk/bound/plain",
        replace(KEY, route=Route(recorder="7.2.22", loader="10.0.13"), lane="plain"),
    ),
    ("mybuild~2/pc-q35-7.2/nvme+ns/bound/same", replace(KEY, route=Route.parse("mybuild~2"), device="nvme+ns")),
]


@pytest.mark.parametrize(("text", "key"), TEXTS)
def test_a_key_is_written_and_read_back(text: str, key: CellKey) -> None:
    assert str(key) == text
    assert CellKey.parse(text) == key


@pytest.mark.parametrize(
    "text", ["", "same", "7.2.22/pc/ahci/bound", "7.2.22/pc+cores=2/ahci/bound/same", "7.2.22/pc//bound/same"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no cell"):
        CellKey.parse(text)


def test_place_and_row_are_parts_of_it() -> None:
    key = replace(KEY, guest_mode="parked", rest=2)
    assert key.place == "virtio-blk/bound/same"
    assert key.row == "7.2.22/pc-q35-7.2/virtio-blk"


def test_the_slug_of_a_very_long_key_is_the_name_of_a_file_too(tmp_path: Path) -> None:
    long, other = (CellKey.parse(f"7.2.22/pc-q35-7.2/{'x' * 400}{end}/bound/same") for end in "ab")
    assert long.slug.startswith("7.2.22_pc-q35-7.2_xxx")
    assert long.slug != other.slug
    (tmp_path / f".{long.slug}.journal.jsonl").touch()


def test_a_slug_is_the_name_of_a_file() -> None:
    key = replace(KEY, route=Route(recorder="7.2.22", loader="10.0.13"), rest=1)
    assert key.slug == "7.2.22..10.0.13_pc-q35-7.2_virtio-blk_bound_same+rest"


def test_builds_of_one_version_get_labels_of_their_own() -> None:
    builds = [("aa", "7.2.22"), ("bb", "10.0.13"), ("aa", "7.2.22"), ("cc", "7.2.22"), ("dd", "7.2.22")]
    assert labels(builds) == {"aa": "7.2.22", "bb": "10.0.13", "cc": "7.2.22~2", "dd": "7.2.22~3"}


KEYS = [replace(KEY, device=device, phases=(phase,)) for device in ("ahci", "platform")
        for phase in ("bound", "unbound", "rebound")]  # fmt: skip


def found(text: str, failing: str = "platform") -> str:
    return str(find_by_key(KEYS, lambda key: key, text, lambda key: key.device == failing))


def test_a_phase_is_not_the_end_of_another_ones_name() -> None:
    """All of unbound, rebound and bound fail, as they do in a run over all phases."""
    assert found("bound/same") == "7.2.22/pc-q35-7.2/platform/bound/same"
    assert found("unbound/same") == "7.2.22/pc-q35-7.2/platform/unbound/same"
    assert found("/ahci/bound/same/") == "7.2.22/pc-q35-7.2/ahci/bound/same"


def test_a_part_of_a_word_still_names_the_only_one() -> None:
    assert found("form/bound") == "7.2.22/pc-q35-7.2/platform/bound/same"


def test_a_whole_key_names_the_first_look_though_others_begin_like_it() -> None:
    keys = [KEY, replace(KEY, rest=1)]
    assert find_by_key(keys, lambda key: key, str(KEY), lambda _: False) == KEY


@pytest.mark.parametrize("text", ["same", "platform", "nobody"])
def test_what_names_none_or_several_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cell"):
        found(text)


def test_all_phases_of_a_machine_without_firmware_are_those_that_it_has() -> None:
    key = CellKey.parse("7.2.22/virt-7.2+cpus=2/virtio-blk/all/walk")
    assert key.phases == ("kernel", "bound", "busy", "unbound", "rebound")
    assert (key.arch, key.cpus) == ("aarch64", 2)
    assert str(key) == "7.2.22/virt-7.2+cpus=2/virtio-blk/all/walk"
    few = replace(key, phases=("kernel", "bound"))
    assert str(few) == "7.2.22/virt-7.2+cpus=2/virtio-blk/kernel+bound/walk"
