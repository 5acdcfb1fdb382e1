# SPDX-License-Identifier: GPL-2.0-or-later
"""Drift on a real QEMU: healthy devices stand still, states made wrong on purpose are caught, rules are needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from made_cells import words

from harness.devices.saved import Comparison, Rule
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.experiments.drift import Change, DriftExperiment, DriftRun
from harness.oracles.drift import judge_drift, load_rules, unused_rules
from harness.oracles.oracle import Opinion
from harness.oracles.outside import judge_outside
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.results.cause import Derived, DriftedField
from harness.results.cause import Drifted as Drift
from harness.results.verdict import Verdict
from harness.state.transforms import label_of
from harness.stream.fields import find, patch, walk
from harness.stream.model import Section
from harness.stream.vmdesc import decode

LOADS = 50
#: Known to end a q35 secondary; judged by other tests.
LETHAL = frozenset({"0000:00:1f.0/ICH9LPC"})
#: Longer than a second, so that a clock with seconds moves.
IDLE_S = 1.2
SOON_NS = 500_000_000
#: HPET_CFG_LEGACY of hw/timer/hpet.c.
HPET_LEGACY = 0x2
#: Of the clock's registers, the one that says which of its interrupts came.
REG_C = 12

Drifted = Callable[..., DriftRun]


@pytest.fixture
def drifted(binary: QemuBinary, ability: ColoAbility) -> Drifted:
    """Runs the experiment: ``drifted(pack, phase, change=..., loads=...)``."""

    def run(pack: StatePack, phase: str, **more: object) -> DriftRun:
        experiment = DriftExperiment(
            binary=binary,
            dialect=ability.dialect,
            resets=bool(ability.resets_before_load),
            buffers=Buffers(pack),
            phase=phase,
            excluded=LETHAL if pack.machine.family == "q35" else frozenset(),
            **{"loads": LOADS} | more,  # type: ignore[arg-type]
        )
        return experiment.run()

    return run


def with_field(section: Section, path: str, value: int) -> Section:
    """The i8254 has its next transition twice, and QEMU goes by the later one: a path stands for all that bear it."""
    desc = section.desc
    assert desc is not None
    named = [field for field in walk(decode(section.payload, desc)) if field.path == path]
    assert named, path
    payload = section.payload
    for field in named:
        payload = patch(payload, field, value)
    return replace(section, payload=payload)


def fields_of(opinion: Opinion) -> tuple[DriftedField, ...]:
    assert isinstance(opinion.cause, Drift)
    return opinion.cause.fields


def moving(pack: StatePack, phase: str, label: str, path: str, value: Callable[[int], int]) -> Change:
    """One field has ``value(k)`` in load k."""

    def change(section: Section, load: int) -> Section:
        return with_field(section, path, value(load)) if label_of(section) == label else section

    return change


def label_with(pack: StatePack, phase: str, suffix: str) -> str:
    return next(label for s in pack.recordings[phase].sections if (label := label_of(s)).endswith(suffix))


# --- Negative controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["firmware", "kernel", "bound", "busy", "unbound", "rebound"])
def test_healthy_devices_stand_still(drifted: Drifted, pc_pack: StatePack, phase: str) -> None:
    run = drifted(pc_pack, phase)
    assert run.broken is None
    assert (run.loads_acked, [s.load for s in run.snapshots]) == (LOADS, [1, 25, 50])
    judged = judge_drift(run, load_rules())
    own = {label for device in ("ahci", "virtio-blk") for label in pc_pack.sections_of(device)}
    assert own <= set(judged)
    assert {label: words(j) for label, j in judged.items() if j.verdict is not Verdict.OK} == {}
    for label in own:
        assert judged[label].details["changed_by_load"] == [], label
        assert judged[label].details["by_nature"] == [], f"{label}: nothing of a disk moves by nature"


# --- Positive controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("i8254", "channels[2].count"),
        ("/ich9_ahci", "ahci.dev[0].port_regs.scr_err"),
        ("/virtio-blk", "queue_sel"),
    ],
)
def test_a_field_that_rises_with_each_load_is_caught(
    drifted: Drifted, pc_pack: StatePack, suffix: str, path: str
) -> None:
    label = label_with(pc_pack, "bound", suffix)
    run = drifted(pc_pack, "bound", change=moving(pc_pack, "bound", label, path, lambda load: load))
    judged = judge_drift(run, load_rules())
    assert [name for name, j in judged.items() if j.verdict is not Verdict.OK] == [label]
    assert judged[label].verdict is Verdict.DRIFT
    (moved,) = fields_of(judged[label])
    assert (moved.field, moved.values, moved.per_load) == (path, (1, 25, 50), 1.0)
    assert (moved.creeps, moved.without_loads) == (True, False)
    assert f"{path} goes from 1 to 50, +1 per load" in words(judged[label])


def test_a_field_that_flips_is_caught_and_does_not_creep(drifted: Drifted, pc_pack: StatePack) -> None:
    change = moving(pc_pack, "bound", "i8259#1", "imr", lambda load: 0xA5 if load % 2 else 0x5A)
    judged = judge_drift(drifted(pc_pack, "bound", change=change), load_rules())
    assert [name for name, j in judged.items() if j.verdict is Verdict.DRIFT] == ["i8259#1"]
    (moved,) = fields_of(judged["i8259#1"])
    assert (moved.values, moved.creeps) == ((0xA5, 0xA5, 0x5A), False)


def test_a_bit_that_no_rule_lets_move_is_caught_beside_one_that_may(drifted: Drifted, pc_pack: StatePack) -> None:
    change = moving(pc_pack, "unbound", "apic", "irr[7]", lambda load: 0x1 if load == LOADS else 0)
    judged = judge_drift(drifted(pc_pack, "unbound", change=change), load_rules())
    assert "irr[7]" in words(judged["apic"])


def test_a_secondary_that_breaks_is_a_result(drifted: Drifted, pc_pack: StatePack) -> None:
    def change(section: Section, load: int) -> Section:
        strange = load == 30 and label_of(section) == "i8254"
        return replace(section, version_id=99) if strange else section

    run = drifted(pc_pack, "bound", change=change)
    assert run.broken is not None
    assert run.loads_acked < LOADS
    assert [s.load for s in run.snapshots] == [1, 25]
    assert judge_drift(run, load_rules())["i8259"].verdict is Verdict.OK


# --- Rules -------------------------------------------------------------------------------------------------


FIFO_TIMER = b"serial/fifo_timeout_timer"


def due_soon(pack: StatePack, phase: str) -> Change:
    """Timers that a recording may have or not have are made to be due within the idle time."""
    recording = pack.recordings[phase]
    timer = next(s for s in recording.sections if label_of(s) == "timer")
    due_ns = _number(timer, "cpu_clock_offset") + SOON_NS
    host_due_ns: list[int] = []

    def change(section: Section, _: int) -> Section:
        match section.idstr:
            case "apic":
                return with_field(section, "timer_expiry", due_ns)
            case "hpet":
                # in place of the PIT it would keep the PIT's tick from the interrupt controller
                alone = with_field(section, "config", _number(section, "config") & ~HPET_LEGACY)
                return with_field(alone, "timer[2].qemu_timer", due_ns)
            case "i8254":
                # a tick in the time before the first save would leave nothing to move: line 0 stays pending
                return _ticking(section, due_ns)
            case "i8259" if section.instance_id == 0:
                return _without_line_0(_without_line_0(section, "irr"), "last_irr")
            case "mc146818rtc":
                # by the host's clock, from the first load on
                host_due_ns.append(time.time_ns() + SOON_NS)
                return _nothing_told(with_field(section, "update_timer", host_due_ns[0]))
            case "serial":
                # the timer's subsection, u64 expiry, stands last
                at = section.payload.find(bytes([5, len(FIFO_TIMER)]) + FIFO_TIMER)
                before = section.payload if at < 0 else section.payload[:at]
                head = bytes([5, len(FIFO_TIMER)]) + FIFO_TIMER + (1).to_bytes(4, "big")
                return replace(section, payload=before + head + due_ns.to_bytes(8, "big"))
        return section

    return change


def _ticking(section: Section, due_ns: int) -> Section:
    """Linux stops the PIT early, and a recording of the firmware that was stopped late is one of Linux."""
    ticking = {"mode": 2, "count": 0x10000, "irq_disabled": 0, "next_transition_time": due_ns}
    for name, value in ticking.items():
        section = with_field(section, f"channels[0].{name}", value)
    return section


def _nothing_told(section: Section) -> Section:
    """A clock whose REG_C says of no second that it ended: Linux does not read it, so what a slow boot set stays."""
    assert section.desc is not None
    at = find(decode(section.payload, section.desc), "cmos_data").offset + REG_C
    return replace(section, payload=section.payload[:at] + b"\0" + section.payload[at + 1 :])


def _without_line_0(section: Section, path: str) -> Section:
    return with_field(section, path, _number(section, path) & ~1)


def _number(section: Section, path: str) -> int:
    desc = section.desc
    assert desc is not None
    return int(find(decode(section.payload, desc), path).value or 0)


def _of_x86() -> list[Rule]:
    return [rule for rule in load_rules() if not rule.machine.startswith("virt") and not _of_added(rule)]


def _of_added(rule: Rule) -> bool:
    """Whether it is of a device that no machine of these tests has by itself."""
    return rule.section.startswith(("*/", "hda-"))


#: What the rules of added devices are for.
WITH_CLOCKS = ("usb-kbd+uhci", "usb-kbd+ehci", "usb-tablet+ohci", "pcnet", "rtl8139", "AC97", "hda-output")


@pytest.fixture(scope="module")
def clock_pack(postload: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> StatePack:
    folder = tmp_path_factory.mktemp("clocks") / "pack"
    phases = "firmware,bound,busy"
    done = postload("record", "--device", ",".join(WITH_CLOCKS), "--phase", phases, "--out", folder)
    assert done.returncode == 0, done.stderr
    return StatePack(folder)


def test_the_clocks_of_added_devices_move_by_rules_that_are_each_needed(
    drifted: Drifted, clock_pack: StatePack
) -> None:
    rules = [rule for rule in load_rules() if _of_added(rule)]
    runs = [drifted(clock_pack, phase, loads=3, idle_s=IDLE_S) for phase in clock_pack.phases]
    assert [run.broken for run in runs if run.broken] == []
    assert unused_rules(rules, runs) == []
    assert _drifting(runs, load_rules()) == []


def test_each_rule_is_needed_and_no_more_are(drifted: Drifted, pc_pack: StatePack, q35_pack: StatePack) -> None:
    rules = _of_x86()
    cells = [(pack, phase) for pack in (pc_pack, q35_pack) for phase in pack.phases]

    def run(cell: tuple[StatePack, str]) -> DriftRun:
        pack, phase = cell
        return drifted(pack, phase, loads=3, idle_s=IDLE_S, change=due_soon(pack, phase))

    with ThreadPoolExecutor(max_workers=3) as pool:
        runs = list(pool.map(run, cells))
    assert [r.broken for r in runs if r.broken] == []
    assert _drifting(runs, ()), "without rules there is nothing to explain"
    assert _drifting(runs, rules) == []
    unused = [(rule.section, rule.fields, comparison) for rule, comparison in unused_rules(rules, runs)]
    assert unused == []


def test_what_a_rule_calls_natural_moves_without_any_load(drifted: Drifted, pc_pack: StatePack) -> None:
    """Nothing is loaded between the two saves that are compared here; the parked machine runs a second.

    A timer that is due may fire before the first of the two saves: what has not moved yet is looked at again.
    """
    only_time: list[DriftRun] = []
    left: list[object] = [True]
    for _ in range(4):
        for phase in ("kernel", "bound"):
            run = drifted(pc_pack, phase, loads=2, idle_s=IDLE_S, change=due_soon(pc_pack, phase))
            assert run.idle is not None
            only_time.append(replace(run, snapshots=run.snapshots[-1:]))
        unused = unused_rules(_of_x86(), only_time)
        left = [(rule.section, rule.fields) for rule, comparison in unused if comparison is Comparison.N]
        if not left:
            break
    assert left == []


def _drifting(runs: Sequence[DriftRun], rules: Sequence[object]) -> list[str]:
    return [
        f"{run.machine} {run.phase} {label}: {words(judged)}"
        for run in runs
        for label, judged in judge_drift(run, rules).items()  # type: ignore[arg-type]
        if judged.verdict is not Verdict.OK
    ]


def test_what_a_load_does_not_restore_is_seen_outside_of_the_state(drifted: Drifted, pc_pack: StatePack) -> None:
    """A controller whose BARs are off is the same after each load: no field drifts, and its memory is not mapped."""
    label = label_with(pc_pack, "bound", "ich9_ahci")

    def off(section: Section, load: int) -> Section:
        if label_of(section) != label:
            return section
        assert section.desc is not None
        config = next(f for f in walk(decode(section.payload, section.desc)) if f.path.endswith("config[0]"))
        at = config.offset + 4  # PCI_COMMAND: without memory, and still master of the bus
        command = bytes([section.payload[at] & ~2])
        return replace(section, payload=section.payload[:at] + command + section.payload[at + 1 :])

    plan = pc_pack.manifest.plan
    assert judge_outside(drifted(pc_pack, "bound", loads=5), plan, "platform") == {}
    run = drifted(pc_pack, "bound", loads=5, change=off)
    assert judge_drift(run)[label].verdict is Verdict.OK
    found = judge_outside(run, plan, "platform")
    causes = [cause for cause in found["ahci"].causes if isinstance(cause, Derived)]
    assert {"memory", "pci"} <= {cause.about for cause in causes}
    assert any("ahci" in line for cause in causes for line in cause.gone)
