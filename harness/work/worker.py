# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers carry out tasks: here, in threads of this process; in :mod:`harness.work.process`, in another one; in
:mod:`harness.work.remote`, on other hosts."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Lock, Timer
from typing import Literal, Protocol

from harness.engines.buffers import Buffers
from harness.engines.colo import Pace
from harness.engines.probe import ColoAbility, probe_colo
from harness.errors import BudgetError, HostError, PackError, Stopped
from harness.lanes.canary import SpoiltBuffers
from harness.lanes.controls import ControlRoom
from harness.lanes.judge import Bench, Exclusion
from harness.lanes.registry import LANES
from harness.oracles.isolate import Suspect
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.disturbance import TRIES, Account, Hindered, attempt, undisturbed
from harness.qemu.scope import ProcessScope
from harness.results.document import Cell
from harness.results.key import CellKey
from harness.results.voided import is_void_cell, voided
from harness.work.task import Task

#: Encoded buffers of a machine take some 100 MB: those of the machines that are judged at a time are kept.
_KEPT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """How many loads of a cell were acknowledged so far."""

    cell: str
    total: int
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDone:
    """A cell, and the name that it was planned by: several come for a device whose sections are to blame."""

    planned: str
    cell: Cell
    kind: Literal["cell"] = "cell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What a task found out that later ones have to leave out; the last that it says."""

    exclusions: tuple[Exclusion, ...]
    kind: Literal["learnt"] = "learnt"


Reported = Loaded | CellDone | Learnt
Tell = Callable[[Reported], None]


class Worker(Protocol):
    """Carries out tasks, some at a time."""

    def run(self, task: Task, tell: Tell) -> None:
        """Do one task; what comes of it is told as it comes, from this thread.

        :raises HostError: this host cannot do it, and could no other task either
        :raises Stopped: the run was told to stop
        :raises BudgetError: the task took longer than it was given; what was told until then holds
        :raises HarnessError: the task could not be carried out; what was told until then holds
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A recording under a QEMU."""

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    controls: ControlRoom
    hints: list[Suspect] = field(default_factory=list)


