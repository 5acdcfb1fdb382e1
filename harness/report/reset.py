# SPDX-License-Identifier: GPL-2.0-or-later
"""Which devices need that the machine is reset before a load, and what the reset costs, in words and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.report.text import first_of, were
from harness.report.view import MANY_NAMES, MANY_ROWS
from harness.results.document import DeviceReset, GuestReset, MatrixDoc, Milliseconds, ResetNeed
from harness.results.verdict import Verdict

HEAD = ("device", "without a reset", "behind a reset", "needs it", "its part, ms")
NOTE = (
    "A build that does not reset the machine before a COLO load loads into a used device. The table says what that "
    "does to each device, and whether a reset before the load mends it. Times are processor time of QEMU, as 99 % "
    "intervals; a device's part is what its use makes a reset longer by."
)
_NEEDS: Mapping[ResetNeed, str] = {
    ResetNeed.YES: "yes",
    ResetNeed.NO: "no",
    ResetNeed.NO_HELP: "it does not help",
    ResetNeed.UNKNOWN: "not known",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetLine:
    """One device: a word for each column of :data:`HEAD`."""

    need: ResetNeed
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetTable:
    """One machine on one QEMU.

    :param title: what the cells of its devices have in common
    :param about: whether the build resets by itself
    :param costs: a sentence for each guest
    """

    title: str
    about: str
    lines: tuple[ResetLine, ...]
    costs: tuple[str, ...]

    @property
    def told(self) -> tuple[ResetLine, ...]:
        """For a text that is read from top to bottom: of very many devices those that need the reset, or may."""
        return (
            self.lines if len(self.lines) <= MANY_ROWS else tuple(x for x in self.lines if x.need is not ResetNeed.NO)
        )

    @property
    def left_out(self) -> str:
        """What :attr:`told` leaves out, in words; empty when it is nothing."""
        count = len(self.lines) - len(self.told)
        return f"{were(count, 'more device')} loaded without a reset, and none of them needs it" if count else ""


def reset_tables(doc: MatrixDoc) -> tuple[ResetTable, ...]:
    """A table for each machine and QEMU that the lane ``reset`` was asked of; those that need it first."""
    found: dict[str, list[DeviceReset]] = {}
    for each in doc.resets:
        found.setdefault(each.row.rpartition("/")[0], []).append(each)
    return tuple(_table(title, devices) for title, devices in found.items())


def _table(title: str, devices: Sequence[DeviceReset]) -> ResetTable:
    ordered = sorted(devices, key=lambda each: list(ResetNeed).index(each.need))
    lines = tuple(ResetLine(need=each.need, words=_words(each)) for each in ordered)
    return ResetTable(title=title, about=_about(devices), lines=lines, costs=tuple(_costs(devices)))


def _words(each: DeviceReset) -> tuple[str, ...]:
    return (
        each.device,
        _without(each),
        each.behind.value if each.behind else "not judged",
        _NEEDS[each.need],
        _part(each.part),
    )


def _without(each: DeviceReset) -> str:
    if each.without is None:
        return "not judged"
    kind = f" ({each.failure_class})" if each.failure_class else ""
    where = f" {', '.join(each.sections)}" if each.sections else ""
    leaks = "; leaks" if each.leaks and each.without is not Verdict.LEAK else ""
    return f"{each.without}{kind}{where}{leaks}"


def _part(part: Milliseconds | None) -> str:
    if part is None:
        return ""
    if part.high <= 0:
        return "none"
    return f"up to {_ms(part.high)}" if part.low <= 0 else _interval(part)


def _about(devices: Sequence[DeviceReset]) -> str:
    resets = next((each.resets for each in devices if each.resets is not None), None)
    if resets is None:
        return "it is not known whether this QEMU resets the machine before a COLO load"
    return f"this QEMU {'resets' if resets else 'does not reset'} the machine before a COLO load"


def _costs(devices: Sequence[DeviceReset]) -> Iterable[str]:
    guests: dict[GuestReset, list[str]] = {}
    for each in devices:
        if each.guest is not None:
            guests.setdefault(each.guest, []).append(each.device)
    for guest, names in guests.items():
        who = first_of(names, MANY_NAMES)
        yield (
            f"guest with {who}, phase {guest.phase}: a reset takes {_interval(guest.reset)} ms; it makes a checkpoint "
            f"{_interval(guest.added)} ms longer, which takes {_interval(guest.load)} ms without it"
        )


def _interval(span: Milliseconds) -> str:
    return f"{_ms(max(0.0, span.low))} to {_ms(span.high)}"  # a difference of two times may be below 0


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
