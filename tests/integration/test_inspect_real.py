# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams that plain QEMUs write in all of their ways, as ``postload inspect`` shows them. No guest runs."""

from __future__ import annotations

import gzip
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from harness.guests.images import empty_qcow2
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm, migrate_to_socket

pytestmark = pytest.mark.integration

SAVE_TIMEOUT_S = 180.0
Run = Callable[..., CompletedProcess[str]]


def machine(program: str | Path, name: str, *more: Option, **props: str) -> Vm:
    """A stopped machine with a few devices; the default network of ``-nodefaults`` is none."""
    options = (
        Option(name="machine", first=name, props=props), Option(name="accel", first="tcg"),
        Option(name="m", first="32"), Option(name="nodefaults"), Option(name="display", first="none"),
        Option(name="S"), *more,
    )  # fmt: skip
    return Vm(CommandLine(binary=str(program), options=options), workdir=new_workdir())


def networks(*names: str) -> tuple[Option, ...]:
    return tuple(
        option
        for name in names
        for option in (
            Option(name="netdev", first="user", props={"id": name}),
            Option(name="device", first="e1000", props={"netdev": name}),
        )
    )


def saved(vm: Vm, path: Path) -> Path:
    with vm:
        migrate_to_socket(vm, vm.workdir / "sock", path, timeout_s=SAVE_TIMEOUT_S)
    return path


@pytest.fixture
def inspected(postload: Run) -> Callable[[Path], dict[str, Any]]:
    def inspect(path: Path) -> dict[str, Any]:
        done = postload("inspect", path, "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        names = [section["idstr"] for section in document["sections"]]
        assert {"timer", "cpu", "0000:00:00.0/I440FX", "acpi_build", "globalstate"} <= set(names)
        return document

    return inspect


def test_two_user_networks(qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]) -> None:
    document = inspected(saved(machine(qemu_7_2.path, "pc", *networks("a", "b")), tmp_path / "two"))
    slirps = [section for section in document["sections"] if section["idstr"] == "slirp"]
    assert [(section["instance_id"], bool(section["fields"])) for section in slirps] == [(0, True)] * 2
    assert document["remarks"] == []


def test_without_vmdesc(qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]) -> None:
    described = inspected(saved(machine(qemu_7_2.path, "pc", *networks("a")), tmp_path / "with"))
    bare = inspected(
        saved(machine(qemu_7_2.path, "pc", *networks("a"), **{"suppress-vmdesc": "on"}), tmp_path / "without")
    )
    assert [(s["idstr"], s["type"]) for s in bare["sections"]] == [
        (s["idstr"], s["type"]) for s in described["sections"]
    ]
    # RAM comes in other pieces each time, the device state is as long as it was
    assert [s["size"] for s in bare["sections"][1:]] == [s["size"] for s in described["sections"][1:]]
    assert "sections were found by footers" in bare["remarks"][0]


def test_a_machine_type_before_2_4(
    qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]], postload: Run
) -> None:
    old = inspected(saved(machine(qemu_7_2.path, "pc-i440fx-2.2", *networks("a")), tmp_path / "old"))
    described = machine(qemu_7_2.path, "pc-i440fx-2.2", *networks("a"), **{"suppress-vmdesc": "off"})
    told = inspected(saved(described, tmp_path / "described"))
    assert [(s["idstr"], s["size"]) for s in old["sections"][1:]] == [
        (s["idstr"], s["size"]) for s in told["sections"][1:]
    ]
    assert (old["machine"], len(old["remarks"])) == ("", 2)
    done = postload("inspect", tmp_path / "old", "--like", tmp_path / "described", "--section", "e1000", "--json")
    (named,) = json.loads(done.stdout)["sections"]
    (wanted,) = [section for section in told["sections"] if section["idstr"] == named["idstr"]]
    assert [f["name"] for f in named["fields"]] == [f["name"] for f in wanted["fields"]] != []


def test_saved_devices_state(qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]) -> None:
    path = tmp_path / "xen"
    with machine(qemu_7_2.path, "pc", *networks("a", "b")) as vm:
        vm.qmp("xen-save-devices-state", filename=str(path), live=False)
    document = inspected(path)
    assert [s["idstr"] for s in document["sections"]].count("slirp") == 2
    assert (document["machine"], len(document["remarks"])) == ("", 2)


def test_savevm_and_its_image(qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]) -> None:
    image, path = tmp_path / "image", tmp_path / "state"
    image.write_bytes(empty_qcow2(1 << 20))
    disk = Option(name="drive", props={"file": str(image), "if": "virtio", "format": "qcow2"})
    with machine(qemu_7_2.path, "pc", disk) as vm:
        command: dict[str, Any] = {"command-line": "savevm s"}
        assert vm.qmp("human-monitor-command", **command) == ""
    path.write_bytes(snapshot_state(image.read_bytes()))
    document = inspected(path)
    assert document["own_vmdesc"]
    assert document["tail_bytes"] == path.stat().st_size - document["size_bytes"] > 0
    assert "no part of it, all zeros" in document["remarks"][0]
    done = inspected(image)
    assert (done["container"], done["snapshot"]) == ("a qcow2 disk image of version 3 with 1 internal snapshot", "s")
    assert done["sections"] == document["sections"]


