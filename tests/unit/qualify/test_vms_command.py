# SPDX-License-Identifier: GPL-2.0-or-later
"""What is typed wrong for VMs is told before anything is done; which QEMU records a VM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from harness.adopt.configuration import Configuration, SaidOption
from harness.adopt.files import FoundVm
from harness.adopt.recorder import architecture_of_vm
from harness.arch import ARCHITECTURES
from harness.cli import cli
from harness.commands.fleet import wanted_loads
from harness.errors import UsageError
from harness.guests.origin import LeftOut, VmOrigin, Without
from harness.qemu.binary import MachineType, QemuBinary
from harness.qualify import vms as module
from harness.qualify.fleet import Obstacle
from harness.qualify.vms import Builds, look, unjudged_of

LINE = "qemu-system-x86_64 -machine pc-q35-7.2\n"


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        CliRunner().invoke(cli, ["qualify", *words], catch_exceptions=False, standalone_mode=False)
    return str(error.value)


def test_a_pack_and_a_vm_are_not_named_together(tmp_path: Path) -> None:
    assert "PACK" in refused("some.pack", "--domain", str(tmp_path / "web.xml"), "--to", "10.0")


def test_vms_go_to_one_qemu_and_come_from_one(tmp_path: Path) -> None:
    path = tmp_path / "web.args"
    path.write_text(LINE)
    assert "one --to" in refused("--command-line", str(path))
    assert "one --to" in refused("--command-line", str(path), "--to", "10.0,11.1")
    assert "one --from" in refused("--command-line", str(path), "--to", "10.0", "--from", "5.2,7.2")


@pytest.mark.parametrize("option", [("--machine", "q35"), ("--device", "ahci"), ("--both-ways",), ("--cpus", "2")])
def test_what_a_vm_has_decided_is_not_asked_for(option: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "web.args"
    path.write_text(LINE)
    assert option[0] in refused("--command-line", str(path), "--to", "10.0", *option)


@pytest.mark.parametrize("words", [(), ("some.pack",)])
def test_only_of_vms_something_is_known_before_a_load(words: tuple[str, ...]) -> None:
    assert "--static" in refused("--static", *words)


def test_a_folder_without_a_vm_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("nothing\n")
    assert "no VM" in refused("--domains", str(tmp_path), "--to", "10.0")


@pytest.mark.parametrize(
    ("program", "name"),
    [("", "x86_64"), ("/usr/bin/kvm", "x86_64"), ("/usr/bin/qemu-system-i386", "x86_64"),
     ("/usr/bin/qemu-system-aarch64", "aarch64"), ("qemu-system-x86_64", "x86_64")],
)  # fmt: skip
def test_the_architecture_is_that_of_the_program(program: str, name: str) -> None:
    assert architecture_of_vm(Configuration(options=(), source="x", binary=program)).name == name


def test_without_a_program_the_machine_type_says_the_architecture() -> None:
    said = SaidOption(name="machine", values={"type": "virt-9.0"})
    assert architecture_of_vm(Configuration(options=(said,), source="x")).name == "aarch64"


def test_an_architecture_that_is_not_known_is_named() -> None:
    with pytest.raises(UsageError, match="ppc64"):
        architecture_of_vm(Configuration(options=(), source="x", binary="/usr/bin/qemu-system-ppc64"))


class Here(Builds):
    """Builds that a test has made."""

    def __init__(self, loader: QemuBinary, *recorders: QemuBinary) -> None:
        self._loader, self._recorders = loader, list(recorders)

    def loader(self, architecture: Any) -> QemuBinary:
        return self._loader

    def recorders(self, architecture: Any) -> list[QemuBinary]:
        return self._recorders

    def words(self, binary: QemuBinary) -> Any:
        return binary


def build(version: str, *machines: str) -> QemuBinary:
    return QemuBinary(
        path=f"/{version}",
        version=version,
        build="",
        target=ARCHITECTURES[0].name,
        sha256=version,
        machines=tuple(MachineType(name=name, alias=None, deprecated=False) for name in machines),
        devices=frozenset(),
        capabilities=frozenset(),
    )


OLD, NEW = build("7.2.22", "pc-q35-7.2"), build("10.0.13", "pc-q35-7.2", "pc-q35-10.0")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Versions of the recorders that were asked, and the machine types."""
    asked: list[tuple[str, str]] = []

    def known_to(binary: QemuBinary, _: Configuration, machine: str) -> Any:
        asked.append((binary.version, machine))
        raise UsageError("as far as this test goes")

    monkeypatch.setattr(module, "known_to", known_to)
    monkeypatch.setattr(module, "foretell", lambda *_: ())
    return asked


