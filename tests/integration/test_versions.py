# SPDX-License-Identifier: GPL-2.0-or-later
"""All versions against each other: minutes of loads, run by ``tox -e versions`` and not by every test run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

NAMES = [name for name in os.environ.get("POSTLOAD_TEST_QEMUS", "").split(",") if name]
TIMEOUT_S = 3600.0


@pytest.mark.skipif(len(NAMES) < 2, reason="all pairs of versions are run by tox -e versions")
def test_every_pair_is_answered(
    postload: Callable[..., subprocess.CompletedProcess[str]], installed_qemu: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in NAMES:
        installed_qemu(name)
    every = ",".join(NAMES)
    done = postload("qualify", "--from", every, "--to", every, "--both-ways", "--out", tmp_path, timeout_s=TIMEOUT_S)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    document = json.loads((tmp_path / "qualify.json").read_text())
    abroad = [pair for pair in document["pairs"] if not pair["home"]]
    ways = {(pair["recorder"]["version"], pair["loader"]["version"], pair["family"]) for pair in abroad}
    assert len(ways) == 2 * len(list(permutations(NAMES, 2)))
    for pair in abroad:
        for entry in pair["devices"]:
            assert entry["answer"] in ("go", "no-go"), entry
            assert entry["loads"] or entry["answer"] == "no-go", entry
            # every no-go has a reason with the section to blame, and what is new was seen by real QEMUs as well
            for reason in entry["because"]:
                assert reason["section"], reason
                assert reason["confirmed"] or reason["use"] != "migration", reason
