# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload nightly``: a run each night, held against the one before.

The order of a night: reproducers of open findings are asked of builds that are new; then the cells, the most urgent
first, as long as the budget lasts; what may have come by chance once more; then it is compared and told, and what has
no reproducer gets one. ``night.json`` is written when all of that is done: a night without it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from threading import Timer

from rich.markup import escape

from harness.commands.bundle import one_of_each
from harness.commands.execute import begin, shown_run
from harness.commands.keeping import kept_run
from harness.commands.nightplan import NightPlan, plan_night
from harness.commands.notify import EndOfRun, send
from harness.commands.output import err, print_json
from harness.commands.remote import Elsewhere, elsewhere
from harness.errors import HarnessError, HostError, PostloadError, Stopped
from harness.files import write_together
from harness.nights.account import account_of, unfinished
from harness.nights.config import load_config
from harness.nights.document import Canary, NightDoc, ReproducerAnswer, as_text
from harness.nights.folder import BUNDLES, NIGHT, NIGHT_TEXT, CutOff, cut_off, last_once
from harness.nights.kept import put_answer
from harness.nights.order import order_of
from harness.nights.reproducers import Reproducer, asked_of, bundle_folder, reproducers_due
from harness.nights.telling import (
    FindingAt,
    excused_of,
    excuses_of,
    overdue_of,
    place_of,
    seen_twice,
    to_try_again,
    without,
)
from harness.report.bundle import WRITING
from harness.report.console import SafeConsole
from harness.report.nightly import answer_text, begun_text, bundle_text, night_headline, night_text
from harness.report.writer import write_reports
from harness.results.document import Cell, MatrixDoc
from harness.results.events import EVENTS_NAME, CanarySeen, Event, EventLog, Started, read_events
from harness.results.folder import held_against
from harness.results.known import KnownRun, load_known
from harness.results.signature import name_of
from harness.store.compare import compare
from harness.store.document import ChangedCell, CompareDoc
from harness.store.engine import open_store
from harness.store.importing import import_run
from harness.store.keep import put_excuses
from harness.store.read import History, RunRow, open_history
from harness.store.signatures import signatures_on
from harness.store.states import Reproduced, read_rules
from harness.store.write import RunState
from harness.triage.bundle import bundle_cell, run_script
from harness.work.run import Run
from harness.work.share import Share

#: What takes longer than that is not begun when no more is left of the budget.
_LEAST_S = 10.0
#: A second look at what may have come by chance, in the folder of the night.
AGAIN = "again"


def nightly(config: Path, as_json: bool) -> int:
    """Judge a night, or what is left of one that was cut off; returns the exit code."""
    asked = load_config(config)
    issues = () if asked.known is None else load_known(asked.known)
    plan = plan_night(asked)
    open_store(asked.store, create=True).dispose()
    cut = cut_off(asked.out, plan.name)
    started = cut.started if cut else replace(begin(plan.accel, known=issues), night=plan.name)
    night = _Night(plan, started, cut)
    err.print(escape(begun_text(night.folder, goes_on=cut is not None, absent=plan.absent)), soft_wrap=True)
    night.ask_reproducers()
    if not night.judge():
        err.print(f"postload: interrupted; the same command goes on from here: {escape(str(night.folder))}")
        return HostError.exit_code
    doc = night.told()
    doc = replace(doc, made=night.make_reproducers())
    night.keep_excuses(doc)
    write_together(night.folder, {NIGHT_TEXT: night_text(doc).encode() + b"\n", NIGHT: as_text(doc)})
    if asked.notify is not None:
        send(asked.notify, _message(doc))
    if as_json:
        print_json(doc.to_json())
    else:
        SafeConsole().print(escape(night_text(doc)), soft_wrap=True)
    return doc.exit_code


def _message(doc: NightDoc) -> EndOfRun:
    folder = Path(doc.folder)
    return EndOfRun(
        headline=night_headline(doc),
        text=night_text(doc) + "\n",
        document=doc.to_json(),
        complete=doc.whole,
        code=doc.exit_code,
        paths=(folder / NIGHT_TEXT, folder / NIGHT),
    )


