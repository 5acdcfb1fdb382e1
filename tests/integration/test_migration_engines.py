# SPDX-License-Identifier: GPL-2.0-or-later
"""Postcopy, a migration between two real QEMUs, and the life after an ordinary load: what is healthy passes, what is
made wrong is caught where it happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import words

from harness.colo.messages import Step
from harness.colo.symptom import Doing
from harness.engines.buffers import Buffers
from harness.engines.colo import Pace
from harness.engines.incoming import State
from harness.engines.migration import RealMigration
from harness.engines.postcopy import Postcopy, probe_postcopy
from harness.engines.probe import probe_colo
from harness.experiments.plainlife import plain_life
from harness.lanes.checks import OracleName, perform
from harness.lanes.judge import Bench
from harness.lanes.migrations import migration_check
from harness.oracles.guestfault import judge_life
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.scope import ProcessScope
from harness.results.verdict import Verdict
from harness.state.transforms import label_of
from harness.stream.model import Section

BLK = "0000:00:04.0/virtio-blk"


@pytest.fixture
def pc(pc_pack: StatePack) -> Buffers:
    return Buffers(pc_pack)


@pytest.fixture
def postcopied(binary: QemuBinary, pc: Buffers) -> Buffers:
    """The recording, on a host that can do postcopy."""
    ability = probe_postcopy(binary, pc.machine, ProcessScope())
    if not ability.usable:
        pytest.skip(f"no postcopy here: {ability.lack}")
    return pc


def altered(buffers: Buffers, phase: str, change: Callable[[Section], Section]) -> Buffers:
    """The same pack with some sections of a phase made otherwise."""
    pack = copy.copy(buffers.pack)
    recording = pack.recordings[phase]
    sections = tuple(change(section) for section in recording.sections)
    assert sections != recording.sections
    pack.recordings = {**pack.recordings, phase: replace(recording, sections=sections)}
    return Buffers(pack)


def unknown_version(section: Section) -> Section:
    return replace(section, version_id=99) if label_of(section) == BLK else section


def test_a_healthy_guest_lives_through_postcopy_and_fetches_its_pages(binary: QemuBinary, postcopied: Buffers) -> None:
    seen = Postcopy(binary=binary, state=State(buffers=postcopied, phase="busy"), processes=2).run()
    assert judge(seen).verdict is Verdict.OK, (seen.broken, seen.log)
    assert (seen.loads_asked, seen.loads_acked, seen.exit, seen.events) == (2, 2, None, ())
    # virtio looks into its rings while it is loaded, and a guest that runs touches far more than that
    assert seen.pages.while_loading > 0
    assert seen.pages.by_fault > seen.pages.while_loading
    assert seen.pages.late > seen.pages.by_fault


def test_most_pages_may_come_before_the_switch(binary: QemuBinary, postcopied: Buffers) -> None:
    seen = Postcopy(binary=binary, state=State(buffers=postcopied, phase="bound"), late_every=4).run()
    assert judge(seen).verdict is Verdict.OK, (seen.broken, seen.log)
    assert seen.pages.early > seen.pages.late > 0


def test_a_load_that_fails_inside_the_package_is_said_to_be_there(binary: QemuBinary, postcopied: Buffers) -> None:
    wrong = altered(postcopied, "bound", unknown_version)
    seen = Postcopy(binary=binary, state=State(buffers=wrong, phase="bound")).run()
    found = judge(seen)
    assert (found.verdict, found.named, seen.loads_acked) == (Verdict.REJECT, BLK, 0)
    assert seen.broken is not None
    assert seen.broken.step is Step.LOAD
    assert seen.broken.symptom.doing is Doing.PACKAGE


def test_a_stream_that_fails_before_the_package_is_said_to_be_there(binary: QemuBinary, postcopied: Buffers) -> None:
    pack = copy.copy(postcopied.pack)
    recording = pack.recordings["bound"]
    # a block of another name: 7.2 and others say "Unknown ramblock"
    setup = recording.setup.replace(b"pc.ram", b"pc.rom")
    pack.recordings = {**pack.recordings, "bound": replace(recording, setup=setup)}
    seen = Postcopy(binary=binary, state=State(buffers=Buffers(pack), phase="bound")).run()
    assert judge(seen).verdict is Verdict.REJECT
    assert seen.broken is not None
    assert seen.broken.step is Step.INCOMING


@pytest.mark.parametrize("postcopy", [False, True])
def test_a_guest_moves_between_two_real_processes(
    binary: QemuBinary, request: pytest.FixtureRequest, postcopy: bool
) -> None:
    buffers = request.getfixturevalue("postcopied" if postcopy else "pc")
    state = State(buffers=buffers, phase="busy")
    seen = RealMigration(source=binary, destination=binary, state=state, postcopy=postcopy).run()
    assert judge(seen).verdict is Verdict.OK, (seen.broken, seen.log)
    assert (seen.loads_acked, seen.exit, seen.events) == (1, None, ())
    assert seen.log.splitlines()[-1].startswith("source: completed")


def another_machine(pack: StatePack) -> Buffers:
    """The pack for a machine whose virtio-blk has no MSI-X, so that its ``PCIDevice`` refuses the recorded one."""
    without_vectors = Option(name="global", props={"virtio-blk-pci.vectors": 0})
    return Buffers(pack, replace(pack.machine, extra=(without_vectors,)))


@pytest.mark.parametrize("postcopy", [False, True])
def test_a_destination_that_is_another_machine_refuses_a_real_source_too(
    binary: QemuBinary, request: pytest.FixtureRequest, postcopy: bool
) -> None:
    pack: StatePack = request.getfixturevalue("postcopied" if postcopy else "pc").pack
    state = State(buffers=another_machine(pack), phase="bound")
    seen = RealMigration(source=binary, destination=binary, state=state, postcopy=postcopy).run()
    found = judge(seen)
    # how the process comes to its end, if it does, depends on which of its threads is quicker
    assert found.verdict is Verdict.REJECT, seen.log
    assert found.named in ((BLK, None) if postcopy else (BLK,)), seen.log
    assert seen.broken is not None
    assert seen.broken.step is (Step.LOAD if postcopy else Step.INCOMING)
    assert seen.loads_acked == 0


@pytest.mark.parametrize(("version", "names_it"), [("10.0", True), ("11.1", False)])
def test_a_newer_destination_that_refuses_in_postcopy_is_a_reject_of_its_section(
    version: str,
    names_it: bool,
    installed_qemu: Callable[[str], Path],
    probed: Callable[[Path], QemuBinary],
    recorded: Callable[[QemuBinary, str], StatePack],
) -> None:
    qemu = probed(installed_qemu(version))
    pack = recorded(qemu, "pc")
    ability = probe_postcopy(qemu, pack.machine, ProcessScope())
    if not ability.usable:
        pytest.skip(f"no postcopy here: {ability.lack}")
    buffers = another_machine(pack)
    for _ in range(4):
        state = State(buffers=buffers, phase="bound")
        found = judge(RealMigration(source=qemu, destination=qemu, state=state, postcopy=True, timeout_s=15.0).run())
        # 11.1 says no device's name when a load fails in the package
        assert (found.verdict, found.named) == (Verdict.REJECT, BLK if names_it else None), (words(found), found.log)

    bench = Bench(binary=qemu, ability=probe_colo(qemu), buffers=buffers, pace=Pace(), scope=ProcessScope())
    rows = ["virtio-blk", "ahci", "platform"]
    cells = {cell.device: cell for cell in perform(migration_check(OracleName.POSTCOPY, ["bound"], rows), bench)}
    assert {row: cell.verdict for row, cell in cells.items()} == {
        "virtio-blk": Verdict.REJECT,
        "ahci": Verdict.OK,
        "platform": Verdict.OK,
    }
    assert cells["virtio-blk"].blamed == (BLK,)


def test_the_guest_says_that_it_is_well_after_an_ordinary_load(binary: QemuBinary, pc: Buffers) -> None:
    life = plain_life(binary, pc, "bound", scope=ProcessScope())
    found = judge_life(life)
    assert {device: words(judged) for device, judged in found.items()} == dict.fromkeys(
        ("platform", "ahci", "virtio-blk", "virtio-net"), ""
    )
    assert len(life.clocks) == 2


def test_a_disk_that_stands_still_after_an_ordinary_load_is_a_fault_of_its_guest(
    binary: QemuBinary, pc: Buffers
) -> None:
    life = plain_life(binary, pc, "bound", scope=ProcessScope(), excluded=frozenset({BLK}), check_timeout_s=10.0)
    found = judge_life(life)
    assert found["virtio-blk"].verdict is Verdict.GUEST_FAULT
    assert found["ahci"].verdict is Verdict.OK


def test_a_load_that_breaks_leaves_nobody_to_ask(binary: QemuBinary, pc: Buffers) -> None:
    life = plain_life(binary, altered(pc, "bound", unknown_version), "bound", scope=ProcessScope())
    found = judge_life(life)
    assert set(found) == {"platform"}
    assert found["platform"].verdict is Verdict.REJECT
