# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong on a real host: a QEMU that dies, a guest that hangs, a full disk, Ctrl-C, kill -9.

Each ends with a message and exit code 3, leaves no process behind, and keeps the cells that were judged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml

from harness.cache import CACHE_VARIABLE, cache_root
from harness.errors import GuestError, HarnessError
from harness.guests.recipe import guests_folder
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.schemas import shipped
from harness.state import recorder
from harness.state.recorder import Plan, record

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
Strays = Callable[[], list[int]]
Eventually = Callable[..., None]

END_TIMEOUT_S = 180.0
#: 24 cells of six sessions, four cells a session: the first end after seconds, the last after a quarter of a minute.
LONG = ["matrix", "--quick", "--machine", "pc", "--schedule", "same", "--loads", "1500", "--jobs", "2"]
SHORT = [
    "matrix",
    "--quick",
    "--machine",
    "pc",
    "--device",
    "ahci",
    "--phase",
    "bound",
    "--schedule",
    "same",
    "--loads",
    "5",
]
LONG_CELLS = 24
FILES = ["cells.jsonl", "junit.xml", "matrix.html", "matrix.json", "matrix.md", "matrix.tap", "summary.md"]


def _judged(out: Path) -> list[dict[str, Any]]:
    """The cells that were judged until now, as whoever is killed next leaves them."""
    try:
        lines = (out / "cells.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    events = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [event["cell"] for event in events if event["event"] == "judged"]


def _assert_partial(document: dict[str, Any]) -> None:
    jsonschema.validate(document, shipped("matrix-2.schema.json"))
    assert document["complete"] is False
    assert 0 < len(document["cells"]) < LONG_CELLS
    for cell in document["cells"]:
        assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) == ("ok", cell["outcome"]["loads_asked"]), (
            cell["id"]
        )
    assert document["machines"][0]["colo"] != "unsafe"


# --- The end of the harness itself --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_of_a_matrix(
    started: Start,
    pc_pack: StatePack,
    tmp_path: Path,
    scratch: Path,
    strays: Strays,
    eventually: Eventually,
    number: signal.Signals,
) -> None:
    process = started(*LONG, "--out", tmp_path, "--json")
    eventually(lambda: len(_judged(tmp_path)) >= 2 and strays(), "two judged cells and a QEMU at work")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 3, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert strays() == []
    assert list(scratch.iterdir()) == []
    on_disk = json.loads((tmp_path / "matrix.json").read_text())
    assert json.loads(stdout) == on_disk
    _assert_partial(on_disk)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_interrupted_while_it_records(
    started: Start, own_cache: Path, tmp_path: Path, scratch: Path, strays: Strays, eventually: Eventually
) -> None:
    process = started(*SHORT, "--out", tmp_path, env={CACHE_VARIABLE: str(own_cache)})
    packs = own_cache / "packs"
    eventually(lambda: packs.is_dir() and any(packs.glob(".*/ram.pages")) and strays(), "a recording under way")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 3, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert strays() == []
    assert list(packs.iterdir()) == []
    assert [path for path in scratch.iterdir() if path != own_cache] == []


def test_killed_in_the_middle_of_a_matrix(
    started: Start,
    postload: Run,
    pc_pack: StatePack,
    tmp_path: Path,
    scratch: Path,
    strays: Strays,
    eventually: Eventually,
) -> None:
    process = started(*LONG, "--out", tmp_path)
    eventually(lambda: len(_judged(tmp_path)) >= 3 and strays(), "three judged cells and a QEMU at work")
    process.kill()
    process.communicate(timeout=END_TIMEOUT_S)
    eventually(lambda: not strays(), "every QEMU gone with its harness")
    judged = [cell["id"] for cell in _judged(tmp_path)]
    _assert_partial(json.loads((tmp_path / "matrix.json").read_text()))
    told = postload("report", tmp_path)
    assert told.returncode == 3, told.stderr
    assert f"{len(judged)} cells were judged" in told.stderr
    document = json.loads((tmp_path / "matrix.json").read_text())
    _assert_partial(document)
    assert sorted(cell["id"] for cell in document["cells"]) == sorted(judged)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    leftovers = [path.name for path in scratch.glob("postload-run-*")]
    assert leftovers, "nothing to sweep: this test shows nothing"
    assert postload("doctor", env={"TMPDIR": str(scratch)}).returncode == 0
    assert [name for name in leftovers if (scratch / name).exists()] == []