def vm(machine: str) -> FoundVm:
    said = Configuration(options=(SaidOption(name="machine", values={"type": machine}),), source="web.args")
    return FoundVm(name="web", source="web.args", configuration=said)


def test_the_hosts_own_qemu_comes_first_though_it_is_installed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = (build("5.2.0"), replace(OLD, path="/installed/7.2.22"))
    monkeypatch.setattr(module, "find_binary", Path)
    monkeypatch.setattr(module, "qemus_here", lambda _: iter((OLD, *installed)))
    assert Builds(None, "10.0").recorders(ARCHITECTURES[0])[0] is OLD


def test_a_vm_is_recorded_by_the_first_qemu_that_has_its_machine_type(found: list[tuple[str, str]]) -> None:
    later = replace(NEW, version="9.2.0", sha256="9.2.0")
    for machine in ("pc-q35-7.2", "pc-q35-10.0"):
        look(vm(machine), Here(build("11.1.3", "pc-q35-7.2", "pc-q35-10.0"), OLD, later))
    assert found == [("7.2.22", "pc-q35-7.2"), ("9.2.0", "pc-q35-10.0")]


def test_the_machine_type_of_a_build_of_proxmox_is_that_of_qemu(found: list[tuple[str, str]]) -> None:
    look(vm("pc-q35-7.2+pve1"), Here(NEW, OLD))
    assert found == [("7.2.22", "pc-q35-7.2")]


def test_a_vm_that_no_qemu_here_can_make_is_not_tried(found: list[tuple[str, str]]) -> None:
    assert look(vm("pc-i440fx-xenial"), Here(NEW, OLD)).vm.obstacle is Obstacle.NO_RECORDER
    assert look(vm("pc-q35-10.0"), Here(NEW, OLD, NEW)).vm.obstacle is Obstacle.SAME_QEMU
    assert found == []


def test_a_vm_that_cannot_be_read_says_why() -> None:
    known = look(FoundVm(name="web", source="web.xml", error="web.xml:3: no domain"), Here(NEW, OLD))
    assert (known.vm.obstacle, known.vm.said) == (Obstacle.UNREADABLE, "web.xml:3: no domain")


def test_an_element_that_is_not_known_is_a_device_without_an_answer() -> None:
    parts = ("devices/flux", "devices/input@mood", "devices/disk/mood", "memtune")
    left_out = [LeftOut(why=Without.UNREAD, type=part, names=("7",)) for part in parts]
    left_out += [LeftOut(why=Without.SECTION, type="usb-bt"), LeftOut(why=Without.HOST, type="vfio-pci", id="gpu")]
    found = unjudged_of(VmOrigin(left_out=tuple(left_out)))
    assert [(one.device, one.type) for one in found] == [("devices/flux", "devices/flux"), ("gpu", "vfio-pci")]


def test_a_new_qemu_of_aarch64_alone_is_named_by_its_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_of_x86_64(*_: object) -> QemuBinary:
        raise UsageError("runs no guests of x86_64")

    monkeypatch.setattr(module, "find_binary", Path)
    monkeypatch.setattr(Builds, "loader", none_of_x86_64)
    loader: Any = object()
    known: Any = SimpleNamespace(guest=SimpleNamespace(loader=loader))
    assert module.any_loader(Builds(None, "10.0-aarch64"), [known]) is loader


def test_a_new_qemu_that_no_vm_was_tried_with_is_named_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = replace(build("10.0"), target="aarch64")
    monkeypatch.setattr(module, "find_binary", Path)
    monkeypatch.setattr(module, "probe_binary", lambda _: loader)
    untried: Any = SimpleNamespace(guest=None)
    assert module.any_loader(Builds(None, "10.0-aarch64"), [untried]) is loader


@pytest.mark.parametrize(
    ("uses", "loader", "named", "checkpoints", "migrations"),
    [
        ((), NEW, False, False, ["plain"]),
        ((), NEW, True, True, ["plain"]),
        ((), replace(OLD, sha256="patched"), False, True, ["plain"]),
        (("colo",), NEW, False, True, []),
        (("migration", "postcopy", "colo"), NEW, False, True, ["plain", "postcopy"]),
    ],
)
def test_of_many_vms_only_what_decides_is_loaded(
    uses: tuple[str, ...], loader: QemuBinary, named: bool, checkpoints: bool, migrations: list[str]
) -> None:
    wanted = wanted_loads(uses, OLD, loader, schedule_named=named)
    assert wanted == {"checkpoints": checkpoints, "migrations": migrations}
