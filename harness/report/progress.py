# SPDX-License-Identifier: GPL-2.0-or-later
"""What is going on, on stderr: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from harness.report.console import SafeConsole
from harness.report.lost import lost_text
from harness.report.text import number, plural
from harness.report.view import finding_of
from harness.results.document import Cell
from harness.results.events import CellsPlanned, Event, GuestLost, Judged, Said
from harness.results.signature import look_of
from harness.results.verdict import Verdict, rank
from harness.text import one_line

VERDICT_STYLE = {
    Verdict.CRASH: "bold red",
    Verdict.HANG: "bold red",
    Verdict.REJECT: "bold red",
    Verdict.GUEST_FAULT: "bold red",
    Verdict.DRIFT: "bold yellow",
    Verdict.LEAK: "bold yellow",
    Verdict.FLAKY: "bold yellow",
    Verdict.OK: "green",
    Verdict.UNSUPPORTED: "dim",
    Verdict.HOST: "magenta",
    Verdict.HARNESS_ERROR: "bold magenta",
}
MAX_RUNNING = 4
RATE_WINDOW_S = 3.0
_TICK_S = 1.0
#: One in so many cells has to be judged before they tell how long the others take.
_TELLING = 20


@dataclass(slots=True, kw_only=True)
class _Running:
    """A cell that is being loaded."""

    since_s: float
    loads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the display shows: cells that are done, times, and the lines below the bar."""

    done: int
    total: int
    times: str
    lines: tuple[RenderableType, ...]


class _Display(Progress):
    """The bar of a run with its facts below it, asked for whenever it is drawn.

    Times are not rich's own: it forgets what it knows of the speed with each cell that is planned later.
    """

    def __init__(self, console: Console, facts: Callable[[], _Facts]) -> None:
        self._facts = facts
        columns = (BarColumn(bar_width=None), TextColumn("{task.fields[times]}", markup=False))
        super().__init__(*columns, console=console, refresh_per_second=6, transient=True, expand=True)
        self.add_task("cells", times="")

    def get_renderables(self) -> Iterator[RenderableType]:
        facts = self._facts()
        for each in self.task_ids:
            self.update(each, completed=facts.done, total=facts.total, times=facts.times)
        yield self.make_tasks_table(self.tasks)
        yield from facts.lines


