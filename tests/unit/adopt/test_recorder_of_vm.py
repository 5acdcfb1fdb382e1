# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU a VM is adopted with: the host's own, else an installed one that has its machine type, else what to
install."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.adopt import recorder as module
from harness.adopt.configuration import Configuration, SaidOption
from harness.adopt.recorder import recorder_of, runs_under_kvm
from harness.arch import ARCHITECTURES
from harness.errors import MissingError, UsageError
from harness.qemu.binary import MachineType, QemuBinary
from harness.qemu.versions import first_with


def build(version: str, *machines: str, target: str = ARCHITECTURES[0].name) -> QemuBinary:
    return QemuBinary(
        path=f"/{version}",
        version=version,
        build="",
        target=target,
        sha256=version,
        machines=tuple(MachineType(name=name, alias=None, deprecated=False) for name in machines),
        devices=frozenset(),
        capabilities=frozenset(),
    )


class Host:
    """A host with its own QEMU and others that are installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, own: QemuBinary | None, *installed: QemuBinary) -> None:
        self.asked: list[str] = []
        self._builds = {Path(each.path): each for each in (*([own] if own else []), *installed)}
        entries = [SimpleNamespace(version=b.version, launcher=Path(b.path), whole=True) for b in installed]
        monkeypatch.setattr(module, "entries", lambda: entries)
        monkeypatch.setattr(module, "probe_binary", self._probe)
        monkeypatch.setattr(module, "host_binary", lambda _: self._own(own))

    def _own(self, own: QemuBinary | None) -> Path:
        if own is None:
            raise MissingError("none")
        return Path(own.path)

    def _probe(self, path: Path) -> QemuBinary:
        self.asked.append(self._builds[path].version)
        return self._builds[path]


def said(machine: str) -> Any:
    return Configuration(options=(SaidOption(name="machine", values={"type": machine}),), source="web.args")


OWN = build("7.2.22", "pc-q35-7.2")
OTHERS = (build("11.1.3", "pc-q35-7.2", "pc-q35-9.2"), build("10.0.13", "pc-q35-9.2"), build("9.2", target="aarch64"))


def test_the_hosts_own_is_taken_and_no_other_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, OWN, *OTHERS)
    assert recorder_of(said("pc-q35-7.2"), "pc-q35-7.2") is OWN
    assert host.asked == ["7.2.22"]


def test_where_the_hosts_own_lacks_the_machine_type_the_oldest_that_has_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Host(monkeypatch, OWN, *OTHERS)
    assert recorder_of(said("pc-q35-9.2"), "pc-q35-9.2").version == "10.0.13"
    assert recorder_of(said("pc-q35-9.2+pve1"), "pc-q35-9.2+pve1").version == "10.0.13"


def test_where_none_has_it_the_error_says_what_to_install_on_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, OWN, build("5.2.0"))
    with pytest.raises(UsageError, match=r"postload qemu install 10\.0\b") as error:
        recorder_of(said("pc-q35-9.2"), "pc-q35-9.2")
    assert "7.2.22, 5.2.0" in str(error.value)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("machine", "architecture", "name"),
    [("pc-q35-9.2", "x86_64", "10.0"), ("pc-i440fx-10.0", "x86_64", "10.0"), ("pc-q35-99.0", "x86_64", ""),
     ("pc-i440fx-xenial", "x86_64", ""), ("virt-9.0", "aarch64", "10.0-aarch64"), ("", "x86_64", "")],
)  # fmt: skip
def test_the_first_that_is_new_enough_is_offered(machine: str, architecture: str, name: str) -> None:
    assert first_with(machine, architecture) == name


@pytest.mark.parametrize(
    ("name", "accel", "found"),
    [("machine", "kvm", True), ("accel", "kvm", True), ("machine", "kvm:tcg", True), ("machine", "tcg:kvm", False),
     ("accel", "tcg", False), ("machine", None, False), ("cpu", "kvm", False)],
)  # fmt: skip
def test_a_vm_runs_under_kvm_where_that_is_its_first_choice(name: str, accel: str | None, found: bool) -> None:
    option = SaidOption(name=name, values={"accel": accel} if accel else {})
    assert runs_under_kvm(Configuration(options=(option,), source="x")) is found
