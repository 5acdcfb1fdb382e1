# SPDX-License-Identifier: GPL-2.0-or-later
"""The reset table of real QEMUs: one that loads into a used machine, and one that resets it before each load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from harness.qemu.binary import QemuBinary

ICH9 = "0000:00:1f.0/ICH9LPC"
LOADS = 10


def test_the_reset_mends_ich9_on_builds_with_and_without_one_of_their_own(
    postload: Callable[..., CompletedProcess[str]],
    qemu_7_2: QemuBinary,
    installed_qemu: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    done = postload(
        "matrix", "--quick", "--reset", "--qemu", qemu_7_2.path, "--qemu", installed_qemu("11.1"), "--machine", "q35",
        "--device", "platform,virtio-blk", "--phase", "firmware", "--schedule", "same,back-to-back",
        "--loads", LOADS, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    doc = json.loads(done.stdout)
    lines = {(line["machine"].partition("-q35-")[2], line["device"]): line for line in doc["resets"]}
    assert len(lines) == 4
    for (version, device), line in lines.items():
        assert line["resets"] is (version != "7.2")
        assert line["behind"] == "ok"
        if device == "platform":
            assert (line["need"], line["without"], line["sections"]) == ("yes", "crash", [ICH9])
        else:
            assert (line["need"], line["without"], line["part"] is None) == ("no", "ok", False)
        cost = line["guest"]
        assert 0 < cost["reset"]["low"] <= cost["reset"]["median"] <= cost["reset"]["high"]
        # the load behind it takes longer too, and both together are many times the load
        assert cost["added"]["median"] > cost["reset"]["median"] / 2
        assert cost["added"]["median"] > 2 * cost["load"]["median"] > 0
    own = [cell for cell in doc["cells"] if cell["id"].endswith("/reset")]
    assert {(cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) for cell in own} == {("ok", LOADS)}
    assert all(cell["excluded"] == [] for cell in own)
    page = (tmp_path / "out" / "matrix.html").read_text()
    assert "this QEMU resets the machine before a COLO load" in page
    assert "this QEMU does not reset the machine before a COLO load" in page
