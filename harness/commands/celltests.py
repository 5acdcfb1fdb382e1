# SPDX-License-Identifier: GPL-2.0-or-later
"""The cells of a run as tests of pytest: what there is to collect, and what became of each.

Cells are judged by guests: the first test of a guest starts a run over all cells of the guest that were selected, and
the others wait for theirs. Workers of pytest-xdist are processes; whichever comes first judges a guest, the others read
its events. So each guest is recorded once, in the cache that all commands share.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import click

from harness.commands import declared
from harness.commands.execute import begin
from harness.commands.matrix import MatrixAsked, asked_of
from harness.errors import HarnessError, UsageError
from harness.qemu.scope import ProcessScope
from harness.report.celltext import body_of, facts_of, message_of
from harness.report.view import explain_cell
from harness.report.writer import write_reports
from harness.results.document import Cell, MatrixDoc
from harness.results.events import EVENTS_NAME, EventLog, Judged, RunEnded, ShardOf, event_of, write_events
from harness.results.folder import held_against
from harness.results.key import CellKey
from harness.results.known import Issue, NewsKind, annotate
from harness.results.merged import merge
from harness.results.verdict import Verdict
from harness.work.asked import Options
from harness.work.run import Run
from harness.work.shards import foresee
from harness.work.share import Share

_POLL_S = 0.1


class Came(Enum):
    """What a test comes to."""

    PASSED = "passed"
    FAILED = "failed"
    KNOWN = "known"
    #: It is known, and did not come.
    GONE = "gone"
    SKIPPED = "skipped"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What became of a test.

    :param text: why, for whoever reads the test's report; of a known one where it is described
    :param facts: what is known of its cells whatever they came to
    """

    came: Came
    seconds: float = 0.0
    text: str = ""
    facts: str = ""


def result_of(cells: Sequence[Cell], issues: Sequence[Issue], run: str = "") -> CellResult:
    """What some cells come to that are one test: a cell, and the further looks at it without what was blamed.

    :param run: folder of the reports that ``postload explain`` is to be asked with
    """
    if not cells:
        return CellResult(came=Came.SKIPPED, text="its device did not get there")
    held = annotate(_document(cells), issues)
    cells = held.doc.cells
    expected = [n.issue.link for n in held.news if n.kind is NewsKind.GONE and n.issue.seen == cells[0].key.place]
    by = {
        Came.FAILED: [cell for cell in cells if cell.verdict.is_finding and not cell.known],
        Came.UNDECIDED: [cell for cell in cells if cell.verdict.is_undecided],
        Came.KNOWN: [cell for cell in cells if cell.known],
        Came.SKIPPED: [cell for cell in cells if cell.verdict is Verdict.UNSUPPORTED],
    }
    came = next((came for came, found in by.items() if found), Came.GONE if expected else Came.PASSED)
    texts: Mapping[Came, Callable[[Cell], str]] = {
        Came.KNOWN: lambda cell: cell.known,
        Came.SKIPPED: message_of,
        Came.UNDECIDED: body_of,
        Came.FAILED: lambda cell: _failure(cell, run),
    }
    told = expected if came is Came.GONE else [texts[came](cell) for cell in by.get(came, ())]
    return CellResult(
        came=came,
        seconds=sum(cell.seconds for cell in cells),
        text="\n\n".join(dict.fromkeys(told)),
        facts="\n".join(line for cell in cells for line in facts_of(cell)),
    )


def _failure(cell: Cell, run: str) -> str:
    _, _, more = body_of(cell).partition("\n")  # what comes first is the message
    lines = [f"{cell.verdict}: {message_of(cell)}", more, f"next: {explain_cell(cell.id, run)}"]
    return "\n".join(filter(None, lines))


def _document(cells: Sequence[Cell]) -> MatrixDoc:
    today = datetime.now(UTC).isoformat(timespec="seconds")
    return MatrixDoc(command=(), started=today, seconds=0.0, complete=True, host={}, machines=(), cells=tuple(cells))