class _Night:
    """A night in the making.

    :param cut: the same night, which was cut off
    """

    def __init__(self, plan: NightPlan, started: Started, cut: CutOff | None) -> None:
        self._plan, self._config = plan, plan.config
        self._started, self._cut = started, cut
        self.folder = cut.folder if cut else self._config.out / started.name
        spent_s = max((event.at_s for event in cut.events), default=0.0) if cut else 0.0
        self._budget_s = None if self._config.budget_minutes is None else 60 * self._config.budget_minutes
        self._ends = None if self._budget_s is None else time.monotonic() + self._budget_s - spent_s
        self._answers: list[ReproducerAnswer] = []
        self._made: list[ReproducerAnswer] = []
        self._doc: MatrixDoc | None = None

    @property
    def _left_s(self) -> float | None:
        """What is left of the budget; None without one."""
        return None if self._ends is None else self._ends - time.monotonic()

    @property
    def _has_time(self) -> bool:
        return self._left_s is None or self._left_s > _LEAST_S

    def ask_reproducers(self) -> None:
        """Ask the reproducers of open findings of the builds that they were not asked of yet."""
        with open_history(self._config.store) as history:
            self._answers += self._asked_before(history)
            found = signatures_on(history, read_rules())
            answers, seen = history.reproductions(), history.builds_seen()
            due = list(reproducers_due(found, self._plan.qemus, answers, seen, self._bundles))
            for each in due:
                if self._has_time:
                    self._answers.append(_kept(history, each, _answer_of(each)))
                    err.print(escape(answer_text(self._answers[-1])), soft_wrap=True)

    def _asked_before(self, history: History) -> Iterator[ReproducerAnswer]:
        """Of a night that was cut off, what it had asked before that."""
        builds = {qemu.sha256: qemu for qemu in self._plan.qemus}
        for each in history.reproductions()[::-1] if self._cut else ():
            if each.at >= self._started.started and each.build.sha256 in builds:
                yield ReproducerAnswer(
                    signature=each.signature,
                    qemu=builds[each.build.sha256],
                    answer=each.answer,
                    at=each.at,
                    script=each.script,
                )

    def judge(self) -> bool:
        """Judge the cells that are left, the most urgent first; false when it was interrupted."""
        foreseen = self._plan.foreseen
        events = self._cut.events if self._cut else ()
        mine = unfinished(foreseen, events) if self._cut else foreseen
        with open_history(self._config.store) as history:
            builds = {qemu.label: qemu.sha256 for qemu in self._plan.qemus}
            order = order_of(history, foreseen, builds)
        options = replace(self._plan.options, share=Share(mine, foreseen), order=order)
        with (
            EventLog(self.folder, goes_on=bool(events)) as log,
            kept_run(self._config.store, self.folder) as keep,
            self._elsewhere() as there,
            shown_run(
                options,
                self._started,
                log,
                keep=keep.sinks,
                guest=self._plan.guest,
                earlier=tuple(events),
                remote=there.of(self._started.name),
            ) as run,
        ):
            self._doc = self._within_budget(run)
            keep.end(self._doc)
        write_reports(self._held.doc, self.folder)
        return self._doc.complete or self._budget_is_over

    def _elsewhere(self) -> AbstractContextManager[Elsewhere]:
        """Where the tasks of the night are done."""
        given = {"store": self._config.store, "remote": self._config.remote, "each_host": False}
        return elsewhere(given, self._plan.options)

    def _within_budget(self, run: Run) -> MatrixDoc:
        left_s = self._left_s
        if left_s is None:
            return run.execute()
        timer = Timer(max(0.0, left_s), run.stop)
        timer.daemon = True
        timer.start()
        try:
            return run.execute()
        finally:
            timer.cancel()

    @property
    def _budget_is_over(self) -> bool:
        return self._left_s is not None and self._left_s <= 0

    @cached_property
    def _held(self) -> KnownRun:
        assert self._doc is not None
        return held_against(self._doc, self._started)

    @property
    def _bundles(self) -> Path:
        return self._config.out / BUNDLES

    @property
    def _day(self) -> date:
        return datetime.fromisoformat(self._started.started).date()

    def told(self) -> NightDoc:
        """Compare the night with the one before, and say what counts."""
        with open_history(self._config.store) as history:
            compared, first = self._compared(history)
        events = list(read_events(self.folder / EVENTS_NAME))
        excused = excused_of(compared, self._config.quarantine, self._day)
        hidden = {place_of(each.change) for each in excused}
        compared, once = self._tried_again(without(compared, hidden))
        assert self._doc is not None
        account = account_of(self._plan.foreseen, events, complete=self._doc.complete)
        return NightDoc(
            compared=compared,
            first=first,
            folder=str(self.folder),
            once=tuple(once),
            excused=tuple(excused),
            overdue=tuple(overdue_of(compared, self._config.quarantine, self._held.news, self._day)),
            canaries=tuple(_canaries(events)),
            planned=account.planned,
            missing=account.missing,
            absent=self._plan.absent,
            reproduced=tuple(self._answers),
            budget_s=self._budget_s,
            budget_over=not self._doc.complete,
            resumed=self._cut is not None,
        )

    def _compared(self, history: History) -> tuple[CompareDoc, bool]:
        after = history.run(self._started.name)
        if after.judged < len({cell.id for cell in self._held.doc.cells}):
            import_run(history.engine, self.folder)  # the database was away for a while
            after = history.run(self._started.name)
        before = _night_before(history, after)
        return compare(history, before or _no_run(after), after, read_rules(), excusing=False), before is None

    def _tried_again(self, compared: CompareDoc) -> tuple[CompareDoc, list[ChangedCell]]:
        """A comparison without what did not come again, and that; what was told so yesterday and came again is new."""
        before = last_once(self._config.out, self.folder)
        suspects = to_try_again(compared, before)
        if not suspects or not self._has_time:
            return compared, []
        return seen_twice(compared, suspects, self._look_again(suspects))

    def _look_again(self, suspects: Sequence[ChangedCell]) -> set[FindingAt]:
        """Which findings come once more; a cell that nobody comes to keeps what it had."""
        lines = {change.line for change in suspects}
        mine = [key for key in self._plan.foreseen if key.line in lines]
        options = replace(self._plan.options, share=Share(mine, self._plan.foreseen))
        started = replace(begin(self._plan.accel, known=None), night=self._plan.name)
        folder = self.folder / AGAIN
        with (
            EventLog(folder) as log,
            self._elsewhere() as there,
            shown_run(options, started, log, guest=self._plan.guest, remote=there.of(started.name)) as run,
        ):
            doc = self._within_budget(run)
        if not doc.complete and not self._budget_is_over:
            raise KeyboardInterrupt
        judged = {cell.key.line for cell in doc.cells if not cell.verdict.is_undecided}
        came = {(cell.key.line, name_of(cell)) for cell in doc.cells if cell.verdict.is_finding}
        return came | {place_of(change) for change in suspects if change.line not in judged}

    def keep_excuses(self, doc: NightDoc) -> None:
        """Keep with the night what it did not count, for whoever compares it and for the pages."""
        with open_history(self._config.store) as history:
            put_excuses(history.engine, history.run(self._started.name), excuses_of(doc))

    def make_reproducers(self) -> tuple[ReproducerAnswer, ...]:
        """Make a bundle of each finding that has none, as long as there is time; what those said."""
        if not self._config.bundles:
            return ()
        with open_history(self._config.store) as history:
            for signature, cell in one_of_each(self._held.doc.cells).items():
                place = bundle_folder(self._bundles, signature)
                if not place.exists() and self._has_time:
                    self._make_reproducer(history, signature, cell, place)
        return tuple(self._made)

    def _make_reproducer(self, history: History, signature: str, cell: Cell, place: Path) -> None:
        """One that does not show its finding on the build that it was found on says nothing of others: it is no
        reproducer."""
        place.parent.mkdir(parents=True, exist_ok=True)
        making = place.with_name(f".{place.name}")
        rmtree(making, ignore_errors=True)
        try:
            made = bundle_cell(cell.id, self.folder, making, WRITING)
        except (HostError, Stopped):
            raise
        except PostloadError as error:
            err.print(escape(bundle_text(signature, place, str(error))), soft_wrap=True)
            return
        if not made.answer.reproduced:
            rmtree(making)
            err.print(escape(bundle_text(signature, place, made.answer.line)), soft_wrap=True)
            return
        making.rename(place)
        qemu = replace(cell.load_qemu, label=cell.key.route.loader)
        due = Reproducer(signature=signature, qemu=qemu, bundle=place)
        self._made.append(_kept(history, due, Reproduced.STILL))


