# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands on a program beside a real QEMU: TPMs on swtpm, and disks over vhost-user on qemu-storage-daemon. Nothing
is booted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from harness.devices.backends import Backend, Tpm, VhostDisk
from harness.devices.recipe import load_recipes
from harness.devices.rules import Status
from harness.devices.types import types_of
from harness.errors import MissingError
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.beside import Beside
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.swtpm import TpmEmulator
from harness.qemu.vhostdisk import StorageDaemon
from harness.qemu.vm import Vm, migrate_to_socket
from harness.qemu.walls import standing
from harness.report.catalogue import tried_text
from harness.state.catalogue import DeviceTrial, offer_of
from harness.state.recordings import machine_names
from harness.stream.reader import open_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A device that has a program beside its QEMU, by a property and a backend; its own sections, and one of them."""

    program: type[Beside]
    package: str
    device: str
    key: str
    backend: Backend
    own: str
    section: str

    def machine(self, binary: QemuBinary, foreign: Path | None = None) -> Machine:
        """One with nothing else in it."""
        family, name = machine_names(binary, "pc")
        placed = (PlacedDevice(id="chip", type=self.device, backends={self.key: "line"}),)
        plan = GuestPlan(machine=name, family=family, memory_mib=16, devices=placed, backends={"line": self.backend})
        return Machine(plan=plan, accel="tcg", foreign=foreign)

    def beside(self) -> psutil.Process:
        """The one that runs for a QEMU of this process."""
        (found,) = [child for child in psutil.Process().children() if child.name() == self.program.program]
        return found


KINDS = {
    "tpm": Kind(
        program=TpmEmulator,
        package="swtpm",
        device="tpm-tis",
        key="tpmdev",
        backend=Tpm(),
        own="tpm-emulator|tpm-tis",
        section="tpm-emulator",
    ),
    "disk": Kind(
        program=StorageDaemon,
        package="qemu-utils (Debian 12: qemu-system-common)",
        device="vhost-user-blk-pci",
        key="chardev",
        backend=VhostDisk(size_bytes=1 << 20),
        own=".*vhost-user-blk.*",
        section="vhost-user-blk-pci",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Without its program a test is skipped; under CI it fails."""
    found = KINDS[request.param]
    name = found.program.program
    if found.program.path() is None and os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(f"there is no {name}")
    assert found.program.path() is not None, f"CI has to have a {name}"
    return found


def test_it_is_judged_and_a_host_without_the_program_is_told_its_package(
    kind: Kind, binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {name: device for name, device in load_recipes().devices.items() if not device.rest}
    device = offer_of(binary, recipes).devices[kind.device]
    able = replace(binary, devices=frozenset(types_of(binary.path)))
    trial = DeviceTrial(binary=able, machine="pc", accel="tcg", scope=ProcessScope())
    assert trial.of(device).status is Status.JUDGED
    monkeypatch.setattr(kind.program, "program", "program-that-is-not-there")
    tried = DeviceTrial(binary=able, machine="q35", accel="tcg", scope=ProcessScope()).of(device)
    assert (tried.status, tried_text(tried)) == (
        Status.NEEDS,
        f"program-that-is-not-there, which is in Debian's package {kind.package}",
    )
    workdir = new_workdir()
    with pytest.raises(MissingError, match=re.escape(f"Debian's package {kind.package}")):
        Vm(kind.machine(binary).command(binary.path, workdir, firmware_sink()), workdir=workdir)
    assert not workdir.exists()


@pytest.mark.parametrize("kind", ["tpm"], indirect=True)
def test_it_stands_behind_the_walls_of_its_qemu_and_ends_with_it(kind: Kind, binary: QemuBinary) -> None:
    walls = standing(binary.path)
    workdir = new_workdir()
    machine = kind.machine(binary, Path("brought.pack"))
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir):
        beside = kind.beside()
        status = Path(f"/proc/{beside.pid}/status").read_text()
        folder = Path(next(word for word in beside.cmdline() if word.startswith("dir=")).removeprefix("dir="))
        if walls.user:
            assert "Uid:\t0\t" not in status
        if walls.powerless:
            assert re.search(r"CapEff:\t0000000000(000000|080000)\n", status)
        if walls.network:
            assert Path(f"/proc/{beside.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        assert folder.is_dir()
    assert not beside.is_running()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["disk"], indirect=True)
def test_it_has_an_empty_disk_of_its_own_and_ends_with_its_qemu(kind: Kind, binary: QemuBinary) -> None:
    workdir = new_workdir()
    with Vm(kind.machine(binary).command(binary.path, workdir, firmware_sink()), workdir=workdir):
        beside = kind.beside()
        (image,) = [word.rpartition("=")[2] for word in beside.cmdline() if "driver=file" in word]
        assert Path(image).stat().st_size == 1 << 20
    assert not beside.is_running()
    assert not Path(image).parent.exists()


def test_it_dies_with_a_harness_that_is_killed(
    kind: Kind,
    binary: QemuBinary,
    strays: Callable[[], list[int]],
    eventually: Callable[..., None],
    scratch: Path,
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.params["kind"]
    script = (
        "import time; from tests.integration.test_programs_beside import *\n"
        "from harness.qemu.binary import probe_binary\n"
        f"path = {binary.path!r}; machine = KINDS[{name!r}].machine(probe_binary(Path(path)))\n"
        "vm = Vm(machine.command(path, Path('/x'), firmware_sink())); print('up', flush=True); time.sleep(60)"
    )
    env = {**os.environ, "TMPDIR": str(scratch)}
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert {psutil.Process(pid).name() for pid in strays()} >= {kind.program.program}
        parent.kill()
    eventually(lambda: not strays(), "QEMU and the program beside it are gone")


def test_the_script_of_a_bundle_starts_one_too(kind: Kind, binary: QemuBinary, tmp_path: Path) -> None:
    """What it loads does not fail, which it says; a QEMU without the program would not have started."""
    machine = kind.machine(binary)
    workdir = new_workdir()
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        migrate_to_socket(vm, workdir / "migrate.sock", tmp_path / "stream", timeout_s=30)
    with open_stream(tmp_path / "stream") as stream:
        (tmp_path / "head.bin").write_bytes(stream.head)
        (tmp_path / "body.bin").write_bytes(stream.buffer[len(stream.head) :])
        own = b"".join(section.encode() for section in stream.devices if re.fullmatch(kind.own, section.idstr))
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
        "sections": [kind.section],
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
