# SPDX-License-Identifier: GPL-2.0-or-later
"""How a build does COLO is found out by trying it.

Further binaries are named in ``$POSTLOAD_TEST_QEMUS``, separated by colons; each of them is probed, records its own
guest and loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cache import CACHE_VARIABLE
from harness.qemu.binary import QemuBinary
from harness.record.pack import StatePack
from harness.replay.engine import Buffers, Selection, Session
from harness.replay.probe import ColoAbility, probe_colo
from harness.replay.schedule import Schedule, plan_loads
from harness.replay.state import GuestMode

LOADS = 10
HOST = "the host's"
OTHERS = [path for path in os.environ.get("POSTLOAD_TEST_QEMUS", "").split(":") if path]


@pytest.fixture(params=[HOST, *OTHERS])
def tried(request: pytest.FixtureRequest, binary: QemuBinary, probed: Callable[[str], QemuBinary]) -> QemuBinary:
    return binary if request.param == HOST else probed(request.param)


def test_the_probe_finds_a_dialect_and_keeps_it(
    tried: QemuBinary, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(scratch / "cache"))
    ability = probe_colo(tried)
    assert ability.dialect.return_path is (ability.dialect.name == "open-return-path")
    assert ability.resets_before_load is not None
    (kept,) = (scratch / "cache" / "probe").iterdir()
    assert tried.sha256 in kept.name
    assert json.loads(kept.read_text())["dialect"] == ability.dialect.name
    assert probe_colo(tried) == ability


def test_the_ability_of_7_2(binary: QemuBinary, ability: ColoAbility) -> None:
    if not binary.version.startswith("7.2."):
        pytest.skip(f"what QEMU 7.2 does; this is {binary.version}")
    assert ability.dialect.name == "enable-colo"
    assert ability.resets_before_load is False


@pytest.mark.parametrize("phase", ["firmware", "bound", "busy"])
def test_every_build_loads_what_it_recorded(
    tried: QemuBinary, recorded: Callable[[QemuBinary, str], StatePack], phase: str
) -> None:
    pack, ability = recorded(tried, "pc"), probe_colo(tried)
    evidence = Session(
        binary=tried,
        dialect=ability.dialect,
        buffers=Buffers(pack),
        plan=plan_loads(Schedule.SAME, [phase], LOADS),
        selection=Selection(own=frozenset(pack.sections_of("ahci")), again=bool(ability.resets_before_load)),
        mode=GuestMode.RUNNING,
    ).run()
    assert evidence.broken is None, evidence
    assert (evidence.loads_acked, evidence.exit, evidence.events) == (LOADS, None, ())


@pytest.mark.skipif(not OTHERS, reason="no further builds in $POSTLOAD_TEST_QEMUS")
def test_a_matrix_over_every_build(
    postload: Callable[..., subprocess.CompletedProcess[str]], probed: Callable[[str], QemuBinary], tmp_path: Path
) -> None:
    words = [word for path in OTHERS for word in ("--qemu", path)]
    done = postload("matrix", "--quick", *words, "--loads", LOADS, "--out", tmp_path, "--json", timeout_s=900)
    doc = json.loads(done.stdout)
    assert doc["complete"] is True
    for path in OTHERS:
        sha256 = probed(path).sha256
        mine = [cell for cell in doc["cells"] if cell["load_qemu"]["sha256"] == sha256]
        pc = [cell for cell in mine if cell["machine"].startswith("pc-i440fx-")]
        assert pc
        assert [cell["id"] for cell in pc if cell["verdict"] != "ok"] == []
        assert [cell["id"] for cell in mine if cell["verdict"] in ("harness-error", "host")] == []
