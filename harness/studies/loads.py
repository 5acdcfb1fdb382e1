# SPDX-License-Identifier: GPL-2.0-or-later
"""Question 1: may a COLO device load be asserted to succeed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from harness.engines.buffers import Selection
from harness.engines.colo import Pace, Session
from harness.engines.schedule import LoadPlan, Schedule, plan_loads
from harness.oracles.isolate import Blame, Isolator
from harness.oracles.load import Judgement, crash_line, error_line, judge
from harness.qemu.disturbance import Hindrances
from harness.results.verdict import Verdict
from harness.results.voided import is_void
from harness.state.transforms import GuestMode, label_of
from harness.studies.findings import LoadCase, LoadFigures, LoadFinding
from harness.studies.model import Lab, Question, whole

RUN_S = 0.002
#: Sections that are blamed and left out before the rest is given up.
_MAX_BLAMED = 5


def ask(lab: Lab) -> LoadFinding:
    """Whole states of every phase, then a walk over all of them; what breaks them is isolated and left out."""
    phases = lab.buffers.pack.phases
    work = [(phase, plan_loads(Schedule.SAME, [phase], lab.effort.loads)) for phase in phases]
    if len(phases) > 1:
        work.append(("walk", plan_loads(Schedule.WALK, phases, lab.effort.loads)))
    lab.stage(f"{lab.family}: whole states, {sum(plan.loads for _, plan in work)} loads")
    excluded, cases = find_broken(lab, *work[0])
    rest = replace(lab, excluded=excluded)
    parts = rest.each(lambda item: find_broken(rest, *item)[1], work[1:], void=lambda *_: False)
    cases += [case for part in parts for case in part]
    return LoadFinding(figures=figures_of(cases), cases=tuple(cases))


def find_broken(lab: Lab, name: str, plan: LoadPlan) -> tuple[frozenset[str], list[LoadCase]]:
    """Load; what breaks is isolated and left out, and it is tried again. Labels left out in the end, and all cases.

    :raises Disturbed: the host disturbed each try
    """
    return whole(partial(_find_broken, lab, name, plan), _is_void)


def _is_void(found: tuple[frozenset[str], list[LoadCase]], hindered: Hindrances) -> bool:
    return any(is_void(case.verdict, hindered) for case in found[1])


def _find_broken(lab: Lab, name: str, plan: LoadPlan) -> tuple[frozenset[str], list[LoadCase]]:
    excluded: frozenset[str] = lab.excluded
    cases: list[LoadCase] = []
    while True:
        case, judgement, load = _case(replace(lab, excluded=excluded), name, plan)
        if judgement.verdict is Verdict.OK or len(excluded) >= _MAX_BLAMED:
            return excluded, [*cases, case]
        lab.stage(f"{lab.family}: {name}: {judgement.verdict}, looking for the section")
        blamed = _blame(lab, plan, load, excluded, judgement)
        if blamed is None:
            return excluded, [*cases, case]
        cases.append(replace(case, sections=blamed.sections, isolation=blamed.how))
        excluded |= frozenset(blamed.sections)


def _case(lab: Lab, name: str, plan: LoadPlan) -> tuple[LoadCase, Judgement, int]:
    labels = {label_of(s) for r in lab.buffers.pack.recordings.values() for s in r.sections}
    session = Session(
        binary=lab.binary,
        dialect=lab.ability.dialect,
        buffers=lab.buffers,
        plan=plan,
        selection=Selection(own=frozenset(labels), excluded=lab.excluded, again=lab.resets),
        mode=GuestMode.RUNNING,
        pace=Pace(run_s=RUN_S),
        scope=lab.scope,
    )
    evidence = session.run()
    judgement = judge(evidence)
    case = LoadCase(
        name=name,
        asked=evidence.loads_asked,
        acked=evidence.loads_acked,
        verdict=judgement.verdict,
        line=crash_line(judgement.log) or error_line(judgement.log) or "",
        causes=judgement.outcome.causes,
        log=judgement.log,
        left_out=tuple(sorted(lab.excluded)),
    )
    return case, judgement, evidence.broken.load if evidence.broken else evidence.loads_acked


def _blame(lab: Lab, plan: LoadPlan, load: int, excluded: frozenset[str], judgement: Judgement) -> Blame | None:
    phase = plan.checkpoints[max(0, min(load, len(plan.checkpoints)) - 1)].phase
    before = plan.checkpoints[load - 2].phase if load > 1 else plan.incoming
    isolator = Isolator(
        binary=lab.binary,
        dialect=lab.ability.dialect,
        buffers=lab.buffers,
        resets=lab.resets,
        again=lab.resets,
        scope=lab.scope,
    )
    return isolator.find(before, phase, load, excluded, judgement)


def figures_of(cases: Sequence[LoadCase]) -> LoadFigures:
    """The numbers of the answer."""
    bad = [case for case in cases if case.verdict is not Verdict.OK]
    passed = sum(case.acked for case in cases)
    return LoadFigures(
        sessions=len(cases),
        sessions_failed=len(bad),
        loads=passed + len(bad),
        loads_passed=passed,
        sections_failed=tuple(sorted({label for case in bad for label in case.sections})),
        unexplained=sum(not case.sections for case in bad),
    )


QUESTION = Question(number=1, ask=ask)
