# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary migration of a recorded guest into a new process, before any checkpoint: does this QEMU take the state?

A section that is refused here would be refused in the incoming stream of every COLO session too. It is left out of
what comes behind, so that it does not hide what the other devices do; its own row loads it all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from harness.errors import HarnessError
from harness.matrix.answer import PLATFORM
from harness.matrix.checks import Check, Oracle, Outcome, Told
from harness.matrix.judge import MAX_BLAMED, Bench
from harness.oracle.load import Judgement, judge
from harness.oracle.verdict import Verdict
from harness.replay.engine import Evidence
from harness.replay.fresh import Fresh
from harness.replay.incoming import State
from harness.replay.state import label_of
from harness.triage.isolate import ddmin

Engine = Callable[[Bench, State], Evidence]


def planned_migrations(names: Sequence[str], phases: Sequence[str], rows: Sequence[str]) -> list[Check]:
    """The migrations of one machine, in their order; a cell for each row, over all phases."""
    engines: dict[str, Engine] = {"plain": _fresh}
    return [
        Check(
            oracle=Oracle(name),
            phases=tuple(phases),
            rows=tuple(rows),
            schedule="same",
            run=partial(_migrate, engine=engines[name]),
        )
        for name in engines
        if name in names
    ]


def _fresh(bench: Bench, state: State) -> Evidence:
    return Fresh(binary=bench.binary, state=state, processes=1, stop=bench.stop).run()


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What came of all phases."""

    told: dict[str, list[Told]]
    refused: set[str] = field(default_factory=set)
    asked: int = 0
    passed: int = 0


def _migrate(bench: Bench, check: Check, *, engine: Engine) -> Outcome:
    tally = _Tally(told={row: [] for row in check.rows}, refused=set(bench.refused))
    for phase in check.phases:
        _one_phase(bench, phase, engine, tally)
    bench.refused = frozenset(tally.refused)
    ok = Told(verdict=Verdict.OK)
    return Outcome(
        told={row: found or [ok] for row, found in tally.told.items()},
        loads_asked=tally.asked,
        loads_acked=tally.passed,
        engine=str(check.oracle) if check.oracle is not Oracle.PLAIN else "fresh",
        guest_mode="running",
    )


def _one_phase(bench: Bench, phase: str, engine: Engine, tally: _Tally) -> None:
    """Load a phase; without what is refused, until it passes or nobody can be blamed."""
    absent = frozenset(tally.refused)
    for _ in range(MAX_BLAMED):
        tally.asked += 1
        judgement = judge(engine(bench, State(buffers=bench.buffers, phase=phase, excluded=absent)))
        if judgement.verdict is Verdict.OK:
            tally.passed += 1
            return
        blamed = _blamed(bench, phase, engine, absent, judgement)
        _tell(bench, tally, phase, judgement, blamed)
        if not blamed:
            return
        absent |= frozenset(blamed)
        tally.refused.update(blamed)


def _blamed(
    bench: Bench, phase: str, engine: Engine, absent: frozenset[str], judgement: Judgement
) -> tuple[str, ...]:
    """The section that QEMU names, else the fewest without which the load passes."""
    if not judgement.verdict.is_finding:
        return ()
    there = [label_of(s) for s in bench.buffers.pack.recordings[phase].sections]
    left = [label for label in there if label not in absent]
    if judgement.named in left:
        return (judgement.named,)

    def passes_without(labels: Sequence[str]) -> Judgement | None:
        state = State(buffers=bench.buffers, phase=phase, excluded=absent | frozenset(labels))
        found = judge(engine(bench, state))
        return found if found.verdict is Verdict.OK else None

    whole = passes_without(left)
    return tuple(ddmin(left, passes_without, whole)[0]) if whole else ()


def _tell(bench: Bench, tally: _Tally, phase: str, judgement: Judgement, blamed: Sequence[str]) -> None:
    owners = {label: device.name for device in bench.buffers.pack.manifest.devices for label in device.sections}
    if not judgement.verdict.is_finding:
        for told in tally.told.values():
            told.append(Told(verdict=judgement.verdict, text=f"phase {phase}: {judgement.text}", log=judgement.log))
        return
    for label in blamed or (None,):
        row = owners.get(label or "", PLATFORM)
        if row not in tally.told:
            raise HarnessError(f"phase {phase}: {label or 'an unknown section'} of row {row} breaks: {judgement.text}")
        tally.told[row].append(
            Told(
                verdict=judgement.verdict,
                section=label,
                text=f"phase {phase}: {judgement.text}",
                log=judgement.log,
            )
        )
