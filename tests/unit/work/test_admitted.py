# SPDX-License-Identifier: GPL-2.0-or-later
"""A task from a store asks for nothing of a host but what the host has itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guests.foreign import check_override
from harness.lanes.lane import Request
from harness.packs.pack import StatePack
from harness.qemu.cmdline import Option
from harness.qemu.listed import Listing, classified
from harness.results.key import CellKey
from harness.work import admitted
from harness.work.admitted import check_against, check_task
from harness.work.task import QemuFile, RecordingFile, Task

TASK = Task(
    recording=RecordingFile(path="", content="ab" * 32),
    loader=QemuFile(path="", sha256="cd" * 32),
    request=Request(lane="same", machine="pc-i440fx-7.2", phases=("bound",), devices=("ahci",), loads=7),
    answers=(CellKey.parse("7.2/pc-i440fx-7.2/ahci/bound/same"),),
)
LISTING = Listing(
    devices={
        "virtio-net-pci": {
            "mrg_rxbuf": classified("bool", ""),
            "romfile": classified("str", ""),
            "mac": classified("str", ""),
            "rx_queue_size": classified("uint16", ""),
        }
    },
    machine={},
)


def setting(key: str, value: str = "off") -> tuple[Option, ...]:
    return (Option(name="global", props={key: value}),)


def test_a_task_of_hashes_alone_is_taken() -> None:
    check_task(TASK)
    check_task(replace(TASK, overrides=setting("virtio-net-pci.mrg_rxbuf"), budget_s=2.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loader": QemuFile(path="/bin/sh", sha256="cd" * 32)}, "names a file"),
        ({"recording": RecordingFile(path="/etc", content="ab" * 32)}, "names a file"),
        ({"loader": QemuFile(path="", sha256="../../bin/sh")}, "expected a SHA-256"),
        ({"recording": RecordingFile(path="", content="../x")}, "expected a SHA-256"),
        ({"request": replace(TASK.request, lane="shell")}, "lane 'shell'"),
        ({"request": replace(TASK.request, phases=("../bound",))}, "phase '../bound'"),
        ({"request": replace(TASK.request, loads=10**12)}, "loads"),
        ({"request": replace(TASK.request, loads=-1)}, "loads"),
        ({"request": replace(TASK.request, machine="pc-q35-7.2")}, "cell: of machine"),
        ({"run_s": 1e9}, "run_s"),
        ({"run_s": float("nan")}, "run_s"),
        ({"budget_s": -1.0}, "budget_s"),
        ({"answers": ()}, "answers: none"),
        ({"answers": (CellKey.parse("7.2/pc-i440fx-7.2/other/bound/same"),)}, "cell 'other'"),
        ({"overrides": (Option(name="device", first="vfio-pci"),)}, "expected -global alone"),
        ({"overrides": (Option(name="global", first="x", props={"a.b": "c"}),)}, "expected -global alone"),
        ({"overrides": (Option(name="global", props={"a.b": "c", "d.e": "f"}),)}, "expected -global alone"),
        ({"overrides": (Option(name="global", props={"driver": "x"}),)}, "expected -global alone"),
        ({"overrides": (Option(name="global", props={"a.b,c.d": "e"}),)}, "expected -global alone"),
    ],
    ids=str,
)
def test_a_forged_task_is_refused(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"not a task for this host: .*{said}"):
        check_task(replace(TASK, **change))


@pytest.fixture
def pack(make_pack: Callable[..., Path]) -> StatePack:
    return StatePack(make_pack())


def test_a_task_is_held_against_its_recording(pack: StatePack) -> None:
    with pack:
        check_against(TASK, pack, "/nowhere")
        for request, said in (
            (replace(TASK.request, machine="pc-q35-7.2"), "machine"),
            (replace(TASK.request, phases=("rebooted",)), "phase 'rebooted'"),
            (replace(TASK.request, devices=("e1000",)), "device 'e1000'"),
        ):
            with pytest.raises(UsageError, match=said):
                check_against(replace(TASK, request=request), pack, "/nowhere")


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("virtio-net-pci.mrg_rxbuf", "off", True),
        ("virtio-net-pci.rx_queue_size", "256", True),
        ("virtio-net-pci.mac", "52:54:00:12:34:56", True),
        ("virtio-net-pci.mrg_rxbuf", "/etc/passwd", False),
        ("virtio-net-pci.romfile", "/etc/passwd", False),
        ("virtio-net-pci.none", "off", False),
        ("vfio-pci.host", "0000:01:00.0", False),
        ("e1000.mac", "x", False),
    ],
)
def test_a_property_is_held_against_the_qemu_that_loads(
    pack: StatePack, key: str, value: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitted, "listing", lambda binary, machine, types: LISTING)
    task = replace(TASK, overrides=setting(key, value))
    check_task(task)
    with pack:
        if taken:
            check_against(task, pack, "/nowhere")
            return
        with pytest.raises(UsageError, match=r"not a task for this host: global"):
            check_against(task, pack, "/nowhere")


def test_what_stands_on_the_host_is_refused_by_its_name() -> None:
    with pytest.raises(UsageError, match="does not stand on the host's own"):
        check_override("virtio-net-pci", "hostaddr", "x", LISTING, "/nowhere")