# --- A QEMU that dies at start ------------------------------------------------------------------------------


def _wrapper(folder: Path, binary: QemuBinary, passed_on: str) -> Path:
    """A QEMU that runs what fits a shell pattern and else dies with a message, as one with a missing library does."""
    path = folder / "qemu-that-dies"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n--version|{passed_on}) exec {binary.path} "$@" ;;\nesac\n'
        'echo "qemu: something terrible happened" >&2\nexit 1\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "passed_on",
    [
        pytest.param("nothing", id="at the first probe"),
        pytest.param("*none*none*", id="at the proof of the accelerator"),
        pytest.param("*none*none*|*isa-debug-exit*", id="at the probe of COLO"),
        pytest.param("*none*none*|*isa-debug-exit*|*'-m 16 '*", id="at the recording"),
    ],
)
def test_a_qemu_that_dies_at_start(
    postload: Run, binary: QemuBinary, own_cache: Path, tmp_path: Path, scratch: Path, passed_on: str
) -> None:
    program = _wrapper(scratch, binary, passed_on)
    environment = {CACHE_VARIABLE: str(own_cache)}
    done = postload(*SHORT, "--accel", "tcg", "--qemu", program, "--out", tmp_path / "out", env=environment)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "something terrible happened" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    if "-m 16" in passed_on:
        (cell,) = _judged(tmp_path / "out")
        assert cell["outcome"]["verdict"] == "harness-error"
        assert "something terrible happened" in json.dumps(cell["outcome"]["causes"])


# --- A guest that does not come up --------------------------------------------------------------------------


def test_a_guest_that_hangs_at_boot(
    plan_of: Callable[[QemuBinary, str], Plan], binary: QemuBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "BOOT_TIMEOUT_S", 5.0)
    plan = plan_of(binary, "pc")
    # it panics, says so, and with panic=0 stays there
    words = {"cmdline": "console=ttyS0 rdinit=/nonexistent panic=0 no_timer_check mitigations=off"}
    planned = replace(plan.planned, plan=plan.planned.plan.model_copy(update=words))
    with pytest.raises(GuestError, match="did not boot within 5 s; the console's last words"):
        record(replace(plan, planned=planned), tmp_path / "pack")
    _assert_firmware_alone(tmp_path)


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGSEGV, "QEMU ended with SIGSEGV: it printed nothing"),
        (signal.SIGTERM, "QEMU ended with SIGTERM: .*signal 15"),
    ],
)
def test_a_qemu_that_dies_while_its_guest_boots(
    plan_of: Callable[[QemuBinary, str], Plan], binary: QemuBinary, tmp_path: Path, number: signal.Signals, how: str
) -> None:
    """What a device did that kills it there is in its end alone: the console just closes."""

    def end_it(phase: str) -> None:
        if phase == "kernel":
            (qemu,) = [p for p in psutil.Process().children(recursive=True) if "qemu" in p.name()]
            qemu.send_signal(number)

    with pytest.raises(HarnessError, match=how):
        record(plan_of(binary, "pc"), tmp_path / "pack", end_it)