class LocalWorker:
    """Carries out tasks in the thread that asks. What tasks name is opened once, and kept for the next.

    :param scope: of the run
    """

    def __init__(self, scope: ProcessScope) -> None:
        self._scope = scope
        self._lock = Lock()
        self._packs: dict[str, StatePack] = {}
        self._lent: Counter[str] = Counter()
        self._binaries: dict[str, tuple[QemuBinary, ColoAbility]] = {}
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def lend(self, pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
        """Let it use what is open already, until as many tasks' places were cleared as it was lent for."""
        with self._lock:
            self._packs[pack.content] = pack
            self._lent[pack.content] += 1
            self._binaries[binary.sha256] = binary, ability

    def clear(self, task: Task) -> None:
        """No further task comes to the place of this one: the pack that was lent, and all made of it, is let go."""
        content = task.recording.content
        with self._lock:
            self._places.pop(repr(task.place), None)
            self._lent[content] -= 1
            if self._lent[content] <= 0:
                del self._lent[content]
                self._packs.pop(content, None)

    def run(self, task: Task, tell: Tell, within: ProcessScope | None = None) -> None:
        """See :meth:`Worker.run`. Where the host disturbed it, what came to nothing is tried again.

        :param within: closing it ends this task alone
        """
        with _within(task.budget_s, within or self._scope) as scope:
            place = undisturbed(lambda: self._place(task))
            tries = _Tries(tell)
            while not tries.over:
                bench = self._bench(task, place, scope)
                with attempt() as account:
                    self._try(task, place, bench, tries.begin(account))
                tries.end()
            learnt = bench.exclusions - frozenset(task.excluded)
            tell(Learnt(exclusions=tuple(learnt)))

    def _try(self, task: Task, place: _Place, bench: Bench, tell: Tell) -> None:
        control = replace(place.controls, bench=bench).judge if task.controls else None
        lane = LANES[task.request.lane]
        cells = lane.judge(bench, task.request, lambda cell, total: tell(Loaded(cell=cell, total=total)), control)
        for cell in islice(cells, 1) if task.canary else cells:  # what is behind the fault is nobody's question
            bench.scope.check()  # its QEMU may have been killed by the stop
            tell(CellDone(planned=str(task.cell_of(cell.device)), cell=cell))
        bench.scope.check()

    def _bench(self, task: Task, place: _Place, scope: ProcessScope) -> Bench:
        bench = Bench(
            binary=place.binary,
            ability=place.ability,
            buffers=place.buffers,
            pace=Pace(run_s=task.run_s),
            scope=scope,
            devices=task.guest,
            rows=frozenset(task.request.devices),
            came=task.came,
            named=task.answers[0].route,
            hints=place.hints,
        )
        bench.tell(task.excluded)
        return bench

    def _place(self, task: Task) -> _Place:
        key = repr(task.place)
        with self._lock:
            if key not in self._places:
                self._places[key] = self._opened(task)
                while len(self._places) > _KEPT:
                    self._places.popitem(last=False)
                used = {place.buffers.pack.content for place in self._places.values()} | self._lent.keys()
                self._packs = {content: pack for content, pack in self._packs.items() if content in used}
            self._places.move_to_end(key)
            return self._places[key]

    def _opened(self, task: Task) -> _Place:
        pack = self._pack(task)
        binary, ability = self._binary(task, pack)
        machine = replace(pack.machine, extra=task.overrides)
        buffers = SpoiltBuffers(pack, machine) if task.canary else Buffers(pack, machine)
        bench = Bench(binary=binary, ability=ability, buffers=buffers, pace=Pace(), scope=self._scope)
        return _Place(
            binary=binary, ability=ability, buffers=buffers, controls=ControlRoom(bench=bench, pair=task.pair)
        )

    def _pack(self, task: Task) -> StatePack:
        wanted = task.recording
        if wanted.content not in self._packs:
            pack = StatePack(Path(wanted.path))
            if pack.content != wanted.content:
                pack.close()
                raise PackError(f"{wanted.path}: the recording is another one than that of the task")
            self._packs[wanted.content] = pack
        return self._packs[wanted.content]

    def _binary(self, task: Task, pack: StatePack) -> tuple[QemuBinary, ColoAbility]:
        wanted = task.loader
        if wanted.sha256 not in self._binaries:
            binary = probe_binary(Path(wanted.path), pack.device_types)
            if binary.sha256 != wanted.sha256:
                raise HostError(f"{wanted.path}: the program is another one than that of the task")
            self._binaries[wanted.sha256] = binary, probe_colo(binary, self._scope)
        return self._binaries[wanted.sha256]


class _Tries:
    """The tries of one task. What is not void is told at once, each cell once; the rest waits for the next try.

    A device that has one void cell is judged anew as a whole, but what was told of it stands. One that had none in a
    try is settled, whatever comes of the next.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._left = TRIES
        self._told: set[CellKey] = set()
        self._settled: set[str] = set()
        self._came: set[str] = set()
        self._void: dict[str, list[CellDone]] = {}
        self._before: tuple[Hindered, ...] = ()
        self._account = Account()
        self.over = False

    def begin(self, account: Account) -> Tell:
        """A new try; returns who is to be told what comes of it."""
        self._account = account
        self._void = {}
        self._came = set()
        self._left -= 1
        return self._take

    def end(self) -> None:
        """A try is over."""
        hindered = self._account.hindered
        self._settled |= self._came - self._void.keys()
        self.over = not self._void or not self._left
        if self.over:
            for each in self._void.values():
                self._give_up(each, hindered)
        self._before += hindered

    def _give_up(self, void: Sequence[CellDone], hindered: Sequence[Hindered]) -> None:
        """The last try of a device came to nothing too. Where its finding was told before, its rest is not judged."""
        told = [key.rest for key in self._told if replace(key, rest=0) == replace(void[0].cell.key, rest=0)]
        if told:
            rest = void[0].cell.key
            void = [replace(void[0], cell=replace(void[0].cell, key=replace(rest, rest=1 + max(told))))]
        for done in void:
            self._say(replace(done, cell=voided(done.cell, hindered)))

    def _take(self, said: Reported) -> None:
        if not isinstance(said, CellDone):
            self._tell(said)
            return
        if said.planned in self._settled:
            return
        self._came.add(said.planned)
        if said.planned in self._void or is_void_cell(said.cell, self._account.hindered):
            self._void.setdefault(said.planned, []).append(said)
        elif said.cell.key not in self._told:
            self._say(said)

    def _say(self, done: CellDone) -> None:
        self._told.add(done.cell.key)
        outcome = replace(done.cell.outcome, hindered=tuple(dict.fromkeys(self._before)))
        self._tell(replace(done, cell=replace(done.cell, outcome=outcome)))


@contextmanager
def _within(budget_s: float | None, parent: ProcessScope) -> Iterator[ProcessScope]:
    """A scope of a task's own; when the budget is spent its QEMUs are killed, and nothing new is begun.

    :raises BudgetError: it was spent
    :raises Stopped: the run was told to stop
    """
    with ProcessScope(parent) as scope:
        timer = Timer(budget_s, scope.close) if budget_s is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield scope
        except Stopped:
            parent.check()
            if budget_s is None:
                raise
            raise BudgetError(budget_s) from None
        finally:
            if timer is not None:
                timer.cancel()
