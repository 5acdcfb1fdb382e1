# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cells of one machine come to: is a checkpoint safe?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.qemu.binary import QemuBinary
from harness.results.cause import Undecided, Why
from harness.results.document import MIGRATIONS, Cell, Colo, ColoReason, MachineResult, Qemu
from harness.results.key import Route
from harness.results.verdict import Verdict

PLATFORM = "platform"
#: What breaks no load.
_SLOW = (Verdict.DRIFT, Verdict.LEAK)


@dataclass(slots=True, kw_only=True)
class Seen:
    """A machine of the run under one QEMU; ``ability`` is None until it was probed."""

    machine: str
    family: str
    binary: QemuBinary
    recorder: Qemu
    loader: Qemu
    ability: ColoAbility | None = None

    @property
    def route(self) -> Route:
        """How cells name the QEMU, or the pair of them."""
        return Route(recorder=self.recorder.label, loader=self.loader.label)

    def result(self) -> MachineResult:
        """What is known of it before any cell is judged."""
        return MachineResult(
            machine=self.machine,
            alias=self.family,
            qemu=self.loader,
            record_qemu=None if self.recorder.sha256 == self.loader.sha256 else self.recorder,
            dialect=self.ability.dialect.name if self.ability else None,
            resets_before_load=self.ability.resets_before_load if self.ability else None,
        )


def machine_result(machine: MachineResult, cells: Sequence[Cell], *, complete: bool = True) -> MachineResult:
    """A machine with its answer, from all cells of the run.

    :param complete: the run came to its end; what was not judged may break
    """
    builds = ((machine.record_qemu or machine.qemu).sha256, machine.qemu.sha256)
    mine = [
        cell
        for cell in cells
        if cell.machine == machine.machine
        and (cell.record_qemu.sha256, cell.load_qemu.sha256) == builds
        and cell.lane not in MIGRATIONS
    ]
    colo, because = colo_answer(mine, resets=bool(machine.resets_before_load), complete=complete)
    return replace(machine, colo=colo, because=because)


def colo_answer(
    cells: Sequence[Cell], *, resets: bool, complete: bool, needed: str = PLATFORM
) -> tuple[Colo, tuple[ColoReason, ...]]:
    """Unsafe with the first load that breaks; safe only when all was judged, and ok with nothing left out.

    Two kinds of findings are worth a remark and do not make a checkpoint unsafe: drift and leaks, and, where a build
    resets the machine before each load, a section that breaks only when it stands twice in one buffer.

    :param cells: of one machine, migrations not among them
    :param needed: the device without which nothing can be said
    """
    findings = [c for c in cells if c.verdict.is_finding]
    hidden = [c for c in findings if resets and c.schedule == Schedule.BACK_TO_BACK]
    shown = [c for c in findings if not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    slow = [c for c in shown if c.verdict in _SLOW]
    breaks = [c for c in shown if c.verdict not in _SLOW]
    remarks = _reasons(hidden, hidden=True) + _reasons(slow)
    if breaks:
        return Colo.UNSAFE, _once(_reasons(breaks) + remarks)
    counted = [c for c in cells if c.by_load and not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    doubts = [_left_out(cell) for cell in counted if cell.excluded or cell.verdict is not Verdict.OK]
    if not complete:
        doubts.insert(0, _why(Why.STOPPED))
    elif not any(c.device == needed and c.verdict is Verdict.OK for c in counted) and not doubts:
        doubts.append(_why(Why.NOT_JUDGED, needed))
    if doubts:
        return Colo.UNDECIDED, _once(doubts + remarks)
    return (Colo.REMARKS, _once(remarks)) if remarks else (Colo.SAFE, ())


def _reasons(cells: Iterable[Cell], *, hidden: bool = False) -> list[ColoReason]:
    return [
        ColoReason(
            device=cell.device,
            sections=cell.blamed,
            verdict=cell.verdict,
            causes=cell.outcome.causes,
            hidden=hidden,
        )
        for cell in cells
    ]


def _why(why: Why, device: str = "") -> ColoReason:
    return ColoReason(device=device, causes=(Undecided(why=why),))


def _left_out(cell: Cell) -> ColoReason:
    if cell.verdict is not Verdict.OK:
        return _reasons([cell])[0]
    return ColoReason(device=cell.device, causes=(Undecided(why=Why.LEFT_OUT, sections=cell.excluded),))


def _once(reasons: Iterable[ColoReason]) -> tuple[ColoReason, ...]:
    """Each thing once, as it was first seen: the same section with the same verdict of one device is one."""
    found: dict[tuple[object, ...], ColoReason] = {}
    for reason in reasons:
        whats = tuple((cause.kind, getattr(cause, "why", None)) for cause in reason.causes)
        who = reason.sections or (reason.device,)
        found.setdefault((who, reason.verdict, whats, reason.hidden), reason)
    return tuple(found.values())
