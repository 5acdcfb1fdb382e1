# SPDX-License-Identifier: GPL-2.0-or-later
"""The q35 crash, from a run to a bundle whose script finds it again without this program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell

from harness.errors import PackError, UsageError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.bundle import WRITING
from harness.results.cause import Drifted, DriftedField
from harness.results.document import Cell, Qemu
from harness.results.folder import read_matrix
from harness.results.verdict import Verdict
from harness.triage.bundle import ATTACHABLE_BYTES, Bundle, bundle_cell, kept_case, run_script, whole_case
from harness.triage.case import CASE_FILE
from harness.triage.driftcase import drift_cases
from harness.triage.elsewhere import check_case, made_here

Done = subprocess.CompletedProcess[str]
LPC = "0000:00:1f.0/ICH9LPC"


@pytest.fixture(scope="module")
def run(postload: Callable[..., Done], q35_pack: StatePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the crash in it."""
    out = tmp_path_factory.mktemp("bundle") / "run"
    words = ["--phase", "bound", "--device", "platform", "--schedule", "same", "--loads", "2", "--quick"]
    done = postload("replay", q35_pack.path, *words, "--out", out)
    found = [cell.blamed for cell in read_matrix(out).cells if cell.outcome.causes]
    if found != [(LPC,)]:
        pytest.skip(f"this QEMU does not crash there: exit code {done.returncode}, {found}")
    return out


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    """Its bundle, of a case that was not minimised."""
    return bundle_cell("platform/bound/same", run, run.parent / "bundle", WRITING)


def test_every_signature_of_a_run_gets_a_bundle_of_its_smallest_case_once(
    run: Path, postload: Callable[..., Done], binary: QemuBinary, tmp_path: Path
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    made = postload("bundle", "--all", "--run", run, "--qemu", binary.path, "--json")
    assert made.returncode == 0, made.stderr
    (told,) = json.loads(made.stdout)["bundles"]
    assert "ICH9LPC" in told["signature"]
    assert told["reproduced"]
    folder = Path(told["folder"])
    assert folder.parent == run / "bundles"
    assert json.loads((folder / CASE_FILE).read_bytes())["sections"] == [LPC]
    again = postload("bundle", "--all", "--run", run, "--json")
    assert (again.returncode, json.loads(again.stdout)["bundles"]) == (0, [])
    assert "is there already" in again.stderr


def reproduce(folder: Path, *words: str) -> Done:
    """The bundle's own script, in an environment that has nothing of this program in it."""
    argv = [sys.executable, "-I", str(folder / "reproduce.py"), *words]
    env = {"PATH": os.defpath}
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env, cwd="/", check=False)


def test_the_bundle_is_tried_when_it_is_made_and_is_small(bundle: Bundle) -> None:
    assert bundle.answer.reproduced, bundle.answer.line
    assert not bundle.changed
    assert bundle.size_bytes < ATTACHABLE_BYTES / 5
    document = json.loads((bundle.folder / "case.json").read_text())
    assert document["ram_pages"] == 0
    assert [option["name"] for option in document["options"]] == ["m", "smp"]
    assert "memory_region_add_subregion_common" in (bundle.folder / "log.txt").read_text()


def test_the_script_finds_it_again_anywhere(bundle: Bundle, binary: QemuBinary, tmp_path: Path) -> None:
    copied = tmp_path / ("a folder with a long name, as they are " * 3)
    shutil.copytree(bundle.folder, copied)
    done = reproduce(copied, binary.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Assertion `!subregion->container' failed" in done.stdout


def test_a_machine_that_cannot_take_it_is_no_answer(bundle: Bundle, binary: QemuBinary) -> None:
    done = reproduce(bundle.folder, binary.path, "--machine", "pc")
    assert done.returncode == 125, done.stdout + done.stderr
    assert LPC in done.stdout


def test_a_load_with_the_register_cleared_is_not_it(bundle: Bundle, binary: QemuBinary, tmp_path: Path) -> None:
    copied = tmp_path / "healthy"
    shutil.copytree(bundle.folder, copied)
    document: dict[str, Any] = json.loads((copied / "case.json").read_text())
    name = document["incoming"]["body"]
    # RCBA, configuration register 0xf0 of the bridge, bit 0: behind idstr, instance, version and PCI version
    for file in (name, "c1.bin"):
        data = bytearray((copied / file).read_bytes())
        at = data.index(LPC.encode()) + len(LPC) + 8 + 4 + 0xF0
        assert data[at] & 1
        data[at] &= 0xFE
        (copied / file).write_bytes(data)
    done = reproduce(copied, binary.path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("not reproduced: ")


def test_a_bundle_from_elsewhere_is_checked_and_tried_behind_walls(
    bundle: Bundle, binary: QemuBinary, tmp_path: Path
) -> None:
    assert made_here(bundle.folder)
    brought = Path(shutil.copytree(bundle.folder, tmp_path / "brought"))
    document = json.loads((brought / CASE_FILE).read_text())
    (brought / CASE_FILE).write_text(json.dumps({**document, "cell": "of somebody else"}))
    (brought / "reproduce.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not made_here(brought)
    check_case(brought, [binary.path])
    answer = run_script(brought, binary.path, foreign=True)
    assert answer.reproduced, answer.line
    assert not (tmp_path / "ran").exists()
    forged = {"name": "device", "first": "virtio-net-pci", "props": {"id": "x", "romfile": "x"}}
    document["options"].append(forged)
    (brought / CASE_FILE).write_text(json.dumps(document))
    with pytest.raises(PackError, match="device x: romfile='x': its type is str"):
        check_case(brought, [binary.path])


def test_a_cell_without_a_finding_and_a_full_folder_are_refused(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    fine = next(cell.id for cell in read_matrix(run).cells if not cell.verdict.is_finding)
    with pytest.raises(UsageError, match="nothing to report"):
        bundle_cell(fine, run, tmp_path / "b", WRITING)
    with pytest.raises(UsageError, match="does not overwrite"):
        bundle_cell("platform/bound/same", run, bundle.folder, WRITING)
    assert kept_case(run, read_matrix(run).cells[0]) is None


def test_a_drift_is_bundled_with_the_field_that_moves(pc_pack: StatePack, binary: QemuBinary, tmp_path: Path) -> None:
    """A clock moves by nature, and so stands in for a drift; the number of a timer's period does not move."""
    for field, code in (("cpu_clock_offset", 0), ("unused", 1)):
        cell = _drifted(pc_pack, binary, "timer", field)
        frame = whole_case(cell, pc_pack)
        alone, whole = drift_cases(cell, pc_pack, frame)
        assert len(alone.checkpoints[0].devices) < len(whole.checkpoints[0].devices)
        assert [(f.path, f.size) for f in alone.fields] == [(field, 8)]
        for number, case in enumerate((alone, whole)):
            folder = case.save(tmp_path / f"{field}-{number}")
            answer = run_script(folder, binary.path)
            assert answer.code == code, answer.line


def _drifted(pack: StatePack, binary: QemuBinary, section: str, field: str) -> Cell:
    qemu = Qemu(**binary.identity(), label=binary.version)
    drifted = DriftedField(field=field, type="int64", values=(1, 2))
    return made_cell(
        f"{pack.manifest.machine}/platform/bound/drift",
        Verdict.DRIFT,
        record_qemu=qemu,
        load_qemu=qemu,
        accel=pack.manifest.accel,
        causes=(Drifted(section=section, fields=(drifted,), count=1, loads=50, phase="bound"),),
        blamed=(section,),
        pack=str(pack.path),
    )
