# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU lists is asked once and kept; a type that ends it is none that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cache import CACHE_VARIABLE
from harness.errors import QemuError
from harness.qemu import listed
from harness.qemu.listed import Listed, listing
from harness.qemu.monitor import CommandRefused

ANSWERS: dict[str, Any] = {
    "virtio-blk-pci": [
        {"name": "num-queues", "type": "uint16", "description": "(default: 65535)"},
        {"name": "werror", "type": "BlockdevOnError", "description": "Error handling policy (report/ignore)"},
        {"name": "serial", "type": "str"},
    ],
    "ib700": [],
    "pc-q35-7.2-machine": [{"name": "sata", "type": "bool", "description": "Enable/disable Serial ATA bus"}],
}


class PaperVm:
    """Has some types, and dies of one."""

    started = 0

    def __init__(self, _: str) -> None:
        PaperVm.started += 1
        self.dead = False

    def qmp(self, command: str, typename: str) -> Any:
        assert command == ("qom-list-properties" if typename.endswith("-machine") else "device-list-properties")
        if typename == "deadly":
            self.dead = True
            raise QemuError("it is gone")
        if typename not in ANSWERS:
            raise CommandRefused(command, "no such type")
        return ANSWERS[typename]

    def ended(self, _: float) -> str | None:
        return "SIGABRT" if self.dead else None

    def __enter__(self) -> PaperVm:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(listed, "_bare", PaperVm)
    monkeypatch.setattr(PaperVm, "started", 0)
    (tmp_path / "qemu").write_text("a program")
    listed._listing.cache_clear()
    return str(tmp_path / "qemu")


def test_properties_come_with_their_kinds(qemu: str) -> None:
    found = listing(qemu, "pc-q35-7.2", ["virtio-blk-pci", "ib700", "nothing"])
    assert found.devices == {
        "ib700": {},
        "virtio-blk-pci": {
            "num-queues": Listed(type="uint16", kind="number"),
            "werror": Listed(type="BlockdevOnError", kind="enumeration", words=("report", "ignore")),
            "serial": Listed(type="str", kind="string"),
        },
    }
    assert found.machine == {"sata": Listed(type="bool", kind="boolean")}


def test_a_type_that_ends_qemu_is_none_that_it_has(qemu: str) -> None:
    found = listing(qemu, "pc-q35-7.2", ["deadly", "ib700", "virtio-blk-pci"])
    assert sorted(found.devices) == ["ib700", "virtio-blk-pci"]


def test_it_is_asked_once(qemu: str) -> None:
    listing(qemu, "pc-q35-7.2", ["ib700"])
    started = PaperVm.started
    listed._listing.cache_clear()
    assert listing(qemu, "pc-q35-7.2", ["ib700"]).devices == {"ib700": {}}
    assert PaperVm.started == started


def test_a_qemu_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match="nowhere: No such file"):
        listing(str(tmp_path / "nowhere"), "pc-q35-7.2", [])
