# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest-fault oracle on a real QEMU: it passes a healthy guest and catches each kind of broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from made_cells import words as in_words

from harness.devices.recipe import load_recipes
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.engines.secondary import Secondary
from harness.engines.setting import Setting
from harness.experiments.guestlife import CHECK_TIMEOUT_S, GuestLife, guest_life
from harness.guests.console import Console
from harness.guests.machine import DiskKind
from harness.names import USUAL_PHASES
from harness.oracles.guestfault import judge_life
from harness.oracles.oracle import Opinion
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, encode, label_of, sections_for
from harness.stream.model import Section

#: Kills the secondary of some builds at its first load on q35.
LPC = frozenset({"0000:00:1f.0/ICH9LPC"})
ANSWER_TIMEOUT_S = 20.0
#: A check of an idle guest takes two seconds; in a busy one the default is left as it is.
IDLE_CHECK_S = 12.0
ALL = {"ahci", "virtio-blk", "virtio-net", "platform"}

Live = Callable[..., GuestLife]


@pytest.fixture
def live(binary: QemuBinary, ability: ColoAbility) -> Live:
    """Runs the experiment on a pack: ``live(pack, "bound", loads=3)``."""

    def run(pack: StatePack, phase: str, excluded: frozenset[str] = frozenset(), **more: object) -> GuestLife:
        setting = Setting(
            binary=binary,
            dialect=ability.dialect,
            resets=bool(ability.resets_before_load),
            buffers=Buffers(pack),
            phase=phase,
            excluded=excluded,
            scope=ProcessScope(),
        )
        return guest_life(
            setting,
            **more,  # type: ignore[arg-type]
        )

    return run


def verdicts(judged: dict[str, Opinion]) -> dict[str, Verdict]:
    return {device: judgement.verdict for device, judgement in judged.items()}


# --- Healthy -----------------------------------------------------------------------------------------------


def assert_healthy(life: GuestLife) -> None:
    assert life.loads_acked == life.loads_asked
    judged = judge_life(life)
    assert verdicts(judged) == dict.fromkeys(ALL, Verdict.OK), judged
    assert len(life.clocks) == 2
    assert {check.device for check in life.checks} == ALL - {"platform"}


@pytest.mark.parametrize("phase", USUAL_PHASES)
def test_a_healthy_guest_passes_on_pc(live: Live, pc_pack: StatePack, phase: str) -> None:
    assert_healthy(live(pc_pack, phase))


@pytest.mark.parametrize("phase", ["bound", "busy"])
def test_a_healthy_guest_passes_on_q35(live: Live, q35_pack: StatePack, phase: str) -> None:
    assert_healthy(live(q35_pack, phase, LPC))


def test_a_healthy_guest_passes_without_replication(live: Live, pc_pack: StatePack) -> None:
    life = live(pc_pack, "bound", loads=5, disks=DiskKind.PLAIN)
    assert life.disks is DiskKind.PLAIN
    assert_healthy(life)


# --- Broken on purpose -------------------------------------------------------------------------------------


def spoiled(pack: StatePack, phase: str, labels: frozenset[str], other: str) -> None:
    """Adds a recording ``spoiled``: ``phase``, but some sections as they are in phase ``other``."""
    theirs = {label_of(section): section for section in pack.recordings[other].sections}
    recording = pack.recordings[phase]
    assert labels <= set(theirs)

    def choose(section: Section) -> Section:
        return theirs[label_of(section)] if label_of(section) in labels else section

    pack.recordings["spoiled"] = replace(
        recording, name="spoiled", sections=tuple(choose(section) for section in recording.sections)
    )


