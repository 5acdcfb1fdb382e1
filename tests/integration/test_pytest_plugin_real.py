# SPDX-License-Identifier: GPL-2.0-or-later
"""Pytest with two workers judges cells of a real QEMU: each guest once, known issues by their signature."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.results.events import Judged, read_events

TIMEOUT_S = 600.0
KNOWN = """\
issues:
- signature: "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
  affected: ["7.2"]
  link: "https://example.org/crash"
  seen: "platform/bound/same"
- signature: "crash:nobody:!seen:ahci:q35"
  affected: ["7.2"]
  link: "https://example.org/gone"
  seen: "ahci/bound/same"
"""


def test_two_workers_judge_each_cell_once(qemu_7_2: QemuBinary, q35_pack_7_2: StatePack, tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(KNOWN)
    asked = {"qemu": qemu_7_2.path, "machine": "q35", "device": "platform,ahci", "phase": "bound", "loads": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-n", "2", "-k", "platform or same", "-v"]
        + [f"--postload-{name}={value}" for name, value in asked.items()]
        + ["--postload-quick", "--postload-known=known.yaml", "--postload-out=out", "--junitxml=pytest.xml"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": "", "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "1 failed, 2 xfailed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "[XPASS(strict)] https://example.org/gone" in done.stdout
    cells = [e.cell for e in read_events(tmp_path / "out" / "cells.jsonl") if isinstance(e, Judged)]
    assert set(Counter(cell.id for cell in cells).values()) == {1}
    assert {cell.key.place for cell in cells} == {
        "ahci/bound/same", "platform/bound/same", "platform/bound/back-to-back",
    }  # fmt: skip
    times = {
        case.get("name"): float(case.get("time", 0))
        for case in ElementTree.parse(tmp_path / "pytest.xml").iter("testcase")
    }
    ahci = next(cell for cell in cells if cell.device == "ahci")
    assert abs(times[ahci.id] - ahci.seconds) < 0.01
    assert not list(tmp_path.glob("postload-pytest-*")), "the shared folder is gone"
