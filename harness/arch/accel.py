# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator runs guest code: only a guest that ran shows it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness.arch import architecture_named
from harness.errors import HostError, QemuError
from harness.qemu.binary import AccelSeen, AccelState, QemuBinary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.disturbance import undisturbed
from harness.qemu.process import Process, new_workdir

ACCEL_TIMEOUT_S = 10.0
#: The proof takes a tenth of a second under TCG and less under KVM; a nested KVM that is itself emulated runs code,
#: thirty times slower than TCG.
FAST_ACCEL_S = 1.5


def prove_accel(binary: QemuBinary, name: str, *, timeout_s: float | None = None) -> AccelState:
    """Boot a few instructions under an accelerator: that /dev/kvm opens proves nothing on a nested host.

    :raises UsageError: the binary's guests are of an architecture that is not known here
    """
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        seen = AccelSeen.NOT_OPENED if Path("/dev/kvm").exists() else AccelSeen.NO_DEVICE
        return AccelState(name=name, usable=False, seen=seen, said="/dev/kvm")
    architecture = architecture_named(binary.target)
    proof, workdir = architecture.boot_proof, new_workdir()
    (workdir / "boot.img").write_bytes(proof.image)
    command = CommandLine(
        binary=binary.path,
        options=(
            *(Option(name=name) for name in ("nodefaults", "no-user-config", "no-reboot")),
            Option(name="display", first="none"),
            Option(name="accel", first=name),
            *architecture.cpu_options(name),
            *proof.options(workdir / "boot.img"),
        ),
    )
    started = time.monotonic()
    try:
        with Process(command.argv(), workdir=workdir) as process:
            return _judge(name, process, started, proof.status, timeout_s or ACCEL_TIMEOUT_S)
    except QemuError as error:
        return AccelState(name=name, usable=False, seen=AccelSeen.ERROR, said=str(error))


def choose_accel(binary: QemuBinary, wanted: str) -> AccelState:
    """The accelerator to use: ``auto`` takes KVM where it runs code as fast as hardware does.

    :raises HostError: the wanted one, or TCG, does not run
    :raises Disturbed: the host disturbed each try of it
    """
    if wanted == "auto":
        kvm = prove_accel(binary, "kvm", timeout_s=FAST_ACCEL_S)
        if kvm.usable and kvm.seconds <= FAST_ACCEL_S:
            return kvm
        wanted = "tcg"
    state = undisturbed(lambda: prove_accel(binary, wanted), lambda found, _: not found.usable)
    if not state.usable:
        raise HostError(f"accelerator {wanted} does not run guest code with {binary.path}: {state}")
    return state


def has_fast_kvm(binary: QemuBinary) -> bool:
    """Whether KVM runs code as fast as hardware does.

    :raises Disturbed: the host disturbed each try of it
    """
    kvm = prove_accel(binary, "kvm", timeout_s=FAST_ACCEL_S)
    return kvm.usable and kvm.seconds <= FAST_ACCEL_S


def kvm_state(binary: QemuBinary, chosen: AccelState) -> AccelState:
    """What came of code under KVM, for facts and statements about this host: also where something else was chosen."""
    return chosen if chosen.name == "kvm" else prove_accel(binary, "kvm", timeout_s=FAST_ACCEL_S)


def _judge(name: str, process: Process, started: float, status: int, timeout_s: float) -> AccelState:
    ended = process.wait(timeout_s)
    seconds = time.monotonic() - started
    if ended is None:
        return AccelState(name=name, usable=False, seen=AccelSeen.LATE, seconds=timeout_s)
    if ended.status == status:
        return AccelState(name=name, usable=True, seen=AccelSeen.BOOTED, seconds=seconds)
    words = [str(ended), *process.stderr().strip().splitlines()[-1:]]
    return AccelState(name=name, usable=False, seen=AccelSeen.ENDED, said=": ".join(words))
