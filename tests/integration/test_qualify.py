# SPDX-License-Identifier: GPL-2.0-or-later
"""Go and no-go on two real QEMUs, Debian 12's and Debian 13's, side by side."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary

Done = subprocess.CompletedProcess[str]
Postload = Callable[..., Done]
Installed = Callable[[str], Any]

TIMEOUT_S = 600.0
FEW = ("--loads", "3", "--phase", "kernel,bound")


def answer_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "qualify.json").read_text())
    assert found["schema"] == "postload.qualify/1"
    return found


def device(pair: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in pair["devices"] if entry["device"] == name)


@pytest.fixture(scope="module")
def both_ways(
    postload: Postload, installed_qemu: Installed, qemu_7_2: QemuBinary, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Done, Path]:
    """7.2 and 10.0, ``pc`` and ``q35``, there and back."""
    installed_qemu("10.0")
    out = tmp_path_factory.mktemp("qualify")
    words = ("qualify", "--from", qemu_7_2.path, "--to", "10.0", "--both-ways", *FEW, "--out", out)
    return postload(*words, timeout_s=TIMEOUT_S), out


def test_every_pair_migrates_and_q35_dies_under_colo(both_ways: tuple[Done, Path]) -> None:
    done, out = both_ways
    found = answer_of(out)
    assert (done.returncode, found["answer"], found["complete"]) == (0, "go", True), done.stderr[-2000:]
    # between versions COLO stands beside
    assert found["deciding"] == ["migration"]
    assert "upstream supports COLO only with the same version on both sides" in " ".join(done.stdout.split())
    abroad = [pair for pair in found["pairs"] if not pair["home"]]
    assert [(pair["family"], pair["uses"]["migration"], pair["uses"]["colo"]) for pair in abroad] == [
        ("pc", "go", "go"),
        ("q35", "go", "no-go"),
        ("pc", "go", "go"),
        ("q35", "go", "no-go"),
    ]
    for pair in abroad:
        assert pair["recorder"]["sha256"] != pair["loader"]["sha256"]
        assert all(entry["loads"] for entry in pair["devices"]), "a go without a load"


def test_the_reports_are_folds_of_the_events(postload: Postload, both_ways: tuple[Done, Path], tmp_path: Path) -> None:
    """The answer of the run, its causes and its pages, byte by byte, without a QEMU that is asked again."""
    done, out = both_ways
    again = postload("report", out, "--out", tmp_path)
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout)
    written = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "cells.jsonl"}
    assert len(written) == 8
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_a_section_of_a_device_that_is_not_judged_costs_the_others_nothing(
    postload: Postload, old_host: Path, tmp_path: Path
) -> None:
    """virtio-net is refused, and virtio-blk alone is asked for."""
    words = ("qualify", old_host, "--loads", "3", "--phase", "bound", "--device", "virtio-blk", "--out", tmp_path)
    done = postload(*words, "--global", "virtio-net-pci.mrg_rxbuf=off", timeout_s=TIMEOUT_S)
    (pair,) = answer_of(tmp_path)["pairs"]
    assert [(entry["device"], entry["answer"], entry["because"]) for entry in pair["devices"]] == [
        ("virtio-blk", "go", [])
    ], done.stdout
    (stray,) = pair["strays"]
    assert stray["section"].endswith("/virtio-net")
    assert {"migration", "colo"} <= set(stray["uses"])
    # the host is not known to take this guest
    assert (done.returncode, pair["answer"]) == (3, "unknown")
    assert "no device that is judged owns it" in " ".join(done.stdout.split())


def test_a_crash_that_was_there_before_is_not_called_new(both_ways: tuple[Done, Path]) -> None:
    done, out = both_ways
    q35 = [pair for pair in answer_of(out)["pairs"] if pair["family"] == "q35" and not pair["home"]]
    for pair in q35:
        (reason,) = device(pair, "platform")["because"]
        assert reason["section"] == "0000:00:1f.0/ICH9LPC"
        assert (reason["use"], reason["verdict"], reason["at_home"]) == ("colo", "crash", True)
    assert "(as at home)" in done.stdout


def test_the_way_is_in_the_cells_and_in_every_report(both_ways: tuple[Done, Path]) -> None:
    _, out = both_ways
    cells = json.loads((out / "matrix.json").read_text())["cells"]
    ways = {cell["id"].partition("/")[0] for cell in cells}
    assert len([way for way in ways if ">" in way]) == 2
    plain = [cell for cell in cells if cell["key"]["lane"] == "plain" and ">" in cell["id"]]
    assert plain
    assert {cell["engine"] for cell in plain} == {"fresh"}
    # two phases, and one load more for the guest that is asked how it is
    assert {cell["outcome"]["loads_acked"] for cell in plain} == {3}
    for name in ("qualify.md", "matrix.html"):
        text = (out / name).read_text().replace("\\", "")
        assert "no-go" in text
        assert re.search(r"7\.2\.\d+ -(>|&gt;) 10\.0\.\d+", text)


def test_postcopy_moves_pages_by_real_faults_or_says_why_not(both_ways: tuple[Done, Path]) -> None:
    _, out = both_ways
    cells = [c for c in json.loads((out / "matrix.json").read_text())["cells"] if c["key"]["lane"] == "postcopy"]
    assert cells
    for cell in cells:
        if cell["outcome"]["verdict"] == "host":
            assert "userfault" in json.dumps(cell["outcome"]["causes"]).lower()
        else:
            assert cell["outcome"]["verdict"] == "ok"
            assert cell["details"]["pages"]["by_fault"] > 0


@pytest.fixture(scope="module")
def old_host(pc_pack: StatePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack as another host sent it: one file."""
    from harness.packs.export import export_pack

    return export_pack(pc_pack, tmp_path_factory.mktemp("old") / "old-host.pack")


