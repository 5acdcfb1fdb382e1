# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cells of one machine come to: is a checkpoint safe?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.names import MIGRATIONS, PLATFORM, RESET
from harness.qemu.binary import QemuBinary
from harness.results.cause import Leaked, Undecided, Unsupported, Why
from harness.results.document import Cell, Colo, ColoAnswer, ColoReason, MachineResult, Qemu
from harness.results.key import Route
from harness.results.verdict import Verdict, worst

#: What breaks no load, and where it is looked for: one that did not come back is ``flaky``.
REMARKED = (Verdict.DRIFT, Verdict.LEAK)
_SLOW_LANES = ("drift", "leak")


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
        and cell.lane not in (*MIGRATIONS, RESET)
    ]
    colo, because = colo_answer(mine, resets=bool(machine.resets_before_load), complete=complete)
    return replace(machine, colo=colo, because=because, devices=_devices(machine, mine, complete=complete))


def _devices(machine: MachineResult, cells: Sequence[Cell], *, complete: bool) -> tuple[ColoAnswer, ...]:
    """The answer of each device by its own cells."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.device, []).append(cell)
    resets = bool(machine.resets_before_load)
    return tuple(
        ColoAnswer(
            device=device,
            colo=colo_answer(own, resets=resets, complete=complete, needed=device)[0],
            verdict=worst(cell.verdict for cell in own),
        )
        for device, own in found.items()
    )


def colo_answer(
    cells: Sequence[Cell], *, resets: bool, complete: bool, needed: str = PLATFORM
) -> tuple[Colo, tuple[ColoReason, ...]]:
    """The answer of a machine, worst first, and why.

    What breaks a load, or keeps COLO from starting, was seen and stays true of a run that was stopped. Drift and leaks
    are remarks, and so is, where a build resets the machine before each load, a section that breaks only when it
    stands twice in one buffer. Nothing else is called safe before the run came to its end with all judged and ok.

    :param cells: of one machine, migrations not among them
    :param needed: the device without which nothing can be said
    """
    findings = [c for c in cells if c.verdict.is_finding]
    hidden = [c for c in findings if _hidden(c, resets)]
    shown = [c for c in findings if not _hidden(c, resets)]
    slow = [c for c in shown if c.verdict in REMARKED or c.lane in _SLOW_LANES]
    breaks = [c for c in shown if c not in slow]
    remarks = _reasons(slow) + _reasons(hidden, hidden=True)
    refused = [c for c in cells if _is_refused(c)]
    if breaks:
        return Colo.UNSAFE, _once(_reasons([*breaks, *refused]) + remarks)
    if refused:
        return Colo.REFUSED, _once(_reasons(refused) + remarks)
    doubts = _doubts(cells, needed, resets=resets) if complete else [_why(Why.STOPPED)]
    if doubts:
        return Colo.UNDECIDED, _once(doubts + remarks)
    return (Colo.REMARKS if slow or any(c.by_load for c in hidden) else Colo.SAFE), _once(remarks)


def _hidden(cell: Cell, resets: bool) -> bool:
    """A checkpoint does not show it: it takes loads that stand in one buffer."""
    if cell.verdict is Verdict.LEAK:
        leaks = [cause for cause in cell.outcome.causes if isinstance(cause, Leaked)]
        return bool(leaks) and not any(leak.is_colos for leak in leaks)
    return resets and cell.schedule == Schedule.BACK_TO_BACK


def _is_refused(cell: Cell) -> bool:
    """QEMU does not start COLO with the device."""
    return any(isinstance(cause, Unsupported) and cause.keeps_from_colo for cause in cell.outcome.causes)


def _doubts(cells: Sequence[Cell], needed: str, *, resets: bool) -> list[ColoReason]:
    """What was not judged, the device that is needed first."""
    counted = [c for c in cells if c.by_load and not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    # a phase that it does not reach says nothing of it: one has to have been loaded
    loaded = any(c.device == needed and not c.outcome.passed_over for c in counted)
    doubts = [] if loaded else [_why(Why.NOT_JUDGED, needed)]
    # what an oracle leaves out was blamed by a load, and stands there
    doubts += [_left_out(c) for c in cells if (c.excluded and c in counted) or not _was_judged(c)]
    return doubts


def _was_judged(cell: Cell) -> bool:
    return cell.verdict is Verdict.OK or cell.verdict.is_finding or cell.outcome.passed_over


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
