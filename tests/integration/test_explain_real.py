# SPDX-License-Identifier: GPL-2.0-or-later
"""A real crash explained: run, page, stack, and the second time from what was kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.packs.pack import StatePack

Done = subprocess.CompletedProcess[str]

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")


@pytest.fixture(scope="module")
def run(q35_pack: StatePack, postload: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one row of q35 that crashes."""
    out = tmp_path_factory.mktemp("explain") / "run"
    row = ("--machine", "q35", "--device", "platform", "--phase", "kernel", "--schedule", "same")
    done = postload("matrix", "--quick", *row, "--loads", 5, "--jobs", 1, "--out", out)
    if done.returncode != 1:
        pytest.skip(f"this QEMU does not crash: exit code {done.returncode}: {done.stderr[-300:]}")
    return out


def test_the_crash_of_q35_on_one_page(run: Path, postload: Callable[..., Done]) -> None:
    done = postload("explain", "kernel/same", "--run", run, env={"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert done.stdout.startswith("crash  ")
    assert "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35" in done.stdout
    assert "memory_region_add_subregion_common < " in flat
    assert "ICH9LPC v1, " in flat
    assert "of platform" in flat
    assert "postload minimise " in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(run) not in line) <= 100
    assert len(done.stdout.splitlines()) < 60


def test_the_stack_is_kept_and_read_back(run: Path, postload: Callable[..., Done], scratch: Path) -> None:
    first = postload("explain", "kernel/same", "--run", run, "--json")
    assert first.returncode == 0, first.stderr
    (kept,) = (run / "backtraces").glob("*.json")
    # without gdb on the path, so that a second stack can only be the kept one
    for name in ("python3", "sh"):
        (scratch / name).symlink_to(shutil.which(name) or "")
    second = postload("explain", "kernel/same", "--run", run, "--json", env={"PATH": str(scratch)})
    stack = json.loads(second.stdout)["stack"]
    assert stack == json.loads(first.stdout)["stack"]
    assert stack["signal"] == "SIGABRT"
    assert any(frame["function"] == "qemu_loadvm_state_main" for frame in stack["frames"])
    assert json.loads(kept.read_text())["schema"] == "postload.backtrace/2"


def test_the_row_without_its_culprit_is_ok_and_says_so(run: Path, postload: Callable[..., Done]) -> None:
    done = postload("explain", "kernel/same+rest", "--run", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok  ")
    assert "5 of 5 loads acknowledged" in " ".join(done.stdout.split())
    assert "ICH9LPC" in done.stdout.partition("not seen")[2]
    assert "backtrace" not in done.stdout


def test_usage_errors(run: Path, postload: Callable[..., Done]) -> None:
    done = postload("explain", "nosuch", "--run", run)
    assert done.returncode == 2
    assert "no cell 'nosuch'" in done.stderr
    assert postload("explain", "kernel/same", "--run", run / "nowhere").returncode == 2
