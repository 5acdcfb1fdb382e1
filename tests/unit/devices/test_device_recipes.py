# SPDX-License-Identifier: GPL-2.0-or-later
"""Device recipes: the shipped ones load, and a wrong one is refused with its line and costs no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.arch import ARCHITECTURES
from harness.devices.backends import Chardev, Disk, Netdev
from harness.devices.device import Attachment, BuiltIn, Device, section_label, select_devices, unknown_device
from harness.devices.recipe import Recipes, load_recipe, load_recipes, size_bytes
from harness.devices.saved import Comparison, Register, Registers
from harness.errors import ConfigError, UsageError
from harness.files import data_dir
from harness.guests import recipe as guests

GOOD = """\
name: toy
about: a device
drivers: [toy]
attach:
  - {type: toy-pci, name: hba, properties: {mac: 52:54:00:12:34:56, num: 4, fast: true}}
  - {type: toy-disk, on: hba.0, backends: {drive: disk, chardev: line}}
built-in:
  q35: {hba: {bus: toy.0, address: "0000:00:1f.5", without: {toy: false}}}
backends:
  disk: {kind: disk, size: 64K, pattern: sdt, fails_at: 9}
  line: {kind: chardev}
guest:
  bind: load toy && bind_wait {slot} {other}
"""


def load(tmp_path: Path, text: str, name: str = "toy.yaml") -> Recipes:
    folder = tmp_path / "devices"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return load_recipes(folder)


def test_a_recipe_becomes_a_device(tmp_path: Path) -> None:
    toy = load(tmp_path, GOOD).devices["toy"]
    assert toy.attachments == (
        Attachment(name="hba", type="toy-pci", properties={"mac": "52:54:00:12:34:56", "num": 4, "fast": True}),
        Attachment(name="dev", type="toy-disk", on="hba.0", backends={"drive": "disk", "chardev": "line"}),
    )
    assert toy.backends == {"disk": Disk(size_bytes=65536), "line": Chardev()}
    assert toy.built_in == {"q35": {"hba": BuiltIn(bus="toy.0", address="0000:00:1f.5", without={"toy": False})}}
    assert (toy.patterns, toy.faults, toy.failing()) == ({"disk": "sdt"}, {"disk": 9}, {"toy-disk": 9})
    assert toy.guest.bind == "load toy && bind_wait {slot} {other}"
    assert (toy.guest.busy, toy.default, toy.aliases) == ("true", True, ("toy-pci",))


def test_a_recipe_tells_of_the_saved_state(tmp_path: Path) -> None:
    text = (
        GOOD
        + """\
decoder: virtio
drift:
  - {fields: [count], bits: 0x10, compare: [n], reason: "toy_tick (hw/toy.c) counts it while the machine runs"}
registers:
  - {fields: [config], source: a book, registers: [{offset: 4, name: CTRL, bits: {"0": enabled}}]}
