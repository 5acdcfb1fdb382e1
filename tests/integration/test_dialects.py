# SPDX-License-Identifier: GPL-2.0-or-later
"""How a build does COLO is found out by trying it.

The host's QEMU and one of another dialect's time, or those that ``$POSTLOAD_TEST_QEMUS`` names, separated by commas:
versions that can be installed, or paths. Each is probed, records its own guest and loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cache import CACHE_VARIABLE
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule, plan_loads
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.state.transforms import GuestMode

LOADS = 10
HOST = "the host's"
OTHERS = [name for name in os.environ.get("POSTLOAD_TEST_QEMUS", "10.0").split(",") if name]

Find = Callable[[str], QemuBinary]


@pytest.fixture(scope="session")
def find(probed: Callable[[str | Path], QemuBinary], installed_qemu: Callable[[str], Path]) -> Find:
    """A QEMU by its path, or by the version that is installed for it."""
    return lambda name: probed(name if "/" in name else installed_qemu(name))


@pytest.fixture(params=[HOST, *OTHERS])
def tried(request: pytest.FixtureRequest, binary: QemuBinary, find: Find) -> QemuBinary:
    return binary if request.param == HOST else find(request.param)


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


def test_the_ability_of_7_2(qemu_7_2: QemuBinary) -> None:
    ability = probe_colo(qemu_7_2)
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


def test_a_matrix_over_every_build(
    postload: Callable[..., subprocess.CompletedProcess[str]], find: Find, tmp_path: Path
) -> None:
    paths = [find(name).path for name in OTHERS]
    words = [word for path in paths for word in ("--qemu", path)]
    done = postload("matrix", "--quick", *words, "--loads", LOADS, "--out", tmp_path, "--json", timeout_s=900)
    doc = json.loads(done.stdout)
    assert doc["complete"] is True
    for path in paths:
        sha256 = find(path).sha256
        mine = [cell for cell in doc["cells"] if cell["load_qemu"]["sha256"] == sha256]
        pc = [cell for cell in mine if cell["key"]["machine"].startswith("pc-i440fx-")]
        assert pc
        assert [cell["id"] for cell in pc if cell["outcome"]["verdict"] != "ok"] == []
        assert [cell["id"] for cell in mine if cell["outcome"]["verdict"] in ("harness-error", "host")] == []