def _kept(history: History, due: Reproducer, answer: Reproduced) -> ReproducerAnswer:
    """What a reproducer said now, put into the history."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said = ReproducerAnswer(signature=due.signature, qemu=due.qemu, answer=answer, at=at, script=str(due.bundle))
    put_answer(history.engine, said)
    return said


def _answer_of(due: Reproducer) -> Reproduced:
    try:
        return asked_of(lambda: run_script(due.bundle, due.qemu.path))
    except (HostError, Stopped):
        raise
    except HarnessError:
        return Reproduced.UNDECIDED


def _canaries(events: Sequence[Event]) -> Iterator[Canary]:
    """The last of each machine."""
    found = {(event.qemu, event.machine): event for event in events if isinstance(event, CanarySeen)}
    for event in found.values():
        yield Canary(
            machine=event.machine, qemu=event.qemu, verdict=event.verdict, section=event.section, red=event.is_red
        )


def _night_before(history: History, after: RunRow) -> RunRow | None:
    """The newest earlier night of the same command line, else of any."""
    nights = [run for run in history.runs(before=after) if "nightly" in run.command]
    same = [run for run in nights if _plain(run.command) == _plain(after.command)]
    return next(iter((*same, *nights)), None)


def _plain(command: Sequence[str]) -> list[str]:
    return [word for word in command if word != "--json"]


def _no_run(after: RunRow) -> RunRow:
    """What the first night is held against: a run before all others, with no cells."""
    return replace(after, number=0, name="", started="", seconds=0.0, state=RunState.ENDED, counts={}, planned=0)