"""
    )
    toy = load(tmp_path, text).devices["toy"]
    assert toy.decoder == "virtio"
    (rule,) = toy.drift
    assert (rule.section, rule.fields, rule.bits, rule.compare) == ("*", ("count",), 0x10, (Comparison.N,))
    (group,) = toy.registers
    assert (group.sections, group.fields, group.registers) == (
        "*", ("config",), (Register(name="CTRL", offset=4, width=1, bits={"0": "enabled"}),)
    )  # fmt: skip


def test_what_a_machine_has_is_not_added_to_it(tmp_path: Path) -> None:
    toy = load(tmp_path, GOOD).devices["toy"]
    assert toy.types("pc") == ["toy-pci", "toy-disk"]
    assert toy.types("q35") == ["toy-disk"]
    assert (toy.without("pc"), toy.without("q35")) == ({}, {"toy": False})


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("name: toy\n", "name: -toy\n", 1, "name"),
        ("drivers: [toy]", "divers: [toy]", 3, "did you mean 'drivers'"),
        ("drivers: [toy]", "drivers: toy", 3, "drivers"),
        ("size: 64K", "size: 64KiB", 10, "size"),
        ("size: 64K", "size: -1", 10, "size"),
        ("kind: chardev", "kind: chardew", 11, "chardev"),
        ("fails_at: 9", "fails_at: -9", 10, "fails_at"),
        ("fails_at: 9", "fails: 9", 10, "fails"),
        ("num: 4", "num: [4]", 5, "num"),
        ("name: hba,", "name: hba, name: hbb,", 5, "twice"),
        ("0000:00:1f.5", "1f.5", 8, "address"),
        ("  bind:", "  bnid:", 13, "did you mean 'bind'"),
        ("  bind: load", "\tbind: load", 13, "tab"),
        (
            "on: hba.0",
            'on: "hba:8"',
            1,
            "dev is on 'hba:8': expected a function from 1 to 7 of an attachment that is on pci",
        ),
        ("on: hba.0", "on: hbb.0", 1, "dev is on 'hbb.0': expected pci, pcie-port, none, or a bus of one before it"),
        ("drive: disk", "drive: tape", 1, "stands on backend 'tape', which is not described"),
        ("{hba: {bus", "{hbb: {bus", 1, "q35: 'hbb' is not the name of an attachment"),
        ("name: hba, ", "", 1, "attach: 'dev' is there twice"),
        ("drivers: [toy]", 'kernel_names: ["("]', 3, "kernel_names.0: '(': expected letters"),
        ("drivers: [toy]", 'kernel_names: ["(a+)+b"]', 3, "expected letters"),
        ("drivers: [toy]", 'kernel_names: ["[a-z]+[a-z]+b"]', 3, "one of them with '+'"),
        ("drivers: [toy]", 'kernel_names: ["[z-a]"]', 3, "bad character range"),
        ("drivers: [toy]", "type: toy-pcj", 1, "type: 'toy-pcj': expected the type of an attachment"),
        ("drivers: [toy]", "within: hbb", 1, "within: 'hbb': expected the name of an attachment"),
        ("name: toy\n", "name: toy+fast\n", 1, "'toy+fast' is a variant: expected 'type'"),
        (
            "on: hba.0,",
            "on: hba.0, references: {bmc: dev},",
            1,
            "names 'dev': expected the name of an attachment before",
        ),
        ("drivers: [toy]", "decoder: virtoi", 1, "decoder: 'virtoi': expected one of virtio"),
        ("drivers: [toy]", "drift: [{fields: [a], compare: [n], reason: short}]", 3, "reason"),
        ("drivers: [toy]", "registers: [{fields: [], source: a book, registers: []}]", 3, "fields"),
    ],
)
def test_a_mistake_is_said_with_its_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    (tmp_path / "toy.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "toy.yaml")
    assert caught.value.path.endswith("toy.yaml")
    assert caught.value.line == line, str(caught.value)
    assert said in str(caught.value)


def test_a_device_that_attaches_nothing_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("name: toy\nabout: a device\n")
    with pytest.raises(ConfigError, match="expected 'attach'"):
        load_recipe(tmp_path / "toy.yaml")


def test_a_wrong_recipe_costs_itself_alone(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    recipes = load(tmp_path, GOOD.replace("size: 64K", "size: much"), "broken.yaml")
    assert list(recipes.devices) == ["toy"]
    assert (recipes.broken["broken"].line, list(recipes.broken)) == (10, ["broken"])


def test_the_second_of_one_name_is_left_out(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    recipes = load(tmp_path, GOOD, "zwei.yaml")
    assert list(recipes.devices) == ["toy"]
    assert "a second recipe is named 'toy'" in str(recipes.broken["zwei"])


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_recipes_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=rf"no device recipes in .*{name}"):
        load_recipes(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7", 7), ("1K", 1024), ("64M", 64 << 20), ("3G", 3 << 30), ("007", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1k", "1MB", " 1M", "1M\n", "٣", "1T"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        size_bytes(text)


SHIPPED = sorted(path.stem for path in data_dir("devices").glob("*.yaml"))


def test_the_shipped_recipes_load_and_the_platform_is_last() -> None:
    recipes = load_recipes()
    assert recipes.broken == {}
    assert sorted(recipes.devices) == SHIPPED
    assert list(recipes.devices)[-1] == "platform"
    defaults = [device.name for device in recipes.devices.values() if device.default]
    assert defaults == ["ahci", "virtio-blk", "virtio-net", "platform"]


def test_every_shipped_driver_is_on_board_of_the_shipped_guest() -> None:
    for architecture in ARCHITECTURES:
        recipe = guests.load_recipe("debian", architecture)
        wanted = {driver for device in load_recipes().devices.values() for driver in device.drivers}
        assert wanted <= set(recipe.drivers)


def test_instances_are_told_apart() -> None:
    assert (section_label("i8259", 0), section_label("i8259", 1)) == ("i8259", "i8259#1")


def made(name: str, type_: str, *, default: bool = True) -> Device:
    return Device(name=name, about="", attachments=(Attachment(name="dev", type=type_),), default=default)


KNOWN = {
    device.name: device
    for device in (
        made("blk", "virtio-blk-pci"),
        made("net", "virtio-net-pci"),
        made("e1000e", "e1000e", default=False),
        Device(name="platform", about="", rest=True),
    )
}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], ["blk", "net", "platform"]),
        (["platform", "blk"], ["blk", "platform"]),
        (["virtio-net-pci"], ["net"]),
        (["virtio-*"], ["blk", "net"]),
        (["e1000e", "e1000e"], ["e1000e"]),
        (["all"], ["blk", "net", "e1000e", "platform"]),
    ],
)
def test_devices_by_name_type_and_pattern(names: list[str], found: list[str]) -> None:
    assert [device.name for device in select_devices(KNOWN, names)] == found


@pytest.mark.parametrize(
    ("name", "near"), [("Blk", "blk, virtio-blk-pci"), ("e1000", "e1000e"), ("ahcy", "blk, virtio-blk-pci, net")]
)
def test_an_unknown_device_is_named_beside_those_near_it(name: str, near: str) -> None:
    """All of them where they are few."""
    with pytest.raises(UsageError, match=rf"unknown device '{name}' \(near it: {near}.*\): expected a name"):
        select_devices(KNOWN, [name])


def test_of_many_devices_only_the_near_ones_are_named() -> None:
    many = [f"device-{number}" for number in range(300)]
    assert len(str(unknown_device("device", many))) < 250
    assert "near" not in str(unknown_device("xyz", many))


def test_the_phases_that_a_device_reaches(tmp_path: Path) -> None:
    toy = load(tmp_path, GOOD).devices["toy"]
    phases = ["firmware", "kernel", "bound", "busy", "unbound", "rebound", "io-error"]
    assert [phase for phase in phases if toy.reaches(phase)] == ["firmware", "kernel", "bound", "io-error"]
    assert [phase for phase in phases if KNOWN["platform"].reaches(phase)] == phases[:-1]


def test_a_network_stays_inside() -> None:
    assert Netdev() == Netdev(type="user", restrict=True)
    with pytest.raises(ValueError, match="restrict"):
        Netdev.model_validate({"kind": "netdev", "restrict": False})


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("config[?]", "config[4]", True),
        ("config[?]", "config[44]", False),
        ("*config", "parent_obj.config", True),
        ("dev[*].cmd*", "dev[12].cmd_issue", True),
        ("*a**b*c", "xaxbxbxcxc", True),
        ("*ab*b", "ab", False),
        ("a.c", "abc", False),
    ],
)
def test_stars_and_question_marks_are_the_only_wildcards(pattern: str, path: str, fits: bool) -> None:
    assert Registers(fields=(pattern,), source="a book", registers=()).speaks_of("toy", path) is fits


def test_no_pattern_of_a_pack_takes_hours() -> None:
    """In another process: a pattern that does hangs the whole interpreter."""
    code = (
        "from harness.devices.saved import Registers\n"
        "slow = Registers(fields=('*a' * 40 + 'b',), source='a book', registers=())\n"
        "print(slow.speaks_of('toy', 'a' * 4000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
