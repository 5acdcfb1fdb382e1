# SPDX-License-Identifier: GPL-2.0-or-later
"""More moments of a guest's life on a real QEMU: hot-plugged devices, and a machine that its guest reset after use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]
DEVICES = ("virtio-blk", "virtio-net")


@pytest.fixture
def judged(postload: Callable[..., Done], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Cells of one phase: ``judged("pc", "plugged")``."""

    def run(machine: str, phase: str) -> list[dict[str, Any]]:
        words = ["--machine", machine, "--device", ",".join(DEVICES), "--phase", phase, "--schedule", "same"]
        done = postload("matrix", *words, "--loads", "5", "--quick", "--json", "--out", tmp_path / machine)
        assert done.stdout, done.stderr
        cells: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
        assert [cell["key"]["device"] for cell in cells] == list(DEVICES)
        return cells

    return run


@pytest.mark.parametrize("phase", ["plugged", "rebooted"])
def test_a_guest_gets_there_and_its_state_is_loaded(judged: Callable[..., Any], phase: str) -> None:
    for cell in judged("pc", phase):
        assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) == ("ok", 5)
        assert cell["key"]["phases"] == [phase]


def test_a_bus_that_takes_nothing_while_it_runs_is_named(judged: Callable[..., Any]) -> None:
    for cell in judged("q35", "plugged"):
        (cause,) = cell["outcome"]["causes"]
        assert cell["outcome"]["verdict"] == "unsupported"
        assert (cause["kind"], cause["step"]) == ("unreached", "plug")
        assert "does not support hotplugging" in cause["said"]