class CellTests:
    """The cells of one command line.

    :param words: options as ``postload matrix`` takes them
    :param folder: shared by all workers of the session
    :param workers: that judge at a time
    """

    def __init__(self, words: Sequence[str], folder: Path, workers: int = 1) -> None:
        self._folder = folder
        self._command = ("postload", "matrix", *words)
        self._context = _context(words)
        declared.own(self._context)
        self._scope: ProcessScope = self._context.obj
        given = self._context.params
        self.out: Path = given["out"]
        with self._context.scope(cleanup=False):
            self._asked: MatrixAsked = asked_of(given)
        self.issues: tuple[Issue, ...] = self._asked.issues or ()
        options = self._asked.options
        self._options = replace(options, jobs=max(1, options.jobs // workers))
        self._guests = [guest for guest in foresee(options) if guest.cells]
        self.cells: tuple[CellKey, ...] = tuple(key for guest in self._guests for key in guest.cells)
        self._share = Share((), self.cells)
        self._of_guest = {str(key): number for number, guest in enumerate(self._guests) for key in guest.cells}
        self._wanted: list[CellKey] = []
        self._parts: dict[int, _GuestCells] = {}

    def select(self, wanted: Sequence[CellKey]) -> None:
        """Say which cells are tests of this session; the same in each worker."""
        self._wanted = list(wanted)
        numbers = list(dict.fromkeys(self._of_guest[str(key)] for key in wanted))
        for at, number in enumerate(numbers, 1):
            mine = [key for key in wanted if self._of_guest[str(key)] == number]
            shard = ShardOf(number=at, of=len(numbers), plan=self._folder.name)
            options = replace(self._options, share=Share(mine, self.cells))
            self._parts[number] = _GuestCells(
                folder=self._folder / str(at), options=options, shard=shard, command=self._command
            )

    def result(self, key: CellKey) -> CellResult:
        """What became of a cell; judges its guest where no other worker does.

        :raises HarnessError: whoever judged the guest was ended
        """
        part = self._parts[self._of_guest[str(key)]]
        name = str(key)
        while True:
            over = part.go_on(self._asked, self._scope, [each for each in self._parts.values() if each is not part])
            cells = [cell for planned, cell in part.judged() if self._share.foreseen(planned) == name]
            # a finding may be followed by a further look, which is known when all are
            if over or (cells and not any(cell.verdict.is_finding for cell in cells)):
                return result_of(cells, self.issues, str(self.out))
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Stop what still goes on."""
        self._scope.close()
        for part in self._parts.values():
            part.join()
        self._context.close()


def _context(words: Sequence[str]) -> click.Context:
    """The options of ``postload matrix`` with their defaults.

    :raises UsageError: one is wrong
    """
    try:
        return declared.matrix.make_context("postload matrix", list(words))
    except click.ClickException as error:
        raise UsageError(error.format_message()) from error


class _GuestCells:
    """The cells of one guest, judged by the first process that asks."""

    def __init__(self, *, folder: Path, options: Options, shard: ShardOf, command: tuple[str, ...]) -> None:
        self.folder = folder
        self._command = command
        self._options = options
        self._shard = shard
        self._lock: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._offset = 0
        self._cells: list[tuple[str, Cell]] = []
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether this process judges it now."""
        return self._thread is not None and self._thread.is_alive()

    def go_on(self, asked: MatrixAsked, scope: ProcessScope, others: Sequence[_GuestCells]) -> bool:
        """Judge it, unless somebody does or did; whether all of it is judged.

        :param others: this process judges one guest at a time
        :raises HarnessError: it was not judged to its end
        """
        if self.busy:
            return False
        self._read()
        if self._ended or self._thread is not None:
            return self._over()
        if not any(other.busy for other in others) and self._take():
            self._read()  # somebody may have begun meanwhile
            if self._offset:
                self._give_back()
                return self._over()
            self._thread = threading.Thread(target=self._judge, args=(asked, scope), name="cells", daemon=True)
            self._thread.start()
        return False

    def judged(self) -> list[tuple[str, Cell]]:
        """The cells so far, with what was planned where each came."""
        self._read()
        return self._cells

    def join(self) -> None:
        """Wait until this process judges it no more."""
        if self._thread is not None:
            self._thread.join()

    def _over(self) -> bool:
        if not self._ended:
            why = f": {self._error}" if self._error is not None else ""
            raise HarnessError(f"the run that judged it was ended{why}")
        return True

    def _take(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def _give_back(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _judge(self, asked: MatrixAsked, scope: ProcessScope) -> None:
        started = replace(begin(asked.accel, known=asked.issues, shard=self._shard), command=self._command)
        try:
            with EventLog(self.folder) as log:
                Run(
                    self._options, guest=asked.guest, watcher=_Quiet(), started=started, write=log.write, scope=scope
                ).execute()
        except Exception as error:
            self._error = error
        finally:
            self._give_back()

    def _read(self) -> None:
        """Take what was written since the last time, whole lines only."""
        with suppress(FileNotFoundError), (self.folder / EVENTS_NAME).open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                event = event_of(line)
                if isinstance(event, Judged):
                    self._cells.append((event.planned, event.cell))
                elif isinstance(event, RunEnded):
                    self._ended = event.complete


class _Quiet:
    """Is told of progress, and says nothing."""

    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


def report_parts(folder: Path, words: Sequence[str]) -> list[Path]:
    """Write the reports of all guests that were judged below a folder; empty where none was."""
    folders = sorted((path.parent for path in folder.glob(f"*/{EVENTS_NAME}")), key=lambda path: int(path.name))
    if not folders:
        return []
    out: Path = _context(words).params["out"]
    fold = write_events(merge(folders, whole=False).events, out)
    return write_reports(held_against(fold.document(), fold.started).doc, out)