def snapshot_state(image: bytes) -> bytes:
    """What savevm wrote, as whole clusters: it lies behind the end of the disk (``docs/interop/qcow2.rst``)."""
    cluster = 1 << int(struct.unpack_from(">I", image, 20)[0])
    (disk_bytes,) = struct.unpack_from(">Q", image, 24)
    (snapshot,) = struct.unpack_from(">Q", image, 64)
    l1_at, l1_entries = struct.unpack_from(">QI", image, snapshot)
    (state_bytes,) = struct.unpack_from(">Q", image, snapshot + 40)
    mask, state = 0x00FFFFFFFFFFFE00, bytearray()
    for number in range(-(-disk_bytes // (cluster * cluster // 8)), l1_entries):
        table = struct.unpack_from(">Q", image, l1_at + 8 * number)[0] & mask
        for entry in range(0, cluster, 8):
            at = struct.unpack_from(">Q", image, table + entry)[0] & mask if table else 0
            state += image[at : at + cluster] if at else bytes(cluster)
    return bytes(state[: -(-state_bytes // cluster) * cluster])


def test_mapped_ram(
    installed_qemu: Callable[[str], Path], tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]
) -> None:
    path = tmp_path / "mapped"
    with machine(installed_qemu("10.0"), "pc", *networks("a", "b")) as vm:
        capability = {"capability": "mapped-ram", "state": True}
        vm.qmp("migrate-set-capabilities", capabilities=[capability])
        vm.qmp("migrate", uri=f"file:{path}")
        deadline = vm.deadline(SAVE_TIMEOUT_S)
        while vm.qmp("query-migrate").get("status") != "completed":
            assert deadline.left_s > 0
            time.sleep(0.02)
    document = inspected(path)
    assert document["capabilities"] == ["mapped-ram"]
    ram = next(section for section in document["sections"] if section["idstr"] == "ram")
    assert 0 < ram["pages"] < (32 + 17) << 8
    assert document["remarks"] == []


def test_dirty_bitmaps_are_one_line(
    qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]], postload: Run
) -> None:
    """A bitmap is sent in pieces of 4 MiB of its disk, and each was a line of its own."""
    options = (
        Option(name="blockdev", first="null-co", props={"node-name": "disk", "size": 1 << 28, "read-zeroes": True}),
        Option(name="device", first="virtio-blk-pci", props={"drive": "disk"}),
    )
    with machine(qemu_7_2.path, "pc", *options) as vm:
        vm.qmp("block-dirty-bitmap-add", node="disk", name="backup-of-monday", granularity=512)
        vm.qmp("migrate-set-capabilities", capabilities=[{"capability": "dirty-bitmaps", "state": True}])
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        path = saved(vm, tmp_path / "bitmaps")
    document = inspected(path)
    (section,) = [section for section in document["sections"] if section["idstr"] == "dirty-bitmap"]
    assert section["parts"] > 60
    done = postload("inspect", path)
    assert len(done.stdout.splitlines()) < 100
    assert "backup-of-monday" in done.stdout


def test_a_compressed_stream_is_read(
    qemu_7_2: Any, tmp_path: Path, inspected: Callable[[Path], dict[str, Any]]
) -> None:
    path = saved(machine(qemu_7_2.path, "pc"), tmp_path / "plain")
    packed = tmp_path / "stream.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert inspected(packed)["container"] == "compressed by gzip"
    assert inspected(packed)["sections"] == inspected(path)["sections"]


TWO_NICS = """\
name: two-nics
about: two network devices, each with a user network of its own
attach:
  - {type: e1000, name: first, backends: {netdev: one}}
  - {type: e1000, name: second, backends: {netdev: two}}
backends:
  one: {kind: netdev}
  two: {kind: netdev}
drivers: []
"""


def test_a_device_with_two_user_networks_is_recorded_and_judged(qemu_7_2: Any, tmp_path: Path, postload: Run) -> None:
    recipes, out = tmp_path / "recipes", tmp_path / "out"
    recipes.mkdir()
    (recipes / "two-nics.yaml").write_text(TWO_NICS)
    words = ["--qemu", qemu_7_2.path, "--machine", "pc", "--profiles", recipes, "--device", "two-nics"]
    done = postload("matrix", *words, "--phase", "firmware", "--out", out, timeout_s=300.0)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((out / "matrix.json").read_text())["cells"]
    lanes = {cell["key"]["lane"]: cell["outcome"]["verdict"] for cell in cells}
    assert lanes == dict.fromkeys(("same", "back-to-back", "drift", "leak"), "ok")
