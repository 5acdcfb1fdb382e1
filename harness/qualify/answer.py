# SPDX-License-Identifier: GPL-2.0-or-later
"""From judged cells to go or no-go. Pure: what the evidence says beyond the cells is brought in by the caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from harness.arch import family_of
from harness.engines.schedule import Schedule
from harness.names import DECIDING, DECIDING_BETWEEN_VERSIONS, MIGRATIONS, USES
from harness.qualify.model import (
    Answer,
    DeviceAnswer,
    PairAnswer,
    Reason,
    Stray,
    worst,
)
from harness.results.cause import KvmRefused, Side, Unsupported
from harness.results.document import Cell, MachineResult, MatrixDoc, Qemu
from harness.results.verdict import Verdict

#: Adds to a reason what the evidence of its cell says: cause, field, remedy.
Explain = Callable[[Cell, Reason], Reason]


def usual_uses(recorder: str, loader: str) -> tuple[str, ...]:
    """The uses that decide between two versions where nothing else is asked for."""
    return DECIDING if recorder == loader else DECIDING_BETWEEN_VERSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """The cells of one machine type under one pair of QEMUs.

    :param resets: the loading build resets the machine before each checkpoint's load
    """

    machine: str
    recorder: Qemu
    loader: Qemu
    cells: tuple[Cell, ...]
    resets: bool = False

    @property
    def at_home(self) -> bool:
        return self.recorder.sha256 == self.loader.sha256

    @property
    def deciding(self) -> tuple[str, ...]:
        """The uses that count where nothing else is asked for."""
        return usual_uses(self.recorder.version, self.loader.version)


def legs_of(doc: MatrixDoc) -> list[Leg]:
    """The legs of a run, in its order."""
    return [_leg(result, doc.cells) for result in doc.machines]


def _leg(result: MachineResult, cells: Sequence[Cell]) -> Leg:
    recorder = result.record_qemu or result.qemu
    mine = tuple(
        c
        for c in cells
        if (c.machine, c.record_qemu.sha256, c.load_qemu.sha256)
        == (result.machine, recorder.sha256, result.qemu.sha256)
    )
    return Leg(
        machine=result.machine,
        recorder=recorder,
        loader=result.qemu,
        cells=mine,
        resets=bool(result.resets_before_load),
    )


def use_of(cell: Cell) -> str:
    """What a cell speaks of."""
    return {"plain": "migration", "postcopy": "postcopy"}.get(cell.lane, "colo")


def answer_leg(leg: Leg, home: Leg | None, deciding: Sequence[str], explain: Explain | None = None) -> PairAnswer:
    """The answer of one leg.

    :param home: the same recorder and machine type, loaded by the recorder itself
    :param deciding: the uses that count; empty for those of the leg
    """
    deciding = tuple(deciding) or leg.deciding
    names = list(dict.fromkeys(cell.device for cell in leg.cells))
    devices = tuple(_device(name, leg, home, deciding, explain) for name in names)
    uses = {use: worst(d.uses[use] for d in devices if d.uses[use] is not Answer.NONE) for use in USES}
    strays = _strays(leg)
    hurt = {use for stray in strays for use in stray.uses}
    uses |= {use: worst((uses[use], Answer.UNKNOWN)) for use in hurt}
    return PairAnswer(
        machine=leg.machine,
        family=family_of(leg.machine),
        recorder=leg.recorder,
        loader=leg.loader,
        answer=worst([device.answer for device in devices] + [uses[use] for use in deciding if use in hurt]),
        uses=uses,
        devices=devices,
        loads=loads_of(leg.cells),
        deciding=deciding,
        strays=strays,
        kvm_refused=_refused_by_kvm(leg.cells),
    )


def loads_of(cells: Iterable[Cell]) -> int:
    """Acknowledged loads of one leg, each once: a migration brings the sections of every row in one load."""
    migrations: dict[str, int] = {}
    total = 0
    for cell in cells:
        if cell.lane in MIGRATIONS:
            migrations[cell.lane] = max(migrations.get(cell.lane, 0), cell.loads_acked)
        else:
            total += cell.own_loads
    return total + sum(migrations.values())


def _strays(leg: Leg) -> tuple[Stray, ...]:
    """Sections that were left out of loads that count, because they break, and that no finding names."""
    counted = [c for c in leg.cells if not (leg.resets and c.schedule == Schedule.BACK_TO_BACK)]
    named = {label for cell in leg.cells if cell.verdict.is_finding for label in cell.blamed}
    found: dict[str, set[str]] = {}
    for cell in counted:
        for label in set(cell.excluded) - named:
            found.setdefault(label, set()).add(use_of(cell))
    return tuple(
        Stray(section=label, uses=tuple(use for use in USES if use in found[label])) for label in sorted(found)
    )


def _refused_by_kvm(cells: Iterable[Cell]) -> dict[str, int]:
    """What this host's KVM did not take, to the number of cells, the most frequent first."""
    groups = Counter(group for cell in cells if (group := _kvm_group(cell)) is not None)
    return dict(sorted(groups.items(), key=lambda item: (-item[1], item[0])))


