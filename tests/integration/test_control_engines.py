# SPDX-License-Identifier: GPL-2.0-or-later
"""The control engines against a real QEMU: what is healthy passes, what is made wrong is caught, and a real pair
agrees with the harness's own primary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
from made_cells import words

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.engines.fresh import Fresh
from harness.engines.incoming import State
from harness.engines.loadvm import Loadvm
from harness.engines.pair import Pair
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule, plan_loads
from harness.oracles.classify import Control, Controls, classify, results
from harness.oracles.load import is_spoilt, judge
from harness.oracles.marker import moment_of
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import undisturbed
from harness.results.outcome import Moment
from harness.results.verdict import FailureClass, Verdict
from harness.state.transforms import GuestMode, label_of
from harness.stream.fields import find, patch
from harness.stream.model import Section
from harness.stream.vmdesc import decode

Packs = Callable[[QemuBinary, str], StatePack]


@pytest.fixture(params=["pc", "q35"])
def buffers(request: pytest.FixtureRequest, binary: QemuBinary, recorded: Packs) -> Buffers:
    return Buffers(recorded(binary, request.param))


@pytest.fixture
def pc(binary: QemuBinary, recorded: Packs) -> Buffers:
    return Buffers(recorded(binary, "pc"))


@pytest.fixture
def q35(binary: QemuBinary, recorded: Packs) -> Buffers:
    return Buffers(recorded(binary, "q35"))


def altered(buffers: Buffers, phase: str, change: Callable[[Section], Section]) -> Buffers:
    """The same pack with some sections of a phase made otherwise."""
    pack = copy.copy(buffers.pack)
    recording = pack.recordings[phase]
    sections = tuple(change(section) for section in recording.sections)
    assert sections != recording.sections
    pack.recordings = {**pack.recordings, phase: replace(recording, sections=sections)}
    return Buffers(pack)


def session(binary: QemuBinary, ability: ColoAbility, buffers: Buffers, phase: str, loads: int) -> Session:
    labels = frozenset(label_of(section) for section in buffers.pack.recordings[phase].sections)
    return Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=buffers,
        plan=plan_loads(Schedule.SAME, [phase], loads),
        selection=Selection(own=labels),
        mode=GuestMode.PARKED,
    )


def unknown_version(section: Section) -> Section:
    return replace(section, version_id=99) if label_of(section) == "i8259#1" else section


def test_a_healthy_state_passes_in_fresh_processes(binary: QemuBinary, buffers: Buffers) -> None:
    seen = Fresh(binary=binary, state=State(buffers=buffers, phase="busy"), processes=2).run()
    assert judge(seen).verdict is Verdict.OK
    assert seen.loads_acked == 2


def test_an_early_load_and_a_whole_one_behind_it_pass_on_pc_and_not_on_q35(
    binary: QemuBinary, pc: Buffers, q35: Buffers
) -> None:
    """No reset comes between the two loads of one incoming stream, on any build."""
    passed = Fresh(binary=binary, state=State(buffers=pc, phase="bound", early=True), processes=1).run()
    assert judge(passed).verdict is Verdict.OK
    assert passed.loads_acked == 1
    once = Fresh(binary=binary, state=State(buffers=q35, phase="bound"), processes=1).run()
    assert judge(once).verdict is Verdict.OK
    twice = Fresh(binary=binary, state=State(buffers=q35, phase="bound", early=True), processes=1).run()
    assert judge(twice).verdict is Verdict.CRASH
    assert "!subregion->container" in twice.log


def test_a_state_that_cannot_be_loaded_fails_in_every_fresh_process(
    binary: QemuBinary, ability: ColoAbility, pc: Buffers
) -> None:
    wrong = altered(pc, "bound", unknown_version)
    seen = Fresh(binary=binary, state=State(buffers=wrong, phase="bound"), processes=2).run()
    found = judge(seen)
    assert (found.verdict, seen.loads_acked, seen.loads_asked) == (Verdict.REJECT, 0, 2)
    assert Control.of(found, seen).moment is Moment.LOAD
    colo = session(binary, ability, wrong, "bound", 2).run()
    assert classify(judge(colo), colo, Controls(fresh=Control.of(found, seen))) is FailureClass.FAILS


def test_what_is_excluded_is_not_loaded(binary: QemuBinary, pc: Buffers) -> None:
    wrong = altered(pc, "bound", unknown_version)
    state = State(buffers=wrong, phase="bound", mode=GuestMode.PARKED, excluded=frozenset({"i8259#1"}))
    assert judge(Fresh(binary=binary, state=state, processes=1).run()).verdict is Verdict.OK


def test_a_guest_that_dies_when_it_is_started_had_loaded(binary: QemuBinary, pc: Buffers) -> None:
    def no_interrupts_table(section: Section) -> Section:
        if section.idstr != "cpu":
            return section
        desc = section.desc
        assert desc is not None
        fields = decode(section.payload, desc)
        payload = patch(section.payload, find(fields, "env.idt.limit"), 0)
        return replace(section, payload=patch(payload, find(fields, "env.eip"), 0))

    wrong = altered(pc, "bound", no_interrupts_table)
    seen = Fresh(binary=binary, state=State(buffers=wrong, phase="bound"), processes=1, run_s=3.0).run()
    assert judge(seen).verdict is Verdict.GUEST_FAULT
    assert Control.of(judge(seen), seen).moment is Moment.RESUME


def test_snapshots_of_two_phases_load_in_turn(binary: QemuBinary, buffers: Buffers) -> None:
    plan = plan_loads(Schedule.ALTERNATE, ["bound", "unbound"], 6)
    seen = Loadvm(binary=binary, buffers=buffers, plan=plan).run()
    assert judge(seen).verdict is Verdict.OK, words(judge(seen))
    assert seen.loads_acked == 6


def test_a_state_that_no_process_takes_leaves_loadvm_undecided(binary: QemuBinary, pc: Buffers) -> None:
    wrong = altered(pc, "bound", unknown_version)
    seen = Loadvm(binary=binary, buffers=wrong, plan=plan_loads(Schedule.SAME, ["bound"], 2)).run()
    control = Control.of(judge(seen), seen)
    assert (control.brought_in, control.decided, control.passed) == (False, False, 0)


def test_a_load_that_passes_gets_to_the_marker(binary: QemuBinary, ability: ColoAbility, pc: Buffers) -> None:
    healthy = session(binary, ability, pc, "bound", 3)
    assert moment_of(healthy, 2, Verdict.CRASH) is Moment.RESUME


def pair(binary: QemuBinary, ability: ColoAbility, buffers: Buffers, checkpoints: int) -> Evidence:
    state = State(buffers=buffers, phase="bound")
    # on a busy host the thread that shall be the last to run may not run at all
    return undisturbed(
        Pair(binary=binary, dialect=ability.dialect, state=state, checkpoints=checkpoints).run, is_spoilt
    )


def test_a_real_pair_passes_on_pc(binary: QemuBinary, ability: ColoAbility, pc: Buffers) -> None:
    # a guest whose old pages came along panics within ten
    seen = pair(binary, ability, pc, 15)
    if judge(seen).verdict is Verdict.HARNESS_ERROR and seen.loads_acked:
        pytest.skip(f"the primary hung by itself after {seen.loads_acked} checkpoints: {seen.log}")
    assert judge(seen).verdict is Verdict.OK, words(judge(seen))
    assert seen.loads_acked >= 15


def test_q35_gets_its_class_from_real_controls(binary: QemuBinary, ability: ColoAbility, q35: Buffers) -> None:
    first = session(binary, ability, q35, "bound", 3)
    colo = first.run()
    found = judge(colo)
    real = pair(binary, ability, q35, 1)
    if found.verdict is Verdict.OK:
        assert judge(real).verdict is Verdict.OK, words(judge(real))
        pytest.skip("this QEMU loads q35 again and again")
    assert judge(real).verdict is found.verdict
    fresh = Fresh(binary=binary, state=State(buffers=q35, phase="bound"), processes=2).run()
    loadvm = Loadvm(binary=binary, buffers=q35, plan=first.plan).run()
    controls = Controls(
        fresh=Control.of(judge(fresh), fresh),
        loadvm=Control.of(judge(loadvm), loadvm),
        pair=Control.of(judge(real), real),
        same=Control.of(found, colo, parked=True),
        moment=moment_of(first, colo.checkpoints_acked, found.verdict),
        resets_before_load=ability.resets_before_load,
    )
    assert controls.moment is Moment.LOAD
    assert classify(found, colo, controls) is FailureClass.NOT_REENTRANT
    told = [(each.name, each.verdict, each.passed) for each in results(controls, found)]
    assert told[:3] == [("fresh", Verdict.OK, 2), ("loadvm", Verdict.OK, 3), ("pair", Verdict.CRASH, 0)]
    assert classify(found, colo, replace(controls, fresh=None)) is None
