# SPDX-License-Identifier: GPL-2.0-or-later
"""TPMs on a real QEMU, each with a swtpm beside it: one recording, of a guest that takes random numbers from it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.arch.accel import choose_accel
from harness.devices.recipe import load_recipes
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.experiments.drift import DriftExperiment
from harness.guests.build import build_guest
from harness.guests.recipe import load_recipe
from harness.oracles.drift import judge_drift, rules_for
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.swtpm import TpmEmulator
from harness.results.verdict import Verdict
from harness.state.catalogue import offer_of
from harness.state.recordings import Recordings, machine_names, planned_guests, recording_plan

Done = subprocess.CompletedProcess[str]

DEVICE = "tpm-tis"
PHASES = ("firmware", "kernel", "bound", "busy")


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
