# SPDX-License-Identifier: GPL-2.0-or-later
"""The case folder: what is written is read again, and what is not a case is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import PackError, UsageError
from harness.qemu.cmdline import Option
from harness.triage.case import Case, CaseCheckpoint, Expect, LeakFigures, NeededField, Rate, Spent

CASE = Case(
    cell="7.2.22-1a2b3c4d/pc-q35-7.2/platform/bound/same",
    verdict="crash",
    failure_class="not-reentrant",
    sentence="one load of section x",
    kind="load",
    signature={"kind": "crash"},
    expect=Expect(verdict="crash", exit="SIGABRT", function="f", assertion="!a"),
    qemu={"version": "7.2.22", "sha256": "00"},
    machine="pc-q35-7.2",
    family="q35",
    accel="tcg",
    options=(Option(name="m", first="256"), Option(name="device", first="ahci", props={"id": "a", "on": True, "n": 3})),
    scratch={"disk.img": 1048576},
    guest_mode="parked",
    run_s=0.0,
    dialect_resets=False,
    head=b"QEVM\0\0\0\3",
    body=b"\0body",
    checkpoints=(CaseCheckpoint(devices=b"one", times=2), CaseCheckpoint(devices=b"two", ram=b"pages")),
    loads=3,
    back_to_back=False,
    sections=("0000:00:1f.0/ICH9LPC",),
    fields=(
        NeededField(section="s", path="d.config", offset=244, bit=0, value=1, healthy=0, register="RCBA"),
        NeededField(section="s", path="other", offset=4, bit=None, value="00ff", healthy=None),
    ),
    ram_pages=1,
    rate=Rate(failed=3, tried=3),
    spent=Spent(sessions=20, loads=25, seconds=9.5),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert Case.load(CASE.save(tmp_path / "deep" / "case")) == CASE


def test_the_folder_is_as_documented(tmp_path: Path) -> None:
    folder = CASE.save(tmp_path / "case")
    assert sorted(p.name for p in folder.iterdir()) == [
        "body.bin", "c1.bin", "c2.bin", "c2.ram", "case.json", "head.bin",
    ]  # fmt: skip
    assert (folder / "c2.ram").read_bytes() == b"pages"
    document = json.loads((folder / "case.json").read_text())
    assert document["schema"] == "postload.case/1"
    assert document["class"] == "not-reentrant"
    assert document["incoming"] == {"head": "head.bin", "body": "body.bin"}
    assert document["checkpoints"] == [
        {"devices": "c1.bin", "ram": None, "times": 2},
        {"devices": "c2.bin", "ram": "c2.ram", "times": 1},
    ]
    assert document["options"][1] == {"name": "device", "first": "ahci", "props": {"id": "a", "on": True, "n": 3}}
    assert document["fields"][0]["register"] == "RCBA"
    assert document["rate"] == {"failed": 3, "tried": 3}


def test_leak_and_files(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    figures = LeakFigures(bytes_per_load=33, low=32, high=34, floor_bytes=16, loads=2000, loads_per_checkpoint=40)
    case = replace(CASE, kind="leak", leak=figures, control=b"port92", files={"kernel": kernel})
    folder = case.save(tmp_path / "case")
    loaded = Case.load(folder)
    assert (loaded.kind, loaded.leak, loaded.control) == ("leak", figures, b"port92")
    assert loaded.files == {"kernel": folder / "kernel"}
    assert (folder / "kernel").read_bytes() == b"kernel"


def test_an_older_case_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = CASE.save(tmp_path / "case")
    replace(CASE, checkpoints=(CaseCheckpoint(devices=b"x"),)).save(folder)
    assert not (folder / "c2.bin").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    with pytest.raises(UsageError, match="not a case"):
        CASE.save(other)
    assert (other / "precious").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case", "other"]


def test_what_is_no_case(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"case\.json"):
        Case.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"case\.json"):
        Case.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "postload.case/2"}, "schema"),
        ({"loads": "three"}, "loads"),
        ({"guest_mode": "asleep"}, "guest_mode"),
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": [{"devices": "c1.bin", "ram": None, "times": 0}]}, "checkpoints"),
        ({"checkpoints": [{"devices": "../c1.bin", "ram": None, "times": 1}]}, "plain file name"),
        ({"incoming": {"head": "head.bin", "body": "gone.bin"}}, "not complete"),
        ({"cell": None}, "cell"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = CASE.save(tmp_path / "case")
    path = folder / "case.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PackError, match=words):
        Case.load(folder)


def test_no_json(tmp_path: Path) -> None:
    folder = CASE.save(tmp_path / "case")
    (folder / "case.json").write_text('{"schema"')
    with pytest.raises(PackError, match="not JSON"):
        Case.load(folder)
