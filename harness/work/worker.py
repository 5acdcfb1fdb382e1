# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers carry out tasks: here, in threads of this process; in :mod:`harness.work.process`, in another one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol

from harness.engines.buffers import Buffers
from harness.engines.colo import Pace
from harness.engines.probe import ColoAbility, probe_colo
from harness.errors import HostError, PackError
from harness.lanes.controls import ControlRoom
from harness.lanes.judge import Bench, Exclusion
from harness.lanes.registry import LANES
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.scope import ProcessScope
from harness.results.document import Cell
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
        :raises HarnessError: the task could not be carried out; what was told until then holds
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A recording under a QEMU."""

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    controls: ControlRoom


class LocalWorker:
    """Carries out tasks in the thread that asks. What tasks name is opened once, and kept for the next.

    :param scope: of the run
    """

    def __init__(self, scope: ProcessScope) -> None:
        self._scope = scope
        self._lock = Lock()
        self._packs: dict[str, StatePack] = {}
        self._binaries: dict[str, tuple[QemuBinary, ColoAbility]] = {}
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def lend(self, pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
        """Let it use what is open already."""
        with self._lock:
            self._packs[pack.content] = pack
            self._binaries[binary.sha256] = binary, ability

    def run(self, task: Task, tell: Tell) -> None:
        """See :meth:`Worker.run`."""
        place = self._place(task)
        bench = self._bench(task, place)
        control = place.controls.judge if task.controls else None
        lane = LANES[task.request.lane]
        cells = lane.judge(bench, task.request, lambda cell, total: tell(Loaded(cell=cell, total=total)), control)
        for cell in cells:
            self._scope.check()  # its QEMU may have been killed by the stop
            tell(CellDone(planned=str(task.cell_of(cell.device)), cell=cell))
        self._scope.check()
        learnt = bench.exclusions - frozenset(task.excluded)
        tell(Learnt(exclusions=tuple(learnt)))

    def _bench(self, task: Task, place: _Place) -> Bench:
        bench = Bench(
            binary=place.binary,
            ability=place.ability,
            buffers=place.buffers,
            pace=Pace(run_s=task.run_s),
            scope=self._scope,
            devices=task.guest,
            came=task.came,
            named=task.answers[0].route,
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
            self._places.move_to_end(key)
            return self._places[key]

    def _opened(self, task: Task) -> _Place:
        pack = self._pack(task)
        binary, ability = self._binary(task, pack)
        machine = replace(pack.machine, extra=task.overrides)
        buffers = Buffers(pack, machine)
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
