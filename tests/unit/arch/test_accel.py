# SPDX-License-Identifier: GPL-2.0-or-later
"""An accelerator is proven by guest code that ends QEMU, with scripts in QEMU's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.arch import AARCH64, X86_64, Architecture
from harness.arch import accel as accel_module
from harness.arch.accel import choose_accel, prove_accel
from harness.errors import HostError
from harness.qemu.binary import AccelSeen, AccelState, QemuBinary
from harness.report.facts import accel_text

MakeQemu = Callable[[str, Architecture], QemuBinary]


@pytest.fixture
def qemu(tmp_path: Path, binary: QemuBinary) -> MakeQemu:
    def make(text: str, architecture: Architecture) -> QemuBinary:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return replace(binary, path=str(path), target=architecture.name)

    return make


@pytest.mark.parametrize(
    ("architecture", "text", "usable", "reason"),
    [
        (X86_64, "exit 85", True, "booted in"),
        (X86_64, "exit 0", False, "exit status 0"),
        (X86_64, "echo first; echo no such accelerator >&2; exit 1", False, "exit status 1: no such accelerator"),
        (X86_64, "ulimit -c 0; kill -ABRT $$", False, "SIGABRT"),
        (AARCH64, "exit 0", True, "booted in"),
        (AARCH64, "exit 85", False, "exit status 85"),
    ],
)
def test_an_accelerator_is_proven_by_the_exit_of_guest_code(
    qemu: MakeQemu, architecture: Architecture, text: str, usable: bool, reason: str
) -> None:
    state = prove_accel(qemu(text, architecture), "tcg")
    assert state.usable is usable
    assert reason in accel_text(state)


def test_an_accelerator_that_hangs_is_not_usable(qemu: MakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel_module, "ACCEL_TIMEOUT_S", 0.1)
    state = prove_accel(qemu("exec sleep 1000", X86_64), "tcg")
    assert (state.usable, state.seen, state.seconds) == (False, AccelSeen.LATE, 0.1)


def test_a_proof_that_somebody_ends_is_made_again(qemu: MakeQemu, tmp_path: Path) -> None:
    there = tmp_path / "there"
    binary = qemu(f"test -e {there} && exit 85; touch {there}; kill -KILL $$", X86_64)
    assert choose_accel(binary, "tcg").usable


@pytest.mark.parametrize(
    ("wanted", "kvm_usable", "kvm_seconds", "chosen"),
    [
        ("auto", True, 0.1, "kvm"),
        ("auto", True, 9.0, "tcg"),
        ("auto", False, 0.0, "tcg"),
        ("kvm", True, 9.0, "kvm"),
        ("kvm", False, 0.0, None),
        ("tcg", True, 0.1, "tcg"),
    ],
)
def test_kvm_is_chosen_where_it_is_fast(
    binary: QemuBinary,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    kvm_usable: bool,
    kvm_seconds: float,
    chosen: str | None,
) -> None:
    def prove(_: QemuBinary, name: str, **__: float) -> AccelState:
        if name == "tcg":
            return AccelState(name="tcg", usable=True, seen=AccelSeen.BOOTED, seconds=0.1)
        return AccelState(name="kvm", usable=kvm_usable, seen=AccelSeen.ERROR, said="as told", seconds=kvm_seconds)

    monkeypatch.setattr(accel_module, "prove_accel", prove)
    if chosen:
        assert choose_accel(binary, wanted).name == chosen
    else:
        said = f"accelerator kvm does not run guest code with {binary.path}: error: as told"
        with pytest.raises(HostError, match=said):
            choose_accel(binary, wanted)
