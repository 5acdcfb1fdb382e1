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

from harness.names import USUAL_DEVICES

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


@pytest.mark.skipif(len(NAMES) < 2, reason="the machines of all versions are suspended by tox -e versions")
@pytest.mark.parametrize("name", NAMES)
def test_a_machine_that_sleeps_is_recorded_where_qemu_stops_it(
    postload: Callable[..., subprocess.CompletedProcess[str]],
    installed_qemu: Callable[[str], Path],
    name: str,
    tmp_path: Path,
) -> None:
    """Before 9.0 none does. Behind that each secondary dies of the one section that says that the machine sleeps."""
    installed_qemu(name)
    words = ("--qemu", name, "--machine", "pc", "--phase", "suspended", "--schedule", "same", "--loads", 5, "--quick")
    done = postload("matrix", *words, "--json", "--out", tmp_path, timeout_s=TIMEOUT_S)
    cells = json.loads(done.stdout)["cells"]
    if int(name.partition(".")[0]) < 9:
        assert {cell["outcome"]["causes"][0]["step"] for cell in cells} == {"sleep"}
        return
    verdicts = {(cell["key"]["device"], cell["outcome"]["verdict"]) for cell in cells}
    assert verdicts == {(device, "ok") for device in USUAL_DEVICES} | {("platform", "crash")}
    (crash,) = [cell for cell in cells if cell["outcome"]["verdict"] == "crash"]
    assert crash["outcome"]["isolation"]["sections"] == ["globalstate"] or "globalstate" in json.dumps(crash)
