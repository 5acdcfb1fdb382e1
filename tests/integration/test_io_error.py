# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail for real: the halted state is recorded, loaded and resumed; a secondary's own disk fails too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import words

from harness.devices.phases import Missed
from harness.devices.recipe import load_recipes
from harness.engines.buffers import Buffers
from harness.engines.colo import Pace
from harness.engines.probe import ColoAbility
from harness.engines.setting import Setting
from harness.experiments.interview import recorded_devices
from harness.experiments.ioerror import BUSY_SECTOR, IoErrors, io_errors
from harness.guests.build import build_guest
from harness.guests.recipe import load_recipe as load_guest
from harness.lanes.checks import perform
from harness.lanes.faileddisks import io_error_check
from harness.lanes.judge import Bench, Exclusion, ExclusionReason
from harness.oracles.ioerror import judge_io_errors
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.results.verdict import Verdict
from harness.state.catalogue import offer_of
from harness.state.recorder import CutShort, Plan, record
from harness.state.recordings import planned_guests, recording_plan

ASKED = {"ahci": "disk_failed sda", "virtio-blk": "disk_failed vda"}
NODES = ["ahci-disk", "virtio-blk-disk"]
FAULTS = {node: sector for device in load_recipes().devices.values() for node, sector in device.failing().items()}

Fail = Callable[..., IoErrors]


@pytest.fixture(scope="module")
def io_pack(
    plan_of: Callable[[QemuBinary, str], Plan], binary: QemuBinary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StatePack]:
    plan = replace(plan_of(binary, "pc"), phases=("busy", "io-error"))
    with StatePack(record(plan, tmp_path_factory.mktemp("io") / "pack")) as pack:
        yield pack


@pytest.fixture
def fail(binary: QemuBinary, ability: ColoAbility, io_pack: StatePack) -> Fail:
    def run(phase: str, faults: dict[str, int], loads: int, **more: object) -> IoErrors:
        setting = Setting(
            binary=binary,
            dialect=ability.dialect,
            resets=bool(ability.resets_before_load),
            buffers=Buffers(io_pack),
            phase=phase,
            excluded=frozenset(),
            scope=ProcessScope(),
        )
        return io_errors(
            setting,
            faults=faults,
            loads=loads,
            **more,  # type: ignore[arg-type]
        )

    return run


def test_both_disks_hold_a_request_back_and_it_succeeds_on_healthy_disks(fail: Fail) -> None:
    seen = fail("io-error", {}, 5, asked=ASKED)
    assert judge_io_errors(seen).verdict is Verdict.OK, seen
    assert seen.loads_acked == 5
    # no retry, no guest waiting for ever: dd ended well
    assert seen.requests == dict.fromkeys(ASKED, "answered")


@pytest.mark.parametrize("node", NODES)
def test_the_halted_state_sends_its_request_again(fail: Fail, node: str) -> None:
    # without a checkpoint: the guest that the incoming stream brings asks nothing new of this sector
    seen = fail("io-error", {node: FAULTS[node]}, 0)
    assert judge_io_errors(seen).verdict is Verdict.OK, seen
    assert seen.after is not None
    assert set(seen.after.held) == {node}
    assert seen.events.index("BLOCK_IO_ERROR") < seen.events.index("COLO_EXIT")


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("once", [False, True])
def test_a_secondary_that_stopped_for_its_disk_can_fail_over(fail: Fail, node: str, once: bool) -> None:
    seen = fail("busy", {node: BUSY_SECTOR}, 1, once=once)
    assert judge_io_errors(seen).verdict is Verdict.OK, seen
    assert [interval.status for interval in seen.intervals] == ["io-error"]
    assert seen.after is not None
    assert seen.after.status == ("running" if once else "io-error")


@pytest.mark.parametrize("node", NODES)
def test_what_the_next_checkpoint_makes_of_a_failed_disk_is_told(fail: Fail, node: str) -> None:
    """Some builds abort; one that does not has to load them all."""
    seen = fail("busy", {node: BUSY_SECTOR}, 2)
    judged = judge_io_errors(seen)
    if judged.verdict is Verdict.CRASH:
        assert words(judged).partition(": ")[2] == "load 2: SIGABRT: invalid runstate transition: 'io-error' -> 'colo'"
        assert seen.loads_acked == 1
    else:
        assert judged.verdict is Verdict.OK, seen
        assert seen.loads_acked == 2


# -- devices that nobody wrote a recipe for ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan_derived(binary: QemuBinary) -> Callable[..., Plan]:
    """Guests that have some derived devices and fail."""
    types = offer_of(binary, load_recipes().devices)

    def plan(*names: str) -> Plan:
        machine = binary.machine("pc")
        assert machine is not None
        devices = [types.derived.devices[name] for name in names]
        (guest,) = planned_guests(machine.name, "pc", devices).guests
        built = build_guest(load_guest().widened())
        return recording_plan(binary=binary, accel="tcg", guest=built, planned=guest, phases=("io-error",))

    return plan


def test_a_derived_disk_sends_its_request_again_and_a_card_cannot_stop(
    plan_derived: Callable[..., Plan], binary: QemuBinary, ability: ColoAbility, tmp_path: Path
) -> None:
    with StatePack(record(plan_derived("ide-hd", "sd-card"), tmp_path / "pack")) as pack:
        assert pack.unreached("ide-hd") == {}
        assert pack.unreached("sd-card")["io-error"].how is Missed.REPORTS_ERRORS
        bench = Bench(
            binary=binary,
            ability=ability,
            buffers=Buffers(pack),
            pace=Pace(),
            scope=ProcessScope(),
            devices=recorded_devices(pack, None),
        )
        # a card does not survive its second load (sd_ocr_powerup), and is left out, as a run does that knows it
        card = pack.sections_of("sd-card")
        bench.tell(Exclusion(section=label, reason=ExclusionReason.BROKE, phase="io-error") for label in card)
        (cell,) = perform(io_error_check(("ide-hd",)), bench)
        assert cell.verdict is Verdict.OK, cell.outcome.log
        assert cell.details["healthy disk"]["requests"] == {"ide-hd": "answered"}
        after = cell.details["failing disk"]["after"]
        assert (after["status"], list(after["held"])) == ("io-error", ["ide-hd-drive"])


def test_a_qemu_that_dies_of_a_halted_request_while_it_is_saved_says_so(
    plan_derived: Callable[..., Plan], tmp_path: Path
) -> None:
    """Up to 11.1: the request is in the queue of the adapter, which has to be empty (``pvscsi_pre_save``)."""
    with pytest.raises(CutShort) as caught:
        record(plan_derived("pvscsi"), tmp_path / "pack")
    assert caught.value.phase == "io-error"
    assert caught.value.died is not None
    assert caught.value.died.crashed
    assert caught.value.saving
    assert "pvscsi_pre_save" in caught.value.log


def test_a_qemu_that_dies_of_a_halted_request_when_it_goes_on_says_so(
    plan_derived: Callable[..., Plan], tmp_path: Path
) -> None:
    """The request of an IDE disk is sent again as one of the CD beside it (``ide_restart_bh``)."""
    with pytest.raises(CutShort) as caught:
        record(plan_derived("ich9-ahci+ports"), tmp_path / "pack")
    assert caught.value.died is not None
    assert caught.value.died.crashed
    assert not caught.value.saving
    assert "ide_restart_bh" in caught.value.log
