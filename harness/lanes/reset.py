# SPDX-License-Identifier: GPL-2.0-or-later
"""The lane ``reset``: the machine is reset before each load, by this program where the build does not do it.

What breaks without a reset is looked for by the other lanes. This one says whether it breaks behind one too, and what
the reset costs. It loads everything that the QEMU takes at all: what broke elsewhere is not left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.engines.buffers import Selection
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.engines.schedule import LoadPlan, Schedule, plan_loads
from harness.errors import QemuError
from harness.experiments.drift import DriftExperiment
from harness.experiments.reset import ResetCost, ResetTimes
from harness.lanes.checks import (
    Experiment,
    OracleCheck,
    OracleName,
    Told,
    drift_rules,
    excluded_in,
    judge_by,
    setting_of,
)
from harness.lanes.judge import MAX_BLAMED, Bench
from harness.lanes.lane import Lane, Wave, all_in_one
from harness.names import PLATFORM
from harness.oracles.drift import judge_drift
from harness.oracles.isolate import Blame
from harness.oracles.load import Judgement, judge
from harness.results.cause import Undecided, Why
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, labels_of

#: Where the cost is measured, when the recording has it: the drivers are bound, and nothing is in flight.
COST_PHASE = "bound"
#: Behind resets drift is looked for with so many loads; each takes 10 to 20 ms.
DRIFT_LOADS = 20


@dataclass(slots=True, kw_only=True)
class _Behind:
    """The loads behind resets, and whom they broke on.

    :param absent: sections that not even the incoming stream had
    :param blamed: section to what is said of it
    :param left: what is said of every other section
    """

    evidence: Evidence
    excluded: frozenset[str]
    absent: frozenset[str]
    blamed: dict[str, Told] = field(default_factory=dict)
    left: Told = field(default_factory=lambda: Told(verdict=Verdict.OK))


def reset_check(phases: Sequence[str], rows: Sequence[str], loads: int) -> OracleCheck:
    """Every phase behind every other one, each load behind a reset, and the cost of the reset.

    :param loads: of one session
    """
    run = partial(_reset, loads=loads)
    return OracleCheck(oracle=OracleName.RESET, phases=tuple(phases), rows=tuple(rows), run=run)


def _reset(bench: Bench, check: OracleCheck, *, loads: int) -> Experiment:
    behind = _load_behind_resets(bench, check.phases, loads)
    drifted = _drifted(bench, check.phases, behind)
    cost = _cost(bench, check, behind)
    pack = bench.buffers.pack
    told: dict[str, list[Told]] = {row: [] for row in check.rows}
    for label, one in [*behind.blamed.items(), *drifted]:
        told.setdefault(pack.owner_of(label), []).append(one)
    parts = {} if cost is None else cost.parts
    loaded = _labels(bench, check.phases) - behind.excluded
    for row in check.rows:
        part: dict[str, Any] = {"part": asdict(parts[row])} if row in parts else {}
        if loaded.intersection(bench.buffers.pack.sections_of(row)):
            told[row].append(replace(behind.left, details=part))
        elif not told[row]:
            left_out = tuple(sorted(behind.excluded.intersection(bench.buffers.pack.sections_of(row))))
            why = Undecided(why=Why.LEFT_OUT if left_out else Why.NO_SECTION, sections=left_out)
            told[row].append(Told(verdict=Verdict.HARNESS_ERROR, causes=(why,)))
    return Experiment(
        told=told,
        loads_asked=behind.evidence.loads_asked,
        loads_acked=behind.evidence.loads_acked,
        excluded=behind.excluded,
        blamed=frozenset(behind.blamed),
        details={} if cost is None else {"guest": _of_guest(cost)},
    )


def _load_behind_resets(bench: Bench, phases: Sequence[str], loads: int) -> _Behind:
    schedule = Schedule.WALK if len(phases) > 1 else Schedule.SAME
    plan = plan_loads(schedule, phases, loads)
    blamed: dict[str, Told] = {}
    absent = bench.refused
    while True:
        excluded = absent | frozenset(blamed)
        selection = Selection(own=_labels(bench, phases) - excluded, excluded=excluded)
        evidence = _session(bench, plan, selection, absent).run()
        judgement = judge(evidence)
        behind = _Behind(evidence=evidence, excluded=excluded, absent=absent, blamed=blamed)
        if judgement.verdict is Verdict.OK:
            return behind
        blame = _blame(bench, plan, evidence, judgement, behind) if len(blamed) < MAX_BLAMED else None
        if blame is None:
            behind.left = _undecided(judgement, blamed)
            return behind
        blamed = blamed | {label: _told(label, judgement) for label in blame.sections}
        if _before_a_load(evidence) or blame.phase:
            absent |= frozenset(blame.sections)


def _before_a_load(evidence: Evidence) -> bool:
    """It broke in the incoming stream, or in the reset of what had been loaded."""
    broken = evidence.broken
    return broken is not None and (broken.load == 0 or broken.step is Step.REQUEST)


def _drifted(bench: Bench, phases: Sequence[str], behind: _Behind) -> list[tuple[str, Told]]:
    """Sections whose state after many loads is not that after one, each load behind a reset."""
    rules = drift_rules(bench)
    found = []
    for phase in phases:
        setting = replace(setting_of(bench, phase, behind.excluded), absent=behind.absent)
        experiment = DriftExperiment.of(setting, reset_first=True, loads=DRIFT_LOADS)
        for label, opinion in judge_drift(experiment.run(), rules).items():
            if opinion.verdict is not Verdict.OK:
                found.append((label, Told(verdict=opinion.verdict, section=label, causes=opinion.causes)))
    return found


def _session(bench: Bench, plan: LoadPlan, selection: Selection, absent: frozenset[str]) -> Session:
    return Session(
        binary=bench.binary,
        dialect=bench.ability.dialect,
        buffers=bench.buffers,
        plan=plan,
        selection=selection,
        mode=GuestMode.RUNNING,
        absent=absent,
        pace=bench.pace,
        scope=bench.scope,
        reset_first=not bench.ability.resets_before_load,
    )


def _labels(bench: Bench, phases: Sequence[str]) -> frozenset[str]:
    recordings = bench.buffers.pack.recordings
    return frozenset().union(*(labels_of(recordings[phase].sections) for phase in phases))


def _blame(bench: Bench, plan: LoadPlan, evidence: Evidence, judgement: Judgement, behind: _Behind) -> Blame | None:
    """Who broke a load, or the reset before it; a guest that broke has no section to blame."""
    broken = evidence.broken
    if judgement.verdict is Verdict.GUEST_FAULT or not judgement.verdict.is_finding or broken is None:
        return None
    isolator = replace(bench.isolator(False), reset_first=not bench.ability.resets_before_load)
    if broken.load == 0:
        return isolator.find_incoming(broken.phase, behind.absent, judgement)
    before = plan.phase_before(broken.load)
    if broken.step is Step.REQUEST:
        return isolator.find_at_reset(before, behind.absent, judgement)
    # the incoming stream of the session that broke was taken
    taken = behind.absent if before == plan.incoming else None
    return isolator.find(before, broken.phase, broken.load, behind.excluded, judgement, taken)


def _told(label: str | None, judgement: Judgement) -> Told:
    return Told(verdict=judgement.verdict, section=label, causes=judgement.outcome.causes, log=judgement.log)


def _undecided(judgement: Judgement, blamed: Mapping[str, Told]) -> Told:
    """Nobody is known to have done it: the other lanes judge the loads, this one only says whom a reset helps.

    A guest that ran with sections left out, which the reset brought into their first state, is nobody's fault at all.
    """
    if judgement.verdict.is_undecided or judgement.verdict is Verdict.UNSUPPORTED:
        return _told(None, judgement)
    left_out = Undecided(why=Why.LEFT_OUT, sections=tuple(sorted(blamed)))
    causes = (left_out,) if blamed else judgement.outcome.causes
    return Told(verdict=Verdict.HARNESS_ERROR, causes=causes, log=judgement.log)


def _cost(bench: Bench, check: OracleCheck, behind: _Behind) -> ResetTimes | None:
    """What the reset costs; None where it could not be measured."""
    phase = COST_PHASE if COST_PHASE in check.phases else check.phases[0]
    # what breaks without a reset is left out as well: the load is measured with and without one
    setting = replace(setting_of(bench, phase, excluded_in(bench, check) | behind.excluded), absent=behind.absent)
    devices = {
        device.name: device.sections for device in bench.buffers.pack.manifest.devices if device.name != PLATFORM
    }
    try:
        return ResetCost.of(setting, devices=devices).run()
    except (ChannelBroken, QemuError):
        return None


def _of_guest(cost: ResetTimes) -> dict[str, Any]:
    figures = asdict(cost)
    del figures["parts"]
    return figures


LANES = (
    Lane(
        name=str(OracleName.RESET),
        wave=Wave.LOOK,
        seconds=8.0,
        groups=all_in_one,
        judge=judge_by(lambda request, _: reset_check(request.phases, request.devices, request.loads)),
    ),
)