def _device(name: str, leg: Leg, home: Leg | None, deciding: Sequence[str], explain: Explain | None) -> DeviceAnswer:
    mine = [cell for cell in leg.cells if cell.device == name]
    uses = {use: _answer([c for c in mine if use_of(c) == use], leg) for use in USES}
    if all(cell.verdict is Verdict.UNSUPPORTED and not cell.outcome.passed_over for cell in mine):
        # without the machine or the device there is nothing to go to; where the old side has it not, nothing comes
        never = any(isinstance(c, Unsupported) and c.side is Side.RECORDER for m in mine for c in m.outcome.causes)
        uses = dict.fromkeys(USES, Answer.NONE if never else Answer.NO_GO)
    return DeviceAnswer(
        device=name,
        answer=_decided(uses, deciding),
        uses=uses,
        loads=sum(cell.loads_acked for cell in mine),
        because=tuple(_reasons([c for c in mine if _tells(c, leg, uses, deciding)], leg, home, explain)),
    )


def _decided(uses: dict[str, Answer], deciding: Sequence[str]) -> Answer:
    """What decides and was not answered is unknown; only a device that no guest can have is passed over."""
    if all(answer is Answer.NONE for answer in uses.values()):
        return Answer.NONE
    return worst(Answer.UNKNOWN if uses[use] is Answer.NONE else uses[use] for use in deciding)


def _answer(cells: Sequence[Cell], leg: Leg) -> Answer:
    """A device that the loader has not is a no-go; a load that nobody acknowledged is never a go."""
    told = [_one(cell, leg) for cell in cells]
    return worst(answer for answer in told if answer is not Answer.NONE) if cells else Answer.NONE


def _one(cell: Cell, leg: Leg) -> Answer:
    if _hidden(cell, leg) or cell.outcome.passed_over:
        return Answer.NONE
    if cell.lane == "postcopy" and cell.verdict in (Verdict.HOST, Verdict.UNSUPPORTED):
        return Answer.NONE
    if cell.verdict is Verdict.OK:
        return Answer.GO if cell.loads_acked else Answer.UNKNOWN
    if cell.verdict.is_finding or cell.verdict is Verdict.UNSUPPORTED:
        return Answer.NO_GO
    return Answer.UNKNOWN


def _hidden(cell: Cell, leg: Leg) -> bool:
    """Where a build resets before each load, a section that breaks only when it stands twice in one buffer is no
    reason: no primary sends that."""
    return leg.resets and cell.verdict.is_finding and cell.schedule == Schedule.BACK_TO_BACK


def _tells(cell: Cell, leg: Leg, uses: dict[str, Answer], deciding: Sequence[str]) -> bool:
    """Whether a cell is a reason: it is not well, or it is why a use that decides has no answer."""
    use = use_of(cell)
    return _one(cell, leg) in (Answer.NO_GO, Answer.UNKNOWN) or (use in deciding and uses[use] is Answer.NONE)


def _kvm_group(cell: Cell) -> str | None:
    """The register or ioctl that this host's KVM refused, where that is the verdict."""
    return next((cause.group for cause in cell.outcome.causes if isinstance(cause, KvmRefused)), None)


def _reasons(cells: Sequence[Cell], leg: Leg, home: Leg | None, explain: Explain | None) -> list[Reason]:
    """Each reason once, with the cells that have it."""
    found: dict[tuple[str, str, object], Reason] = {}
    for cell in cells:
        if not cell.outcome.causes:
            continue
        use = use_of(cell)
        refused = _kvm_group(cell)
        key = (use, str(cell.verdict), cell.blamed or refused)
        if key in found:
            found[key] = replace(found[key], cells=(*found[key].cells, cell.id))
            continue
        reason = Reason(
            use=use,
            verdict=str(cell.verdict),
            causes=cell.outcome.causes,
            repeats=cell.outcome.repeats,
            section=", ".join(cell.blamed) or None,
            phase=cell.outcome.phase,
            log=cell.outcome.log,
            at_home=_at_home(cell, leg, home),
            known=cell.known,
            cells=(cell.id,),
        )
        found[key] = explain(cell, reason) if explain else reason
    return list(found.values())


def _at_home(cell: Cell, leg: Leg, home: Leg | None) -> bool | None:
    """Whether the recorder itself shows the same: same device, use, verdict and section."""
    if home is None or leg.at_home:
        return None
    wanted = (cell.device, use_of(cell), cell.verdict, cell.blamed)
    tried = [c for c in home.cells if (c.device, use_of(c)) == wanted[:2]]
    if not tried:
        return None
    return any((c.device, use_of(c), c.verdict, c.blamed) == wanted for c in tried)
