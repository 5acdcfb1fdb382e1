# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes, a guest from files given by hand, and what a host without apt is told."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from elf_files import PVH, bzimage, module_file

from harness.arch import ARCHITECTURES
from harness.errors import ConfigError, DeadlineError, HostError, MissingError, UsageError
from harness.guests.build import build_guest
from harness.guests.recipe import Recipe, load_recipe
from harness.tools.apt import AptRoot, Mirror
from harness.tools.program import run_tool

BY_HAND = """
name: mine
kernel: {vmlinuz: vmlinuz, modules: mods}
busybox: {path: busybox}
drivers: [disk]
memory_mib: 64
cmdline: [quiet]
"""


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods" / "disk.ko").write_bytes(module_file(b"depends=\0"))
    (tmp_path / "vmlinuz").write_bytes(bzimage(lzma.compress(PVH)))
    (tmp_path / "busybox").write_bytes(b"BB")
    (tmp_path / "init.sh").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "mine.yaml").write_text(BY_HAND)
    return load_recipe(tmp_path / "mine.yaml")


def test_the_shipped_recipe_is_sound() -> None:
    recipe = load_recipe("debian")
    assert recipe.suite == "bookworm"
    assert {"ahci", "sd_mod", "virtio_pci", "virtio_blk", "virtio_net"} <= set(recipe.drivers)
    assert recipe.path(recipe.init).is_file()


def test_a_wide_guest_has_more_drivers_and_is_no_part_of_the_usual_ones_hash(by_hand: Recipe, tmp_path: Path) -> None:
    assert by_hand.widened() is by_hand
    wide = "wide: {drivers: [disk, net], options: {net: slow=0}, memory_mib: 128}\n"
    (tmp_path / "mine.yaml").write_text(BY_HAND + wide)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.digest() == by_hand.digest()
    widened = recipe.widened()
    assert (widened.drivers, widened.options, widened.memory_mib) == (("disk", "net"), {"net": "slow=0"}, 128)
    assert widened.path(widened.init) == recipe.path(recipe.init)
    assert widened.digest() != recipe.digest()


def test_the_library_of_the_shell_is_part_of_the_guest(by_hand: Recipe, tmp_path: Path) -> None:
    before = by_hand.digest()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "b.sh").write_bytes(b"second\n")
    (tmp_path / "lib" / "a.sh").write_bytes(b"first\n")
    assert by_hand.digest() != before
    assert b"first\nsecond\n" in build_guest(by_hand).initramfs.read_bytes()


def test_the_parameters_of_the_shipped_wide_guests_are_of_drivers_on_board() -> None:
    for architecture in ARCHITECTURES:
        recipe = load_recipe("debian", architecture).widened()
        assert set(recipe.options) <= set(recipe.drivers)
        assert recipe.memory_mib <= 256


def test_words_for_one_family_of_machines_go_into_the_guest(by_hand: Recipe, tmp_path: Path) -> None:
    wide = "wide: {drivers: [], memory_mib: 128, machines: {pc: [acpi=noirq]}}\n"
    (tmp_path / "mine.yaml").write_text(f"{BY_HAND}machines: {{pc: [a], q35: [b]}}\n{wide}")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert build_guest(recipe).machines == {"pc": ("a",), "q35": ("b",)}
    assert build_guest(recipe.widened()).machines == {"pc": ("acpi=noirq",), "q35": ("b",)}


def test_unknown_guests_and_broken_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"known: debian-amd64\.yaml, debian-arm64\.yaml"):
        load_recipe("plan9")
    (tmp_path / "a.yaml").write_text(BY_HAND.replace("vmlinuz: vmlinuz", "vmlinux: vmlinuz"))
    with pytest.raises(ConfigError, match="vmlinuz"):
        load_recipe(tmp_path / "a.yaml")


def test_a_guest_by_hand_needs_no_apt(by_hand: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    guest = build_guest(by_hand)
    assert guest.kernel.read_bytes() == PVH
    assert (guest.pvh, guest.cmdline, guest.memory_mib) == (True, "console=ttyS0 quiet", 64)
    assert guest.identity["drivers"] == {"disk": ["disk"]}
    assert build_guest(by_hand) == guest


def test_a_changed_init_or_a_damaged_cache_builds_anew(by_hand: Recipe) -> None:
    first = build_guest(by_hand)
    by_hand.path(by_hand.init).write_bytes(b"#!/bin/sh\nexit\n")
    second = build_guest(by_hand)
    assert second.initramfs != first.initramfs
    assert b"exit" in second.initramfs.read_bytes()
    second.initramfs.write_bytes(b"cut")
    assert b"exit" in build_guest(by_hand).initramfs.read_bytes()


def test_a_missing_file_is_named(by_hand: Recipe) -> None:
    by_hand.path(Path("busybox")).unlink()
    with pytest.raises(UsageError, match="busybox"):
        build_guest(by_hand)


def test_a_host_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingError, match=r"apt-get.*kernel: \{vmlinuz: PATH, modules: PATH\}"):
        AptRoot("bookworm").candidate("busybox-static")


def test_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_MIRROR", "http://mirror/debian/")
    monkeypatch.delenv("POSTLOAD_SECURITY_MIRROR", raising=False)
    assert Mirror.from_environment() == Mirror(main="http://mirror/debian", security="http://mirror/debian-security")
    monkeypatch.setenv("POSTLOAD_SECURITY_MIRROR", "")
    assert Mirror.from_environment().security is None


@pytest.mark.parametrize("name", ["-o", "a b", "../x", ""])
def test_package_names_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path))
    with pytest.raises(HostError, match="not a package name"):
        AptRoot("bookworm").candidate(name)


def test_tools_end_and_say_why() -> None:
    assert run_tool(["cat"], stdin=json.dumps([1]).encode(), timeout_s=20) == b"[1]"
    with pytest.raises(HostError, match="status 3: first; last"):
        run_tool(["sh", "-c", "echo first >&2; echo last >&2; exit 3"], timeout_s=20)
    script = "echo cause; echo last; echo last >&2; exit 3"
    with pytest.raises(HostError, match=r"status 3: cause; last$"):
        run_tool(["sh", "-c", script], timeout_s=20, reasons=lambda out: out.split())
    with pytest.raises(DeadlineError, match="sleep"):
        run_tool(["sleep", "30"], timeout_s=0.2)
