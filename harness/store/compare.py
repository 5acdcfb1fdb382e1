# SPDX-License-Identifier: GPL-2.0-or-later
"""What is new, back, gone or not run in one run against an earlier one.

Cells are held together by their line, so that a QEMU's next point release is compared with the one before it, and so
that what a cell broke on in its first look and in a further one count alike. Every finding of a cell is looked at by
itself: its facts are found here, what they come to is said by the rules (:mod:`harness.store.states`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from harness.results.key import route_of
from harness.results.verdict import Verdict, rank
from harness.store.document import ChangedCell, CompareDoc
from harness.store.read import Glance, History, RunRow
from harness.store.states import (
    SILENT,
    CellFacts,
    CellState,
    ExcuseKind,
    FailRate,
    HistoryRules,
    Look,
    Reproduced,
    SeenBefore,
    excuse_of,
    fail_rate,
)

#: What the cells of one line came to in one run.
Cells = Sequence[Glance]


def compare(
    history: History, before: RunRow, after: RunRow, rules: HistoryRules, *, excusing: bool = True
) -> CompareDoc:
    """Hold a run against an earlier one.

    :param excusing: what the later run did not count stands apart
    :raises HostError: the history cannot be read
    """
    changes = list(_Comparison(history, before, after, rules, excusing=excusing).changes())
    lists: dict[CellState, list[ChangedCell]] = {state: [] for state in CellState}
    excused: list[ChangedCell] = []
    for change in sorted(changes, key=_order):
        counts = change.excuse is None or change.excuse.kind is ExcuseKind.KNOWN
        (lists[change.state] if counts else excused).append(change)
    return CompareDoc(
        before=before,
        after=after,
        new=tuple(lists[CellState.NEW]),
        back=tuple(lists[CellState.BACK]),
        fixed=tuple(lists[CellState.FIXED]),
        unseen=tuple(lists[CellState.UNSEEN]),
        still=tuple(lists[CellState.STILL]),
        flaky=tuple(lists[CellState.FLAKY]),
        not_run=(*lists[CellState.UNKNOWN], *lists[CellState.NOT_RUN]),
        excused=tuple(excused),
    )


def _order(change: ChangedCell) -> tuple[int, str, str]:
    worst = min((rank(verdict) for verdict in (change.now, change.was) if verdict is not None), default=0)
    return worst, change.signature, change.cell


class _Comparison:
    """The facts of two runs and of those before them."""

    def __init__(self, history: History, before: RunRow, after: RunRow, rules: HistoryRules, *, excusing: bool) -> None:
        self._rules = rules
        kept = history.excuses([after]).get(after.number, ())
        self._excuses = [each for each in kept if excusing or each.kind is ExcuseKind.KNOWN]
        last = history.numbers_before(after, rules.flaky.last - 1)
        earlier = history.numbers_before(before, rules.flaky.last)
        numbers = {*last, *earlier, before.number, after.number}
        glances: dict[int, list[Glance]] = {number: [] for number in numbers}
        for glance in history.glances_to_compare(numbers, before, after):
            glances[glance.run].append(glance)
        runs = {number: by_line(found) for number, found in glances.items()}
        self._before, self._after = runs[before.number], runs[after.number]
        self._last = [runs[number] for number in (*reversed(last), after.number)]
        self._earlier = [runs[number] for number in earlier]
        self._seen = history.seen_before(after, before)
        self._routes = {name: {route_of(line) for line in lines} for name, lines in self._seen.items()}
        self._answers = _newest_answers(history)
        self._failed = {glance.line for found in glances.values() for glance in found if glance.is_finding}

    def changes(self) -> Iterator[ChangedCell]:
        """Everything but cells that pass and passed."""
        for line in sorted({*self._before, *self._after, *self._failed}):
            yield from self._of_line(line)

    def _of_line(self, line: str) -> Iterator[ChangedCell]:
        now = self._after.get(line, ())
        was = self._was(line)
        findings = dict.fromkeys((*_findings(now), *_findings(was)))
        for name in findings:
            yield self._of_finding(line, name, now, was)
        planned = bool(now) or look_at(self._before.get(line, ()), "") not in SILENT
        if planned and not findings and look_at(now, "") in SILENT:
            yield self._of_finding(line, "", now, was)

    def _of_finding(self, line: str, name: str, now: Cells, was: Cells) -> ChangedCell:
        kind = name.partition(":")[0]
        rate = self._rate(line, name) if kind in self._rules.flaky.kinds else None
        facts = CellFacts(
            now=look_at(now, name),
            was=look_at(was, name) if was else Look.NEVER,
            seen=self._seen_in(line, name),
            known=any(glance.known for glance in now if glance.signature == name),
            flaky=rate is not None and self._rules.flaky.fits(kind, rate),
            reproducer=self._reproduced(name, now),
        )
        own = _own(now, name) or _own(was, name)
        fails = facts.now is Look.FAILS
        return ChangedCell(
            state=self._rules.cell_state(facts),
            cell=own.cell if own else line,
            line=line,
            signature=name,
            was=_verdict(was, name),
            now=_verdict(now, name),
            look=facts.now,
            known=own.known if own else "",
            excuse=excuse_of(self._excuses, line, name, own.known if own else "") if fails else None,
            rate=rate,
        )

    def _was(self, line: str) -> Cells:
        """The cells of a line as the earlier run has them, else as the last one before it that judged them."""
        for run in (self._before, *self._earlier):
            if look_at(run.get(line, ()), "") not in SILENT:
                return run[line]
        return self._before.get(line, ())

    def _rate(self, line: str, name: str) -> FailRate:
        looks = (look_at(run.get(line, ()), name) for run in self._last)
        return fail_rate([look is Look.FAILS for look in looks if look in (Look.FAILS, Look.OK)])

    def _seen_in(self, line: str, name: str) -> SeenBefore:
        lines = self._seen.get(name, set())
        if line in lines or lines == {""}:
            return SeenBefore.HERE
        return SeenBefore.ELSEWHERE if route_of(line) in self._routes.get(name, ()) else SeenBefore.NEVER

    def _reproduced(self, name: str, now: Cells) -> Reproduced:
        answers = (self._answers.get((name, glance.loader)) for glance in now)
        return next((answer for answer in answers if answer is not None), Reproduced.NONE)


def by_line(glances: Iterable[Glance]) -> dict[str, Cells]:
    """The cells of one run by their lines."""
    found: dict[str, list[Glance]] = {}
    for glance in glances:
        found.setdefault(glance.line, []).append(glance)
    return dict(found.items())


def _findings(cells: Cells) -> list[str]:
    return [glance.signature for glance in cells if glance.is_finding]


def look_at(cells: Cells, name: str) -> Look:
    """What the cells of a line say of a finding; of none when it has no name."""
    findings = _findings(cells)
    verdicts = {glance.verdict for glance in cells}
    if findings:
        return Look.FAILS if name in findings else Look.OTHER
    if not cells:
        return Look.ABSENT
    if None in verdicts:
        return Look.UNJUDGED
    if any(verdict is not None and verdict.is_undecided for verdict in verdicts):
        return Look.UNDECIDED
    return Look.UNSUPPORTED if verdicts == {Verdict.UNSUPPORTED} else Look.OK


def _own(cells: Cells, name: str) -> Glance | None:
    """The cell of a line that has a finding, else the first of them."""
    return next((glance for glance in cells if glance.signature == name and glance.is_finding), next(iter(cells), None))


def _verdict(cells: Cells, name: str) -> Verdict | None:
    """Of the cell that has a finding, else the worst of the line; None where none was judged."""
    own = [glance.verdict for glance in cells if glance.signature == name and glance.is_finding]
    found = own or [glance.verdict for glance in cells]
    return min((verdict for verdict in found if verdict is not None), key=rank, default=None)


def _newest_answers(history: History) -> Mapping[tuple[str, str], Reproduced]:
    """By signature and hash of the build."""
    newest = history.reproductions()
    return {(each.signature, each.build.sha256): each.answer for each in reversed(newest)}
