# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks over vhost-user on a real QEMU, each with a qemu-storage-daemon beside it. Nothing is booted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.devices.backends import VhostDisk
from harness.devices.recipe import load_recipes
from harness.devices.rules import Status
from harness.devices.types import types_of
from harness.errors import MissingError
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vhostdisk import StorageDaemon
from harness.qemu.vm import Vm, migrate_to_socket
from harness.report.catalogue import tried_text
from harness.state.catalogue import DeviceTrial, offer_of
from harness.state.recordings import machine_names
from harness.stream.reader import open_stream

DEVICE = "vhost-user-blk-pci"
DAEMON = "qemu-storage-"  # as the kernel cuts it


@pytest.fixture(scope="module", autouse=True)
def daemon() -> None:
    """Without it the tests are skipped; under CI they fail."""
    if StorageDaemon.path() is None and os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip("there is no qemu-storage-daemon")
    assert StorageDaemon.path() is not None, "CI has to have a qemu-storage-daemon"


def bare_machine(binary: QemuBinary) -> Machine:
    family, name = machine_names(binary, "pc")
    disk = PlacedDevice(id="disk", type=DEVICE, backends={"chardev": "line"})
    line = VhostDisk(size_bytes=1 << 20)
    plan = GuestPlan(machine=name, family=family, memory_mib=16, devices=(disk,), backends={"line": line})
    return Machine(plan=plan, accel="tcg")


def test_it_is_judged_and_a_host_without_the_program_is_told_its_package(
    binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {name: device for name, device in load_recipes().devices.items() if not device.rest}
    device = offer_of(binary, recipes).devices[DEVICE]
    able = replace(binary, devices=frozenset(types_of(binary.path)))
    trial = DeviceTrial(binary=able, machine="pc", accel="tcg", scope=ProcessScope())
    assert trial.of(device).status is Status.JUDGED
    monkeypatch.setattr(StorageDaemon, "program", "daemon-that-is-not-there")
    tried = DeviceTrial(binary=able, machine="q35", accel="tcg", scope=ProcessScope()).of(device)
    assert (tried.status, tried_text(tried)) == (
        Status.NEEDS,
        "daemon-that-is-not-there, which is in Debian's package qemu-utils (Debian 12: qemu-system-common)",
    )
    workdir = new_workdir()
    with pytest.raises(MissingError, match="Debian's package qemu-utils"):
        Vm(bare_machine(binary).command(binary.path, workdir, firmware_sink()), workdir=workdir)
    assert not workdir.exists()


def test_it_has_an_empty_disk_of_its_own_and_ends_with_its_qemu(binary: QemuBinary) -> None:
    workdir = new_workdir()
    with Vm(bare_machine(binary).command(binary.path, workdir, firmware_sink()), workdir=workdir):
        (beside,) = [child for child in psutil.Process().children() if child.name().startswith(DAEMON)]
        (image,) = [word.rpartition("=")[2] for word in beside.cmdline() if "driver=file" in word]
        assert Path(image).stat().st_size == 1 << 20
    assert not beside.is_running()
    assert not Path(image).parent.exists()


def test_it_dies_with_a_harness_that_is_killed(
    binary: QemuBinary, strays: Callable[[], list[int]], eventually: Callable[..., None], scratch: Path
) -> None:
    script = (
        "import time; from tests.integration.test_vhost_disk import *; from harness.qemu.binary import probe_binary\n"
        f"path = {binary.path!r}; machine = bare_machine(probe_binary(Path(path)))\n"
        "vm = Vm(machine.command(path, Path('/x'), firmware_sink())); print('up', flush=True); time.sleep(60)"
    )
    env = {**os.environ, "TMPDIR": str(scratch)}
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert any(psutil.Process(pid).name().startswith(DAEMON) for pid in strays())
        parent.kill()
    eventually(lambda: not strays(), "QEMU and the program beside it are gone")


def test_the_script_of_a_bundle_starts_one_too(binary: QemuBinary, tmp_path: Path) -> None:
    """What it loads does not fail, which it says; a QEMU without its disk would not have started."""
    machine = bare_machine(binary)
    workdir = new_workdir()
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        migrate_to_socket(vm, workdir / "migrate.sock", tmp_path / "stream", timeout_s=30)
    with open_stream(tmp_path / "stream") as stream:
        (tmp_path / "head.bin").write_bytes(stream.head)
        (tmp_path / "body.bin").write_bytes(stream.buffer[len(stream.head) :])
        own = b"".join(section.encode() for section in stream.devices if "vhost-user-blk" in section.idstr)
    assert own
    (tmp_path / "c1.bin").write_bytes(own)
    document = {
        "schema": "postload.case/1",
        "kind": "load",
        "expect": {"verdict": "crash", "exit": "SIGABRT", "function": None, "assertion": None},
        "machine": machine.name,
        "family": "pc",
        "accel": "tcg",
        "options": [{"name": o.name, "first": o.first, "props": dict(o.props)} for o in machine.options],
        "scratch": {},
        "guest_mode": "parked",
        "run_s": 0.0,
        "incoming": {"head": "head.bin", "body": "body.bin"},
        "checkpoints": [{"devices": "c1.bin", "ram": None, "times": 3}],
        "loads": 3,
        "sections": [DEVICE],
        "fields": [],
        "rate": {"failed": 1, "tried": 1},
        "leak": None,
        "control": None,
    }
    (tmp_path / "case.json").write_text(json.dumps(document))
    script = Path(sys.modules["harness"].__path__[0]) / "triage/reproduce.py"
    argv = [sys.executable, "-I", str(script), binary.path, "--case", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "after 3 checkpoints" in done.stdout) == (1, True), done.stdout + done.stderr
