# SPDX-License-Identifier: GPL-2.0-or-later
"""Real QEMUs that crash and that do not answer, repeated under gdb."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.stacks import stack_text
from harness.results.signature import signature_of
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.triage.backtrace import StackHow, backtrace_by, backtrace_of

LPC = "0000:00:1f.0/ICH9LPC"

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")


def session(binary: QemuBinary, pack: StatePack, ability: ColoAbility, label: str) -> Session:
    """One section alone; where a build resets before each load, twice, and with the parked CPU."""
    resets = bool(ability.resets_before_load)
    return Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=Buffers(pack),
        plan=LoadPlan(incoming="bound", checkpoints=(Checkpoint(phase="bound"),)),
        selection=Selection(
            own=frozenset({label, "cpu", "cpu_common"} if resets else {label}), whole=False, again=resets
        ),
        mode=GuestMode.PARKED,
        timeout_s=10.0,
    )


def test_the_crash_of_q35_has_the_stack_of_its_load(
    binary: QemuBinary, q35_pack: StatePack, ability: ColoAbility
) -> None:
    crashing = session(binary, q35_pack, ability, LPC)
    judgement = judge(crashing.run())
    if judgement.verdict is not Verdict.CRASH:
        pytest.skip(f"this QEMU does not crash: {judgement.verdict}")
    found = backtrace_of(crashing)
    signature = signature_of(replace(judgement.outcome, sections=(LPC,)), machine="q35")
    assert signature is not None
    assert signature.name == "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
    assert found.signal == "SIGABRT", stack_text(found)
    names = [frame.function for frame in found.frames]
    # a distribution's build has these two by name, whatever else it exports
    assert any(name.startswith("vmstate_load") for name in names), stack_text(found)
    assert "qemu_loadvm_state_main" in names, stack_text(found)
    assert found.short.startswith("memory_region_add_subregion_common < ")
    assert found.short.rpartition(" < ")[2].startswith("vmstate_load")


def test_a_session_that_passes_has_no_backtrace(binary: QemuBinary, q35_pack: StatePack, ability: ColoAbility) -> None:
    found = backtrace_of(session(binary, q35_pack, ability, "i8259"))
    assert found.frames == ()
    assert found.how is StackHow.NOT_AGAIN


def test_a_qemu_that_does_not_get_on_is_interrupted(qemu_path: Path) -> None:
    def run(launcher: Path, _progress: Callable[[], None]) -> str:
        argv = [str(launcher), "-machine", "none", "-display", "none", "-nodefaults", "-name", "a b,,c 'd'"]
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        return ""

    found = backtrace_by(run, qemu_path, answer_timeout_s=1.0, timeout_s=50.0)
    assert found.how is StackHow.INTERRUPTED, stack_text(found)
    assert any(frame.function == "main_loop_wait" for frame in found.frames), stack_text(found)
    assert len(found.threads) > 1


def test_a_launcher_script_may_stand_before_the_program(qemu_path: Path, scratch: Path) -> None:
    wrapper = scratch / "wrapped qemu"
    wrapper.write_text(f'#!/bin/sh\nexec {qemu_path} "$@"\n')
    wrapper.chmod(0o755)

    def run(launcher: Path, _progress: Callable[[], None]) -> str:
        argv = [str(launcher), "-machine", "none", "-display", "none", "-nodefaults"]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return f"{child.wait(60)}"

    found = backtrace_by(run, wrapper, answer_timeout_s=1.0, timeout_s=50.0)
    assert any(frame.function == "main_loop_wait" for frame in found.frames), stack_text(found)