class LiveProgress:
    """Shows cells done, loads, loads a second, what is running, time and the verdicts so far.

    All methods may be called from any thread. ``with`` starts and ends the display. On a terminal it
    goes away at the end; what is not ok stays as a line the first time it is seen. Elsewhere there is a line
    at the start, for each cell that broke, for each reason why others were not judged, and about every ``interval_s``.

    :param total_cells: how many cells are planned; see :meth:`add_cells`
    :param console: where to, stderr when None
    :param clock: seconds that only go up, for tests
    """

    def __init__(
        self,
        *,
        total_cells: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 10.0,
    ) -> None:
        self._console = console or SafeConsole(stderr=True)
        self._clock = clock
        self._interval_s = interval_s
        self._lock = threading.RLock()
        self._total = total_cells
        self._done = 0
        self._loads_done = 0
        self._running: dict[str, _Running] = {}
        self._counts: Counter[Verdict] = Counter()
        self._judged: set[str] = set()
        self._seen: set[object] = set()
        self._stage = ""
        self._started_s = self._last_line_s = clock()
        self._first_cell_s: float | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._display: _Display | None = None
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> LiveProgress:
        self._started_s = self._last_line_s = self._clock()
        self._stop.clear()
        if self._console.is_terminal:
            self._display = _Display(self._console, self._facts)
            self._display.start()
        else:
            if self._total:
                self._print(f"{plural(self._total, 'cell')} to judge")
            self._ticker = threading.Thread(target=self._tick_until_stopped, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join(timeout=5)
            self._ticker = None
        if self._display is not None:
            self._display.stop()
            self._display = None

    def take(self, event: Event) -> None:
        """What an event of a run changes in the display."""
        match event:
            case CellsPlanned(cells=cells):
                self.add_cells(len(cells))
            case Judged(planned=planned, cell=cell):
                again = planned in self._judged
                self._judged.add(planned)
                # such as the rest of a row whose culprit was found
                self.add_cells(1 if again else 0)
                self.end_cell(cell)
            case GuestLost(guest=guest):
                self.message(lost_text(guest))
            case Said(text=text):
                self.message(text)

    def add_cells(self, count: int) -> None:
        """More cells were planned."""
        with self._lock:
            self._total += count

    def start_cell(self, cell_id: str) -> None:
        """A cell is being run."""
        with self._lock:
            now_s = self._clock()
            if self._first_cell_s is None:
                self._first_cell_s = now_s
            self._running[cell_id] = _Running(since_s=now_s)
            self._stage = ""

    def loads(self, cell_id: str, count: int) -> None:
        """``count`` loads of a running cell were acknowledged so far, not since the last call. Cheap."""
        with self._lock:
            running = self._running.get(cell_id)
            if running is not None:
                running.loads = count

    def end_cell(self, cell: Cell) -> None:
        """A cell was judged."""
        with self._lock:
            self._running.pop(cell.id, None)
            self._done += 1
            self._total = max(self._total, self._done + len(self._running))
            self._loads_done += cell.own_loads
            self._counts[cell.verdict] += 1
            key = None if cell.verdict is Verdict.OK else look_of(cell)
            # why a device was not judged is the same in all of its cells
            once = self._console.is_terminal or not cell.verdict.is_finding
            told = once and key in self._seen
            self._seen.add(key)
        if key is not None and not told:
            self._print(_bad_cell(cell))

    def stage(self, text: str) -> None:
        """Something else goes on, such as ``recording q35: busy``; shown until the next cell starts."""
        with self._lock:
            self._stage = one_line(text)
        if not self._console.is_terminal:
            self._print(text)

    def message(self, text: str) -> None:
        """A line that stays."""
        self._print(text)

    def tick(self) -> None:
        """Print the state if ``interval_s`` passed since it was printed; called each second."""
        with self._lock:
            if self._clock() - self._last_line_s < self._interval_s:
                return
            self._last_line_s = self._clock()
            text = self._plain()
        self._print(text)

    def _tick_until_stopped(self) -> None:
        while not self._stop.wait(_TICK_S):
            self.tick()

    def _print(self, text: str | Text) -> None:
        """Through the display when there is one: it stands below the line."""
        if isinstance(text, str):
            text = Text(one_line(text))
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _total_loads(self) -> int:
        return self._loads_done + sum(running.loads for running in self._running.values())

    def _rate(self) -> float:
        """Loads a second over the last few seconds."""
        now = (self._clock(), self._total_loads())
        self._samples.append(now)
        while len(self._samples) > 2 and now[0] - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()
        first = self._samples[0]
        passed_s = now[0] - first[0]
        return max(0, now[1] - first[1]) / passed_s if passed_s > 0 else 0.0

    def _left_s(self) -> float | None:
        """Time left, from the cells so far; None while these are too few to go by: those of the first guests say little
        of the others, and no cell is judged while these are recorded."""
        if self._first_cell_s is None or not self._done or self._done * _TELLING < self._total:
            return None
        return (self._clock() - self._first_cell_s) / self._done * max(0, self._total - self._done)

    def _times(self) -> str:
        left_s = self._left_s()
        elapsed = _clock_text(self._clock() - self._started_s)
        return elapsed if left_s is None else f"{elapsed}, about {_clock_text(left_s)} left"

    def _plain(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self._sorted_counts())
        cells = [f"{self._done}/{plural(self._total, 'cell')}" + (f" ({counts})" if counts else "")]
        cells += [f"{plural(self._total_loads(), 'load')}, {number(self._rate())}/s"]
        # a recording that is made for itself has no cells
        parts = [*(cells if self._total else []), self._times()]
        doing = list(self._running) or ([self._stage] if self._stage else [])
        parts += [f"now {', '.join(doing[:MAX_RUNNING])}"] if doing else []
        return "; ".join(parts)

    def _sorted_counts(self) -> list[tuple[Verdict, int]]:
        return sorted(self._counts.items(), key=lambda item: rank(item[0]))

    def _facts(self) -> _Facts:
        with self._lock:
            return _Facts(
                done=self._done, total=max(1, self._total), times=self._times(), lines=(self._numbers(), *self._doing())
            )

    def _numbers(self) -> Text:
        if not self._total:
            return Text("recording", no_wrap=True)
        line = Text(f"{self._done}/{plural(self._total, 'cell')}", no_wrap=True, overflow="ellipsis")
        for verdict, count in self._sorted_counts():
            line.append("  ").append(f"{count} {verdict}", style=VERDICT_STYLE[verdict])
        return line.append(f"   {plural(self._total_loads(), 'load')}, {number(self._rate())}/s")

    def _doing(self) -> list[Text]:
        lines = [Text(f"  {self._stage}", style="dim", no_wrap=True, overflow="ellipsis")] if self._stage else []
        for cell_id, running in list(self._running.items())[:MAX_RUNNING]:
            line = Text(f"  {one_line(cell_id)}", no_wrap=True, overflow="ellipsis")
            passed_s = self._clock() - running.since_s
            lines.append(line.append(f"  {plural(running.loads, 'load')}, {passed_s:.0f} s", style="dim"))
        more = len(self._running) - MAX_RUNNING
        return [*lines, Text(f"  and {more} more", style="dim")] if more > 0 else lines


def _clock_text(seconds: float) -> str:
    """``0:41``, ``12:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bad_cell(cell: Cell) -> Text:
    finding = finding_of(cell)
    line = Text(" ").join([Text(cell.verdict.value, style=VERDICT_STYLE[cell.verdict]), Text(one_line(cell.id))])
    if finding is None:
        return line
    where = f"{finding.section}: " if finding.section else ""
    return line.append(f"  {one_line(where + finding.text)}", style="dim")
