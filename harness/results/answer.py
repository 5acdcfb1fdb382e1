# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cells of one machine come to: is a checkpoint safe?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.qemu.binary import QemuBinary
from harness.results.document import MIGRATIONS, Cell, MachineResult, Qemu
from harness.results.plan import pair_label
from harness.results.verdict import Verdict

PLATFORM = "platform"
_SLOW = (Verdict.DRIFT, Verdict.LEAK)


@dataclass(slots=True, kw_only=True)
class Seen:
    """A machine of the run under one QEMU; ``ability`` is None until it was probed."""

    machine: str
    family: str
    binary: QemuBinary
    recorder: Qemu
    ability: ColoAbility | None = None

    @property
    def label(self) -> str:
        """How cell ids name the QEMU, or the pair of them."""
        return pair_label(self.recorder.short, self.binary.short)

    def result(self) -> MachineResult:
        """What is known of it before any cell is judged."""
        return MachineResult(
            machine=self.machine,
            alias=self.family,
            qemu=Qemu(**self.binary.identity()),
            record_qemu=None if self.recorder.sha256 == self.binary.sha256 else self.recorder,
            dialect=self.ability.dialect.name if self.ability else None,
            resets_before_load=self.ability.resets_before_load if self.ability else None,
        )


def machine_result(machine: MachineResult, cells: Sequence[Cell]) -> MachineResult:
    """A machine with its answer, from all cells of the run.

    Safe only when every row was judged ok with nothing left out; not safe with the first load that breaks.

    Two kinds of findings are worth a word and do not make a checkpoint unsafe: drift and leaks, and, where a build
    resets the machine before each load, a section that breaks only when it stands twice in one buffer.
    """
    builds = ((machine.record_qemu or machine.qemu).sha256, machine.qemu.sha256)
    mine = [
        c
        for c in cells
        if c.machine == machine.machine
        and (c.record_qemu.sha256, c.load_qemu.sha256) == builds
        and c.lane not in MIGRATIONS
    ]
    resets = bool(machine.resets_before_load)
    findings = [c for c in mine if c.verdict.is_finding]
    hidden = [c for c in findings if resets and c.schedule == Schedule.BACK_TO_BACK]
    slow = [c for c in findings if c.verdict in _SLOW]
    breaks = [c for c in findings if c.verdict not in _SLOW and not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    reasons = [_reason(c) for c in breaks]
    notes = [f"without the reset before each load, {_reason(c)}" for c in hidden] + [_reason(c) for c in slow]
    counted = [c for c in mine if c.oracle == "load" and not (resets and c.schedule == Schedule.BACK_TO_BACK)]
    clean = all(cell.verdict is Verdict.OK and not cell.excluded for cell in counted)
    judged = {cell.device for cell in counted if cell.verdict is Verdict.OK}
    safe = False if reasons else (True if clean and PLATFORM in judged else None)
    because = reasons + notes if safe is not None else _undecided(mine)
    return replace(machine, colo_safe=safe, because=tuple(dict.fromkeys(because)))


def _reason(cell: Cell) -> str:
    finding = cell.finding
    who = finding.section if finding and finding.section else cell.device
    text = finding.text if finding else ""
    what = text.partition(": ")[2] if cell.oracle == "load" and ": " in text else text
    return f"{who}: {cell.verdict}: {what}"


def _undecided(cells: Sequence[Cell]) -> list[str]:
    texts = [c.finding.text for c in cells if c.finding and c.verdict is not Verdict.OK]
    return texts or ["the platform row was not judged"]