def test_a_guest_that_ends_at_boot(postload: Run, pc_pack: StatePack, scratch: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((guests_folder() / "debian-amd64.yaml").read_text())
    shutil.copy(guests_folder() / recipe["init"], tmp_path)
    words = [word for word in recipe["cmdline"] if not word.startswith(("rdinit", "quiet"))]
    recipe.update(name="dead", cmdline=[*words, "rdinit=/nonexistent"])
    (tmp_path / "dead.yaml").write_text(yaml.safe_dump(recipe))
    # packages from the normal cache, and the guest that is built of them goes away with the test
    for name in ("apt", "debs", "probe"):
        (scratch / name).symlink_to(cache_root() / name)
    environment = {CACHE_VARIABLE: str(scratch)}
    done = postload(*SHORT, "--guest", tmp_path / "dead.yaml", "--out", tmp_path / "out", env=environment)
    assert done.returncode == 3, done.stderr
    assert "the guest did not boot before the machine ended" in done.stderr
    (cell,) = _judged(tmp_path / "out")
    assert cell["outcome"]["verdict"] == "harness-error"
    assert "panic" in json.dumps(cell["outcome"]["causes"])
    _assert_firmware_alone(scratch / "packs")


def _assert_firmware_alone(folder: Path) -> None:
    """What was recorded before the guest was lost is kept, and nothing else is."""
    for path in folder.iterdir():
        with StatePack(path) as pack:
            assert pack.phases == ["firmware"]


# --- A full disk --------------------------------------------------------------------------------------------


@contextmanager
def _tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    if shutil.which("mount") is None:
        pytest.skip("no program mount, of Debian's package mount")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"this host mounts no small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=30, check=True)


def test_a_full_disk_under_the_cache(postload: Run, own_cache: Path, scratch: Path, tmp_path: Path) -> None:
    with _tiny_disk(scratch / "small", "20m") as small:
        (small / "guests").symlink_to(own_cache / "guests")
        done = postload(*SHORT, "--out", tmp_path / "out", env={CACHE_VARIABLE: str(small)})
        assert done.returncode == 3, done.stdout + done.stderr
        assert str(small) in done.stderr
        assert re.search(r"space|full", done.stderr)
        assert "Traceback" not in done.stderr
        assert list((small / "packs").iterdir()) == []


def test_a_full_disk_under_the_scratch_folders(postload: Run, own_cache: Path, scratch: Path, tmp_path: Path) -> None:
    with _tiny_disk(scratch / "small", "20m") as small:
        environment = {CACHE_VARIABLE: str(own_cache), "TMPDIR": str(small)}
        done = postload(*SHORT, "--out", tmp_path / "out", env=environment)
        assert done.returncode == 3, done.stdout + done.stderr
        assert str(small) in done.stderr
        assert re.search(r"space|full", done.stderr)
        assert "Traceback" not in done.stderr
        assert list(small.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "code"), [pytest.param("80k", 3, id="in the middle"), pytest.param("124k", 0, id="at the end")]
)
def test_a_full_disk_under_the_reports(postload: Run, pc_pack: StatePack, scratch: Path, size: str, code: int) -> None:
    """Either there is no room for a further cell, or for the reports of all of them.

    One row after the other: of two that end together even the first reports may have no room.
    """
    with _tiny_disk(scratch / "small", size) as small:
        done = postload(*LONG[:-4], "--loads", "3", "--jobs", "1", "--out", small / "out")
        assert done.returncode == 3, done.stdout + done.stderr
        assert str(small / "out") in done.stderr
        assert "space" in done.stderr
        assert "Traceback" not in done.stderr
        _assert_partial_reports(small / "out")
        # what was judged and has no room for its reports there gets them elsewhere
        told = postload("report", small / "out", "--out", scratch / "elsewhere")
        assert told.returncode == code, told.stderr
        document = json.loads((scratch / "elsewhere/matrix.json").read_text())
        assert len(document["cells"]) == len(_judged(small / "out"))
        assert document["complete"] is (len(document["cells"]) == LONG_CELLS) is (code == 0)


def _assert_partial_reports(out: Path) -> None:
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    document = json.loads((out / "matrix.json").read_text())
    jsonschema.validate(document, shipped("matrix-2.schema.json"))
    assert document["complete"] is False
    assert document["cells"]
    assert {cell["outcome"]["verdict"] for cell in document["cells"]} == {"ok"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(postload: Run, scratch: Path, tmp_path: Path) -> None:
    folder = scratch / "closed"
    folder.mkdir(mode=0o500)
    done = postload(*SHORT, "--out", tmp_path / "out", env={CACHE_VARIABLE: str(folder)})
    assert done.returncode == 3, done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scratch_folder_with_a_long_name(postload: Run, own_cache: Path, tmp_path: Path) -> None:
    """A unix socket's path has room for 107 bytes; a job of a CI has a longer $TMPDIR than that."""
    folder = tmp_path / ("deep-" * 20)
    folder.mkdir()
    environment = {CACHE_VARIABLE: str(own_cache), "TMPDIR": str(folder)}
    done = postload(*SHORT, "--out", tmp_path / "out", env=environment)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr[-4000:]
