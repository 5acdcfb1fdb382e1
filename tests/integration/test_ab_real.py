# SPDX-License-Identifier: GPL-2.0-or-later
"""Two real QEMUs on one recording: 11.1 is without a crash that 7.2 has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary


def test_the_newer_qemu_mends_a_crash_of_the_older(
    postload: Callable[..., subprocess.CompletedProcess[str]],
    installed_qemu: Callable[[str], Path],
    qemu_7_2: QemuBinary,
    q35_pack_7_2: StatePack,
    tmp_path: Path,
) -> None:
    done = postload(
        "ab", "--qemu-a", qemu_7_2.path, "--qemu-b", installed_qemu("11.1"), "--machine", "q35", "--device",
        "platform,ahci", "--phase", "bound", "--schedule", "same", "--loads", "5", "--quick", "--out", tmp_path,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "ab.json").read_text()) == found
    assert (found["breaks"], found["differs"], found["undecided"], found["same"]) == ([], [], [], 1)
    [mended] = found["mends"]
    assert mended["cell"] == "pc-q35-7.2/platform/bound/same"
    assert (mended["a"]["verdict"], mended["b"]["verdict"]) == ("crash", "ok")
    assert mended["a"]["findings"] == [
        "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
    ]  # fmt: skip
    recorded = {cell["record_qemu"]["sha256"] for cell in json.loads((tmp_path / "matrix.json").read_text())["cells"]}
    assert recorded == {qemu_7_2.sha256}
