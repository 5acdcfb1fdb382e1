# SPDX-License-Identifier: GPL-2.0-or-later
"""TPMs on a real QEMU, each with a swtpm beside it: one recording, of a guest that takes random numbers from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.arch.accel import choose_accel
from harness.devices.backends import Tpm
from harness.devices.recipe import load_recipes
from harness.devices.rules import Status
from harness.devices.types import types_of
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.errors import MissingError
from harness.experiments.drift import DriftExperiment
from harness.guests.build import build_guest
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.guests.recipe import load_recipe
from harness.oracles.drift import judge_drift, rules_for
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.swtpm import TpmEmulator
from harness.qemu.vm import Vm, migrate_to_socket
from harness.qemu.walls import standing
from harness.report.catalogue import tried_text
from harness.results.verdict import Verdict
from harness.state.catalogue import DeviceTrial, offer_of
from harness.state.recordings import Recordings, machine_names, planned_guests, recording_plan
from harness.stream.reader import open_stream

Done = subprocess.CompletedProcess[str]

DEVICE = "tpm-tis"
PHASES = ("firmware", "kernel", "bound", "busy")
BARE = (PlacedDevice(id="chip", type=DEVICE, backends={"tpmdev": "tpm"}),)


@pytest.fixture(scope="module", autouse=True)
def emulator() -> str:
    """Without it the tests are skipped; under CI they fail."""
    path = TpmEmulator.path()
    if path is None and os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip("there is no swtpm")
    assert path is not None, "CI has to have a swtpm"
    return path


@pytest.fixture(scope="module")
def tpm_pack(binary: QemuBinary) -> Iterator[StatePack]:
    """As ``postload matrix --device tpm-tis`` finds it or makes it."""
    recipes = {name: device for name, device in load_recipes().devices.items() if not device.rest}
    family, name = machine_names(binary, "pc")
    offer = offer_of(binary, recipes)
    rest = next(device for device in load_recipes().devices.values() if device.rest)
    (guest,) = planned_guests(name, family, [offer.devices[DEVICE], rest], PHASES).guests
    plan = recording_plan(
        binary=replace(binary, devices=binary.devices | offer.types.keys()),
        accel=choose_accel(binary, "auto").name,
        guest=build_guest(load_recipe().widened()),
        planned=guest,
        phases=PHASES,
    )
    with Recordings(fresh=False, stage=lambda _: None, message=lambda _: None).pack(plan) as pack:
        yield pack


def bare_machine(binary: QemuBinary, foreign: Path | None = None) -> Machine:
    family, name = machine_names(binary, "pc")
    plan = GuestPlan(machine=name, family=family, memory_mib=16, devices=BARE, backends={"tpm": Tpm()})
    return Machine(plan=plan, accel="tcg", foreign=foreign)


def test_its_driver_is_bound_and_made_to_move(tpm_pack: StatePack) -> None:
    """A phase that is not in the recording, or that the device missed, would have its reason here."""
    (device,) = [each for each in tpm_pack.manifest.devices if each.name == DEVICE]
    assert (device.unreached, device.drivers) == ([], ["tpm_tis"])
    assert sorted(device.sections) == ["tpm-emulator", DEVICE]
    assert set(PHASES) <= set(tpm_pack.phases)


def test_what_it_holds_is_loaded_again_and_again(
    tpm_pack: StatePack, postload: Callable[..., Done], tmp_path: Path
) -> None:
    words = ("--machine", "pc", "--device", DEVICE, "--phase", ",".join(PHASES), "--schedule", "same")
    done = postload("matrix", *words, "--loads", 20, "--quick", "--json", "--out", tmp_path / "out")
    cells = json.loads(done.stdout)["cells"]
    found = {cell["key"]["phases"][0]: (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) for cell in cells}
    assert found == dict.fromkeys(PHASES, ("ok", 20)), done.stderr
    assert "recording" not in done.stderr


def test_its_clock_alone_moves(tpm_pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
    run = DriftExperiment(
        binary=binary,
        dialect=ability.dialect,
        resets=bool(ability.resets_before_load),
        buffers=Buffers(tpm_pack),
        phase="busy",
        excluded=frozenset(),
        loads=5,
    ).run()
    recipes = [device.recipe for device in tpm_pack.manifest.devices]
    owned = {device.name: device.sections for device in tpm_pack.manifest.devices}
    assert judge_drift(run, rules_for(recipes, owned))["tpm-emulator"].verdict is Verdict.OK
    assert judge_drift(run, ())["tpm-emulator"].verdict is Verdict.DRIFT


def test_a_host_without_the_program_is_told_its_package(
    binary: QemuBinary, tpm_pack: StatePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TpmEmulator, "program", "swtpm-that-is-not-there")
    able = replace(binary, devices=frozenset(types_of(binary.path)))
    device = next(each.recipe for each in tpm_pack.manifest.devices if each.name == DEVICE)
    tried = DeviceTrial(binary=able, machine="q35", accel="tcg", scope=ProcessScope()).of(device)
    assert tried.status is Status.NEEDS
    assert tried_text(tried) == "swtpm-that-is-not-there, which is in Debian's package swtpm"
    workdir = new_workdir()
    with pytest.raises(MissingError, match="Debian's package swtpm"):
        Vm(bare_machine(binary).command(binary.path, workdir, firmware_sink()), workdir=workdir)
    assert not workdir.exists()


def test_it_stands_behind_the_walls_of_its_qemu_and_ends_with_it(binary: QemuBinary) -> None:
    walls = standing(binary.path)
    workdir = new_workdir()
    with Vm(bare_machine(binary, Path("brought.pack")).command(binary.path, workdir, firmware_sink()), workdir=workdir):
        (beside,) = [child for child in psutil.Process().children() if child.name() == "swtpm"]
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


def test_it_dies_with_a_harness_that_is_killed(
    binary: QemuBinary, strays: Callable[[], list[int]], eventually: Callable[..., None], scratch: Path
) -> None:
    script = (
        "import time; from tests.integration.test_tpm import *; from harness.qemu.binary import probe_binary\n"
        f"path = {binary.path!r}; machine = bare_machine(probe_binary(Path(path)))\n"
        "vm = Vm(machine.command(path, Path('/x'), firmware_sink())); print('up', flush=True); time.sleep(60)"
    )
    env = {**os.environ, "TMPDIR": str(scratch)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env, cwd=root
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert {psutil.Process(pid).name() for pid in strays()} >= {"swtpm"}
        parent.kill()
    eventually(lambda: not strays(), "QEMU and swtpm are gone")


def test_the_script_of_a_bundle_starts_one_too(binary: QemuBinary, tmp_path: Path) -> None:
    """What it loads does not fail, which it says; a QEMU without its TPM would not have started."""
    machine = bare_machine(binary)
    workdir = new_workdir()
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        migrate_to_socket(vm, workdir / "migrate.sock", tmp_path / "stream", timeout_s=30)
    with open_stream(tmp_path / "stream") as stream:
        (tmp_path / "head.bin").write_bytes(stream.head)
        (tmp_path / "body.bin").write_bytes(stream.buffer[len(stream.head) :])
        own = b"".join(section.encode() for section in stream.devices if section.idstr in ("tpm-emulator", DEVICE))
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
        "sections": ["tpm-emulator"],
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
