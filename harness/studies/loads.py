# SPDX-License-Identifier: GPL-2.0-or-later
"""Question 1: may a COLO device load be asserted to succeed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from harness.engines.buffers import Selection
from harness.engines.colo import Pace, Session
from harness.engines.schedule import LoadPlan, Schedule, plan_loads
from harness.oracles.isolate import Isolator
from harness.oracles.load import Judgement, crash_line, error_line, judge
from harness.results.outcome import plain_causes
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, label_of
from harness.studies.model import Lab, Question, Row, StudyColumn, StudyResult

COLUMNS = (
    StudyColumn(key="loads", title="whole state"),
    StudyColumn(key="asked", title="loads"),
    StudyColumn(key="acked", title="passed"),
    StudyColumn(key="verdict", title="verdict"),
    StudyColumn(key="sections", title="broken by"),
)
RUN_S = 0.002
#: Sections that are blamed and left out before the rest is given up.
_MAX_BLAMED = 5


def ask(lab: Lab) -> StudyResult:
    """Whole states of every phase, then a walk over all of them; what breaks them is isolated and left out."""
    phases = lab.buffers.pack.phases
    work = [(phase, plan_loads(Schedule.SAME, [phase], lab.effort.loads)) for phase in phases]
    if len(phases) > 1:
        work.append(("walk", plan_loads(Schedule.WALK, phases, lab.effort.loads)))
    lab.stage(f"{lab.family}: whole states, {sum(plan.loads for _, plan in work)} loads")
    excluded, cases = find_broken(lab, *work[0])
    rest = replace(lab, excluded=excluded)
    cases += [case for part in rest.each(lambda item: _cases(rest, *item), work[1:]) for case in part]
    figures = figures_of(cases)
    return StudyResult(text=text_of(figures), figures=figures, rows=summary(cases), cases=cases)


def find_broken(lab: Lab, name: str, plan: LoadPlan) -> tuple[frozenset[str], list[Row]]:
    """Load; what breaks is isolated and left out, and it is tried again. Labels left out in the end, and all cases."""
    excluded, cases = lab.excluded, []
    while True:
        case, judgement, load = _case(replace(lab, excluded=excluded), name, plan)
        cases.append(case)
        if judgement.verdict is Verdict.OK or len(excluded) >= _MAX_BLAMED:
            return excluded, cases
        lab.stage(f"{lab.family}: {name}: {judgement.verdict}, looking for the section")
        blamed = _blame(lab, plan, load, excluded, judgement.verdict)
        if blamed is None:
            return excluded, cases
        case.update(blamed)
        excluded |= frozenset(blamed["sections"])


def _cases(lab: Lab, name: str, plan: LoadPlan) -> list[Row]:
    return find_broken(lab, name, plan)[1]


def _case(lab: Lab, name: str, plan: LoadPlan) -> tuple[Row, Judgement, int]:
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
    case: Row = {
        "name": name,
        "asked": evidence.loads_asked,
        "acked": evidence.loads_acked,
        "verdict": str(judgement.verdict),
        "text": crash_line(judgement.log) or error_line(judgement.log) or "",
        "causes": plain_causes(judgement.outcome),
        "log": judgement.log,
        "left_out": sorted(lab.excluded),
        "sections": [],
        "isolated": None,
    }
    return case, judgement, evidence.broken.load if evidence.broken else evidence.loads_acked


def _blame(lab: Lab, plan: LoadPlan, load: int, excluded: frozenset[str], verdict: Verdict) -> dict[str, Any] | None:
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
    blame = isolator.find(before, phase, load, excluded, verdict)
    return None if blame is None else {"sections": list(blame.sections), "isolated": asdict(blame.how)}


def figures_of(cases: Sequence[Row]) -> Row:
    """The numbers of the answer."""
    bad = [c for c in cases if c["verdict"] != Verdict.OK]
    return {
        "sessions": len(cases),
        "sessions_failed": len(bad),
        # a session ends with the load that fails
        "loads": sum(c["acked"] for c in cases) + len(bad),
        "loads_passed": sum(c["acked"] for c in cases),
        "failed": [
            {"state": c["name"], "verdict": c["verdict"], "sections": c["sections"], "text": c["text"]} for c in bad
        ],
        "sections_failed": sorted({label for c in bad for label in c["sections"]}),
        "unexplained": sum(not c["sections"] for c in bad),
    }


def text_of(figures: Row) -> str:
    """The answer in sentences."""
    passed = figures["loads_passed"]
    if not figures["sessions_failed"]:
        return (
            f"All {passed} loads of whole healthy states passed, so no load of this machine failed here; an assertion "
            "would still turn a buffer that is cut or does not fit (question 2) into an abort."
        )
    first = figures["failed"][0]
    who = ", ".join(figures["sections_failed"]) or "no single section"
    left = f"; without it {passed} of {passed} loads passed" if passed and not figures["unexplained"] else ""
    return (
        f"No: {figures['sessions_failed']} of {figures['sessions']} sessions of whole healthy states ended in a load "
        f"that failed, by {who} "
        f"({first['verdict']}: {first['text']}){left}."
    )


def summary(cases: Sequence[Row]) -> list[Row]:
    """The table: sessions that came to the same are one row."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for case in cases:
        key = (case["verdict"], case["text"], tuple(case["sections"]), tuple(case["left_out"]))
        groups.setdefault(key, []).append(case)
    return [_row(mine) for mine in groups.values()]


def _row(mine: Sequence[Row]) -> Row:
    first = mine[0]
    without = f", without {', '.join(first['left_out'])}" if first["left_out"] else ""
    return {
        "loads": ", ".join(case["name"] for case in mine) + without,
        "asked": sum(case["asked"] for case in mine),
        "acked": sum(case["acked"] for case in mine),
        "verdict": first["verdict"],
        "sections": ", ".join(first["sections"]),
        "why": first["text"],
    }


QUESTION = Question(
    number=1,
    text="May a COLO device load be asserted to succeed?",
    columns=COLUMNS,
    ask=ask,
)