@pytest.mark.parametrize(
    ("device", "phase", "other", "words"),
    [
        ("ahci", "busy", "unbound", "no request of sda was completed"),
        ("ahci", "bound", "kernel", "reading the pattern of sda"),
        ("virtio-blk", "bound", "kernel", "reading the pattern of vda"),
        ("virtio-net", "busy", "kernel", "fewer than ten packets came back"),
    ],
)
def test_a_device_of_another_phase_is_caught(
    live: Live, pc_pack: StatePack, device: str, phase: str, other: str, words: str
) -> None:
    with StatePack(pc_pack.path) as pack:
        spoiled(pack, phase, frozenset(pack.sections_of(device)), other)
        life = live(
            pack, phase, loads=3, last="spoiled", check_timeout_s=CHECK_TIMEOUT_S if phase == "busy" else IDLE_CHECK_S
        )
    judged = judge_life(life)
    assert life.loads_acked == 3, life
    if set(judged) == {"platform"}:
        # the driver happened to have a command for the control queue, and waits for its end with the CPU held: nobody
        # answers, and after 20 s the kernel says soft lockup
        assert device == "virtio-net"
        assert verdicts(judged) == {"platform": Verdict.GUEST_FAULT}, judged
        return
    assert verdicts(judged) == {**dict.fromkeys(ALL, Verdict.OK), device: Verdict.GUEST_FAULT}, judged
    assert words in in_words(judged[device]), judged[device]


def test_a_timer_of_another_phase_is_caught(live: Live, pc_pack: StatePack) -> None:
    with StatePack(pc_pack.path) as pack:
        spoiled(pack, "bound", frozenset({"apic", "hpet"}), "firmware")
        judged = judge_life(live(pack, "bound", loads=3, last="spoiled"))
    assert judged["platform"].verdict is Verdict.GUEST_FAULT
    # a disk that waits for a timer that never fires is not the disk's fault
    assert set(verdicts(judged).values()) - {Verdict.OK} == {Verdict.GUEST_FAULT}
    assert [device for device, j in judged.items() if j.verdict is Verdict.GUEST_FAULT] == ["platform"]


def test_a_disk_with_other_content_is_caught(live: Live, pc_pack: StatePack) -> None:
    devices = [replace(device, patterns={}) for device in load_recipes().devices.values()]
    judged = judge_life(live(pc_pack, "bound", loads=3, devices=devices))
    faulty = {device for device, j in judged.items() if j.verdict is Verdict.GUEST_FAULT}
    assert faulty == {"ahci", "virtio-blk"}
    assert "differ" in in_words(judged["ahci"])


def test_a_load_that_is_refused_is_no_guest_fault(live: Live, pc_pack: StatePack) -> None:
    with StatePack(pc_pack.path) as pack:
        recording = pack.recordings["bound"]
        sections = tuple(replace(s, version_id=99) if s.idstr == "i8254" else s for s in recording.sections)
        pack.recordings["spoiled"] = replace(recording, name="spoiled", sections=sections)
        life = live(pack, "bound", loads=3, last="spoiled")
    assert life.loads_acked == 2
    assert life.broken is not None
    assert life.broken.load == 3
    assert verdicts(judge_life(life)) == {"platform": Verdict.REJECT}


# --- Disks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "kept"), [(DiskKind.REPLICATION, False), (DiskKind.PLAIN, True)])
@pytest.mark.parametrize("disk", ["sda", "vda"])
def test_replication_takes_a_write_back_and_plain_disks_keep_it(
    binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack, kind: DiskKind, kept: bool, disk: str
) -> None:
    recording = pc_pack.recordings["bound"]
    devices = encode(sections_for(recording, GuestMode.RUNNING))
    machine = replace(pc_pack.machine, disks=kind)
    with Secondary(binary, machine, ability.dialect, timeout_s=ANSWER_TIMEOUT_S, scope=ProcessScope()) as secondary:
        secondary.start(recording.head, incoming_body(recording, pc_pack.ram_whole("bound"), devices))
        secondary.primary.checkpoint(devices)
        console = Console(secondary.vm.console)
        console.run(f"pattern_write {disk} && same_blocks {disk} 512")
        secondary.primary.checkpoint(devices)
        printed = console.run(f"pattern pattern {disk} > /tmp/want.{disk}; same_blocks {disk} 512; echo same=$?")
        assert ("same=0" in printed) is kept
        # and it can be written again
        console.run(f"pattern_write {disk} && same_blocks {disk} 512")
