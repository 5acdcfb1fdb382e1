# SPDX-License-Identifier: GPL-2.0-or-later
"""Device profiles: the shipped ones load, and a wrong one is refused with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.arch import architecture_named
from harness.devices.profile import (
    Profile,
    load_profiles,
    owner_of,
    section_label,
    select_profiles,
    size_bytes,
)
from harness.errors import ConfigError, GuestError, UsageError
from harness.files import data_dir
from harness.guests.recipe import load_recipe
from harness.qemu.binary import QemuBinary
from harness.state.recorder import ordered_phases, owned_sections

GOOD = """\
name: toy
about: a device
drivers: [toy]
files: {toy.img: 64K}
machines:
  pc:
    sections: ["0000:00:0?.0/toy", "toy-*"]
    qemu:
      - blockdev: {driver: file, node-name: f, filename: "{workdir}/toy.img", read-only: false}
      - device: {driver: toy-pci, id: t0, addr: "04.0", mac: 52:54:00:12:34:56, num: 4}
      - device: {driver: toy-disk, bus: t0.0}
      - global: {driver: toy, property: x}
    guest: {slot: "0000:00:04.0"}
guest:
  bind: load toy && bind_wait {slot} {other}
"""


def load(tmp_path: Path, text: str, name: str = "toy.yaml") -> dict[str, Profile]:
    folder = tmp_path / "devices"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return load_profiles(folder)


def test_options_are_what_qemu_reads(tmp_path: Path) -> None:
    toy = load(tmp_path, GOOD)["toy"]
    assert [option.argv() for option in toy.options("pc")] == [
        ["-blockdev", "file,node-name=f,filename={workdir}/toy.img,read-only=off"],
        ["-device", "toy-pci,id=t0,addr=04.0,mac=52:54:00:12:34:56,num=4"],
        ["-device", "toy-disk,bus=t0.0"],
        ["-global", "driver=toy,property=x"],
    ]
    assert toy.device_types("pc") == ["toy-pci", "toy-disk"]
    assert toy.file_sizes() == {"toy.img": 65536}
    assert toy.command("bind", "pc") == "load toy && bind_wait 0000:00:04.0 {other}"
    assert toy.command("busy", "pc") == "true"


def test_missing_says_why(tmp_path: Path, binary: QemuBinary) -> None:
    toy = load(tmp_path, GOOD)["toy"]
    assert toy.missing("q35", binary) == "profile toy does not describe machine q35"
    assert toy.missing("pc", binary) == "this QEMU has no device toy-pci, toy-disk"
    able = replace(binary, devices=frozenset({"toy-pci", "toy-disk"}))
    assert toy.missing("pc", able) is None


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("name: toy", "name: Toy", 1, "name"),
        ("drivers: [toy]", "divers: [toy]", 3, "did you mean 'drivers'"),
        ("drivers: [toy]", "drivers: toy", 3, "drivers"),
        ("{toy.img: 64K}", "{toy.img: 64KiB}", 4, "toy.img"),
        ("{toy.img: 64K}", "{toy.img: -1}", 4, "toy.img"),
        ("    sections:", "    section:", 7, "did you mean 'sections'"),
        ("- blockdev:", "- blokdev:", 9, "expected one option of"),
        ("id: t0, addr", "id: [t0], addr", 10, "id"),
        ("id: t0, addr", "id: t0, id: t1, addr", 10, "twice"),
        ("  bind:", "  bnid:", 15, "did you mean 'bind'"),
        ("  bind: load", "\tbind: load", 15, "tab"),
        ('sections: ["0000:00:0?.0/toy", "toy-*"]', "sections: []", 1, "machines.pc: expected 'sections'"),
    ],
)
def test_a_mistake_is_said_with_its_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert caught.value.path.endswith("toy.yaml")
    assert abs(caught.value.line - line) <= (1 if "option of" in said else 0), str(caught.value)
    assert said in str(caught.value)


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"zwei\.yaml: a second profile is named 'toy'"):
        load(tmp_path, GOOD, "zwei.yaml")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_profiles_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"no device profiles in .*{name}"):
        load_profiles(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7", 7), ("1K", 1024), ("64M", 64 << 20), ("3G", 3 << 30), ("007", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1k", "1MB", " 1M", "1M\n", "٣", "1T"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        size_bytes(text)


SHIPPED = sorted(data_dir("devices").glob("*.yaml"))
LABELS = {
    "pc": ("0000:00:03.0/ich9_ahci", "0000:00:04.0/virtio-blk", "0000:00:05.0/virtio-net", "0000:00:01.3/piix4_pm"),
    "q35": ("0000:00:1f.2/ich9_ahci", "0000:00:04.0/virtio-blk", "0000:00:05.0/virtio-net", "0000:00:1f.0/ICH9LPC"),
}


def test_the_shipped_profiles_load_and_the_rest_is_last() -> None:
    profiles = load_profiles()
    assert len(profiles) == len(SHIPPED) >= 4
    assert list(profiles)[-1] == "platform"
    for name, profile in profiles.items():
        assert profile.name == name
        for family in profile.machines:
            assert all(option.argv() for option in profile.options(family))
            for what in ("bind", "busy", "check", "idle", "unbind", "rebind"):
                assert "{" not in profile.command(what, family)
            arguments = str([option.argv() for option in profile.options(family)])
            assert all(name in arguments for name in profile.file_sizes())


def test_every_shipped_driver_is_on_board_of_the_shipped_guest() -> None:
    for path in data_dir("guests").glob("*.yaml"):
        recipe = load_recipe(path, architecture_named(path.stem.rpartition("-")[2]))
        wanted = {driver for profile in load_profiles().values() for driver in profile.drivers}
        assert wanted <= set(recipe.drivers)


@pytest.mark.parametrize("family", ["pc", "q35"])
def test_who_owns_a_section(family: str) -> None:
    profiles = load_profiles().values()
    owners = [owner_of(label, family, profiles) for label in LABELS[family]]
    assert owners == ["ahci", "virtio-blk", "virtio-net", "platform"]
    assert owner_of("slirp", family, profiles) == "virtio-net"
    assert owner_of("0000:00:04.0/virtio-blk#1", family, profiles) == "platform"
    assert owner_of("anything", "microvm", profiles) is None


def test_patterns_match_the_whole_label_and_its_case(tmp_path: Path) -> None:
    profiles = load(tmp_path, GOOD).values()
    labels = ("0000:00:07.0/toy", "0000:00:07.0/toys", "toy-x", "Toy-x")
    owned = [label for label in labels if owner_of(label, "pc", profiles)]
    assert owned == ["0000:00:07.0/toy", "toy-x"]


def test_instances_are_told_apart() -> None:
    assert (section_label("i8259", 0), section_label("i8259", 1)) == ("i8259", "i8259#1")


def test_sections_are_owned_once_and_a_profile_without_any_is_a_mistake(tmp_path: Path) -> None:
    profiles = list(load_profiles().values())
    labels = [*LABELS["pc"], "slirp", "timer"]
    owned = {model.name: model.sections for model in owned_sections(labels, "pc", profiles)}
    assert owned["virtio-net"] == ["0000:00:05.0/virtio-net", "slirp"]
    assert owned["platform"] == ["0000:00:01.3/piix4_pm", "timer"]
    assert sorted(label for sections in owned.values() for label in sections) == sorted(labels)
    with pytest.raises(GuestError, match=r"device ahci owns no section: none matches 0000:00:03\.0/ich9_ahci"):
        owned_sections(labels[1:], "pc", profiles)


def test_an_unknown_device_is_named_beside_the_known_ones() -> None:
    profiles = load_profiles()
    assert [p.name for p in select_profiles(profiles, ["platform", "ahci"])] == ["platform", "ahci"]
    with pytest.raises(UsageError, match="unknown device 'ahcy': expected one of ahci, "):
        select_profiles(profiles, ["ahcy"])


def test_phases_come_in_the_guests_order() -> None:
    assert ordered_phases(["busy", "firmware", "busy"]) == ["firmware", "busy"]
    with pytest.raises(UsageError, match="unknown phase 'boot': expected one of firmware"):
        ordered_phases(["boot"])