@pytest.mark.parametrize(
    ("row", "setting", "bit", "number"),
    [
        ("virtio-net", "virtio-net-pci.mrg_rxbuf", "VIRTIO_NET_F_MRG_RXBUF", 15),
        ("virtio-blk", "virtio-blk-pci.discard", "VIRTIO_BLK_F_DISCARD", 13),
    ],
)
def test_a_feature_that_is_taken_away_is_a_named_no_go(
    postload: Postload, old_host: Path, tmp_path: Path, row: str, setting: str, bit: str, number: int
) -> None:
    words = ("qualify", old_host, "--loads", "3", "--phase", "bound", "--out", tmp_path)
    done = postload(*words, "--global", f"{setting}=off", timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stderr[-2000:]
    (pair,) = answer_of(tmp_path)["pairs"]
    assert {entry["device"]: entry["answer"] for entry in pair["devices"]}[row] == "no-go"
    assert [entry["answer"] for entry in pair["devices"] if entry["device"] != row] == ["go"] * 3
    reasons = device(pair, row)["because"]
    assert {reason["use"] for reason in reasons} >= {"migration", "colo"}
    reason = reasons[0]
    assert (reason["verdict"], reason["field"]) == ("reject", bit)
    (lost,) = reason["explained"]
    assert (lost["kind"], lost["name"], lost["bit"], lost["lost_by"]) == ("lost-feature", bit, number, "property")
    advised = re.search(r"set -global (\S+)=on on the new host", done.stdout.replace("\n", " "))
    assert advised is not None
    assert advised[1] == setting
    assert reason["confirmed"]["shows"] == "same"

    mended = postload(*words, "--global", f"{setting}=on", timeout_s=TIMEOUT_S)
    assert mended.returncode == 0, mended.stdout[-2000:]
    assert answer_of(tmp_path)["answer"] == "go"


def test_a_pack_brings_the_facts_of_its_host(postload: Postload, tmp_path: Path) -> None:
    pack = tmp_path / "here.pack"
    assert postload("record", "--machine", "pc", "--phase", "kernel", "--out", pack).returncode == 0
    with StatePack(pack) as opened:
        facts = opened.manifest.host
    assert facts["schema"] == "postload.host/1"
    assert facts["qemu"][0]["sha256"] == opened.manifest.qemu["sha256"]
    assert facts["vmstate"]["vmschkmachine"]["Name"] == opened.manifest.machine
    assert any(device["device"] == "virtio-net" for device in facts["qemu"][0]["virtio"] or ())


def test_a_machine_type_that_is_not_there_is_a_no_go(
    postload: Postload, installed_qemu: Installed, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    installed_qemu("10.0")
    words = ("--from", "10.0", "--to", qemu_7_2.path, "--machine", "pc-i440fx-10.0", "--out", tmp_path)
    done = postload("qualify", *words, timeout_s=TIMEOUT_S)
    assert done.returncode == 1
    (pair,) = answer_of(tmp_path)["pairs"]
    assert pair["endings"] == [{"state": "not-yet", "version": pair["loader"]["version"]}]
    assert pair["uses"]["migration"] == "no-go"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected a PACK"),
        (("--from", "10.0.99", "--to", "qemu-system-x86_64"), "10.0.99"),
        (("--from", "qemu-system-x86_64", "--to", "qemu-system-x86_64", "--for", "luck"), "luck"),
        (("nowhere.pack",), "nowhere.pack"),
        (("nowhere.pack", "--from", "qemu-system-x86_64"), "not both"),
    ],
)
def test_mistakes_are_named(postload: Postload, words: tuple[str, ...], said: str) -> None:
    done = postload("qualify", *words)
    assert done.returncode == 2
    assert said in done.stderr
