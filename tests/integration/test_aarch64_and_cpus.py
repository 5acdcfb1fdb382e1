# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of another architecture, and guests of more than one CPU: recorded, parked, loaded and judged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_cells import words

from harness.arch import AARCH64, X86_64
from harness.arch.accel import prove_accel
from harness.devices.saved import Comparison
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility, probe_colo
from harness.engines.secondary import Secondary
from harness.experiments.drift import DriftExperiment, DriftRun
from harness.oracles.drift import judge_drift, load_rules, unused_rules
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, cpu_labels, encode, sections_for

LOADS = 10
#: Longer than a second, so that a clock with seconds moves.
IDLE_S = 1.2

Done = Callable[..., object]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A guest that was recorded for this module."""

    binary: QemuBinary
    ability: ColoAbility
    pack: StatePack

    def secondary(self, phase: str) -> Secondary:
        """A secondary with the parked guest of a phase."""
        buffers, recording = Buffers(self.pack), self.pack.recordings[phase]
        opened = Secondary(self.binary, buffers.machine, self.ability.dialect, timeout_s=20.0, scope=ProcessScope())
        whole = buffers.whole_state(phase, GuestMode.PARKED)
        opened.start(recording.head, incoming_body(recording, buffers.ram_whole(phase), whole))
        return opened


@pytest.fixture(scope="module")
def virt(
    aarch64_qemu: Path,
    probed: Callable[[Path], QemuBinary],
    postload: Callable[..., Done],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Recorded]:
    """A guest of aarch64, in two phases."""
    path = tmp_path_factory.mktemp("virt") / "virt.pack"
    words = ("--device", "virtio-blk,virtio-net,platform", "--phase", "kernel,bound", "--out", path)
    _worked(postload("record", "--machine", "virt", *words))
    binary = probed(aarch64_qemu)
    with StatePack(path) as pack:
        yield Recorded(binary=binary, ability=probe_colo(binary), pack=pack)


@pytest.fixture(scope="module")
def two_cpus(
    binary: QemuBinary, ability: ColoAbility, postload: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    """A guest of ``pc`` with two CPUs."""
    path = tmp_path_factory.mktemp("two") / "two.pack"
    words = ("--device", "virtio-blk,platform", "--phase", "kernel,bound", "--out", path)
    _worked(postload("record", "--machine", "pc", "--cpus", 2, "--qemu", binary.path, *words))
    with StatePack(path) as pack:
        yield Recorded(binary=binary, ability=ability, pack=pack)


def _worked(done: object) -> dict[str, object]:
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    text = done.stdout  # type: ignore[attr-defined]
    return json.loads(text) if text.startswith("{") else {}


def registers(vm: Vm) -> str:
    """Of all CPUs, as QEMU prints them."""
    vm.qmp("stop")
    command: dict[str, Any] = {"command-line": "info registers -a"}
    return str(vm.qmp("human-monitor-command", **command))


# --- aarch64 -------------------------------------------------------------------------------------------------


def test_an_accelerator_is_proven_by_code_of_the_guests_architecture(virt: Recorded, binary: QemuBinary) -> None:
    assert (virt.binary.target, binary.target) == ("aarch64", "x86_64")
    for each in (virt.binary, binary):
        state = prove_accel(each, "tcg")
        assert state.usable, state


def test_the_pack_is_of_a_guest_that_started_without_firmware(virt: Recorded) -> None:
    assert virt.pack.architecture is AARCH64
    assert virt.pack.manifest.machine.startswith("virt-")
    assert list(virt.pack.phases) == ["kernel", "bound"]
    assert {device.name for device in virt.pack.manifest.devices} == {"virtio-blk", "virtio-net", "platform"}
    platform = virt.pack.sections_of("platform")
    assert {"cpu", "cpu_common", "arm_gic", "pl011", AARCH64.leak_control, AARCH64.witness.section} <= set(platform)


def test_the_head_holds_the_page_bits_and_the_probe_still_found_a_dialect(virt: Recorded) -> None:
    assert b"configuration/target-page-bits" in virt.pack.recordings["bound"].head
    assert virt.ability.resets_before_load is not None


def test_loads_of_every_row_pass(virt: Recorded, postload: Callable[..., Done], tmp_path: Path) -> None:
    words = ("--schedule", "same", "--quick", "--loads", LOADS, "--out", tmp_path / "out", "--json")
    document = _worked(postload("replay", virt.pack.source, *words))
    verdicts = [cell["outcome"]["verdict"] for cell in document["cells"]]  # type: ignore[attr-defined]
    assert verdicts == ["ok"] * 6


@pytest.mark.parametrize(("which", "cpus"), [("virt", 1), ("two_cpus", 2)])
def test_no_cpu_of_a_parked_guest_runs(which: str, cpus: int, request: pytest.FixtureRequest) -> None:
    recorded: Recorded = request.getfixturevalue(which)
    recording = recorded.pack.recordings["bound"]
    with recorded.secondary("bound") as opened:
        for _ in range(3):
            opened.primary.checkpoint(encode(sections_for(recording, GuestMode.PARKED)))
        before = registers(opened.vm)
        opened.vm.qmp("cont")
        time.sleep(0.3)
        assert registers(opened.vm) == before
    assert before.count("CPU#") == cpus


@pytest.mark.parametrize("which", ["virt", "two_cpus"])
def test_a_guest_that_is_not_parked_runs(
    which: str, request: pytest.FixtureRequest, eventually: Callable[..., None]
) -> None:
    recorded: Recorded = request.getfixturevalue(which)
    with recorded.secondary("bound") as opened:
        opened.primary.checkpoint(encode(recorded.pack.recordings["bound"].sections))
        before = registers(opened.vm)

        def move() -> bool:
            opened.vm.qmp("cont")
            time.sleep(0.1)
            return registers(opened.vm) != before  # which stops it

        eventually(move, "its registers move")


def test_what_moves_by_nature_on_virt_has_rules_and_they_are_needed(virt: Recorded) -> None:
    runs = [_drifted(virt, phase) for phase in ("kernel", "bound")]
    rules = load_rules()
    told = [words(judged) for run in runs for judged in judge_drift(run, rules).values()]
    verdicts = {judged.verdict for run in runs for judged in judge_drift(run, rules).values()}
    assert verdicts == {Verdict.OK}, told
    own = [rule for rule in rules if rule.machine.startswith("virt")]
    assert own
    # from save to save the host's clock gains milliseconds, which make a second by chance; since the recording, many
    left = [rule.section for rule, comparison in unused_rules(own, runs) if comparison is Comparison.RECORDING]
    assert left == []


def _drifted(recorded: Recorded, phase: str) -> DriftRun:
    run = DriftExperiment(
        binary=recorded.binary,
        dialect=recorded.ability.dialect,
        resets=bool(recorded.ability.resets_before_load),
        buffers=Buffers(recorded.pack),
        phase=phase,
        excluded=frozenset(),
        loads=3,
        idle_s=IDLE_S,
    ).run()
    assert run.broken is None
    return run


# --- Two CPUs ------------------------------------------------------------------------------------------------


def test_every_cpu_has_its_sections_and_they_are_the_platforms(two_cpus: Recorded) -> None:
    recording = two_cpus.pack.recordings["bound"]
    assert two_cpus.pack.architecture is X86_64
    assert cpu_labels(recording) == {"cpu", "cpu#1", "cpu_common", "cpu_common#1"}
    assert cpu_labels(recording) | {"apic", "apic#1"} <= set(two_cpus.pack.sections_of("platform"))


def test_loads_of_two_cpus_pass(two_cpus: Recorded, postload: Callable[..., Done], tmp_path: Path) -> None:
    words = ("--schedule", "same,alternate", "--guest-mode", "running,parked", "--quick", "--loads", LOADS)
    document = _worked(postload("replay", two_cpus.pack.source, *words, "--out", tmp_path / "out", "--json"))
    verdicts = [cell["outcome"]["verdict"] for cell in document["cells"]]  # type: ignore[attr-defined]
    assert verdicts == ["ok"] * 12
