# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload record``, ``inspect``, ``replay`` and ``doctor``, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.schemas import shipped

Run = Callable[..., subprocess.CompletedProcess[str]]

FIELD = {
    "type": "object",
    "required": ["name", "path", "offset", "size", "type", "value", "fields"],
    "properties": {"fields": {"type": "array", "items": {"$ref": "#/$defs/field"}}},
}
INSPECTION = {
    "$defs": {"field": FIELD},
    "type": "object",
    "required": ["schema", "sections"],
    "properties": {
        "schema": {"const": "postload.inspect/1"},
        "sections": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["idstr", "instance_id", "version_id", "type", "offset", "size", "fields"],
                "properties": {
                    "idstr": {"type": "string", "minLength": 1},
                    "instance_id": {"type": "integer", "minimum": 0},
                    "version_id": {"type": "integer", "minimum": 0},
                    "type": {"enum": ["parts", "full"]},
                    "offset": {"type": "integer", "minimum": 0},
                    "size": {"type": "integer", "minimum": 1},
                    "fields": {"type": "array", "items": {"$ref": "#/$defs/field"}},
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def small_pack(postload: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device, up to the bound phase."""
    path = tmp_path_factory.mktemp("record") / "pack"
    words = ["--machine", "pc", "--device", "virtio-blk,platform", "--phase", "firmware,bound"]
    done = postload("record", *words, "--out", path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, INSPECTION)
    assert document["phases"] == ["firmware", "bound"]
    assert set(document["devices"]) == {"virtio-blk", "platform"}
    assert [entry.name for entry in path.parent.iterdir()] == ["pack"]
    return path


def test_a_pack_is_never_overwritten(postload: Run, small_pack: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small_pack.rglob("*")}
    done = postload("record", "--out", small_pack)
    assert done.returncode == 2
    assert str(small_pack) in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in small_pack.rglob("*")}


def test_inspect_shows_a_pack_down_to_the_field(postload: Run, small_pack: Path) -> None:
    done = postload("inspect", small_pack, "--section", "virtio-blk", "--phase", "bound", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, INSPECTION)
    (section,) = document["sections"]
    assert section["idstr"].endswith("/virtio-blk")
    # header, name, instance and version, and behind the payload the footer
    framing = 5 + 1 + len(section["idstr"]) + 8 + 5
    assert sum(field["size"] for field in section["fields"]) == section["size"] - framing
    assert "virtio-blk" in postload("inspect", small_pack, "--section", "virtio-blk").stdout


def test_inspect_names_what_is_there_when_asked_for_something_else(postload: Run, small_pack: Path) -> None:
    done = postload("inspect", small_pack, "--section", "toaster")
    assert done.returncode == 2
    assert "toaster" in done.stderr
    assert "i8254" in done.stderr


def test_a_pack_is_replayed(postload: Run, small_pack: Path, tmp_path: Path) -> None:
    done = postload("replay", small_pack, "--quick", "--loads", "7", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(done.stdout)
    jsonschema.validate(document, shipped("matrix-2.schema.json"))
    assert document["complete"] is True
    assert {c["key"]["device"] for c in document["cells"]} == {"virtio-blk", "platform"}
    for cell in document["cells"]:
        assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) == ("ok", 7), cell["id"]
        assert set(cell["key"]["phases"]) <= {"firmware", "bound"}
    # one device of four does not make the machine safe, but nothing was found against it either
    assert document["machines"][0]["colo"] != "unsafe"


def test_a_replay_that_finds_something_ends_with_1(
    postload: Run, q35_pack_7_2: StatePack, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    words = [
        "--qemu",
        qemu_7_2.path,
        "--device",
        "platform",
        "--phase",
        "bound",
        "--schedule",
        "same",
        "--loads",
        "3",
        "--quick",
    ]
    done = postload("replay", q35_pack_7_2.path, *words, "--out", tmp_path, "--json")
    assert done.returncode == 1, done.stderr[-4000:]
    first, rest = json.loads(done.stdout)["cells"]
    assert (first["outcome"]["verdict"], first["outcome"]["sections"]) == ("crash", ["0000:00:1f.0/ICH9LPC"])
    assert (rest["outcome"]["verdict"], rest["outcome"]["loads_acked"]) == ("ok", 3)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--device", "ahci"], "ahci"),
        (["--phase", "busy"], "busy"),
        (["--qemu", "/nonexistent/qemu"], "/nonexistent/qemu"),
    ],
)
def test_replay_names_what_the_pack_lacks(
    postload: Run, small_pack: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    done = postload("replay", small_pack, *words, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert not (tmp_path / "out").exists()


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", [["replay"], ["inspect"]])
@pytest.mark.parametrize(
    ("name", "damage"),
    [("bound/devices.bin", _cut), ("ram.pages", _flip), ("firmware/vmdesc.json", Path.unlink), ("manifest.json", _cut)],
)
def test_a_damaged_pack_is_refused(
    postload: Run,
    small_pack: Path,
    tmp_path: Path,
    command: list[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_pack, copy)
    damage(copy / name)
    more = ["--out", tmp_path / "out"] if command == ["replay"] else []
    done = postload(*command, copy, *more)
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_stream(postload: Run) -> None:
    done = postload("inspect", sys.executable)
    assert done.returncode == 2
    assert sys.executable in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_is_content_with_this_host(postload: Run, binary: QemuBinary) -> None:
    done = postload("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["ready"]) == ("postload.doctor/1", True)
    rows = {row["name"]: row for row in document["checks"]}
    assert binary.version in rows["QEMU"]["found"]
    assert rows["accelerator tcg"]["ok"]
    assert rows["COLO secondary"]["ok"]


def test_doctor_says_what_a_poor_host_lacks(postload: Run, tmp_path: Path) -> None:
    done = postload("doctor", "--json", env={"PATH": str(tmp_path), "POSTLOAD_QEMU": ""})
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["ready"] is False
    lacking = {row["name"]: row for row in document["checks"] if row["needed"] and not row["ok"]}
    assert {"QEMU", "setpriv"} <= set(lacking)
    assert "apt-get install" in lacking["QEMU"]["remedy"]
    assert all(row["remedy"] for row in lacking.values())
    (swtpm,) = [row for row in document["checks"] if row["name"] == "swtpm"]
    assert (swtpm["ok"], swtpm["needed"], "package swtpm" in swtpm["remedy"]) == (False, False, True)
    table = postload("doctor", env={"PATH": str(tmp_path), "POSTLOAD_QEMU": ""})
    assert table.returncode == 3
    assert "missing" in table.stdout


def test_doctor_about_a_qemu_that_is_not_there(postload: Run) -> None:
    done = postload("doctor", "--qemu", "/nonexistent/qemu", "--json")
    assert done.returncode == 3, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert not rows["QEMU"]["ok"]
    assert "/nonexistent/qemu" in rows["QEMU"]["found"]
    assert "accelerator tcg" not in rows
