# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the state that a device can have was loaded: its descriptions and subsections, phase by phase.

A subsection is in a stream only while the device needs it. One that no phase ever brought was loaded by nobody, and a
verdict of ok says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from harness.results.document import Cell, DeviceCoverage

__all__ = ["Sum", "covered", "sum_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Over some devices: how many descriptions and subsections there are, and how many of them were loaded."""

    descriptions: int
    descriptions_loaded: int
    subsections: int
    subsections_loaded: int


def covered(coverage: Iterable[DeviceCoverage], cells: Iterable[Cell]) -> tuple[DeviceCoverage, ...]:
    """What was recorded, with the phases in which it was loaded too.

    A section counts as loaded in a phase when a cell that loads it had every load acknowledged, or loaded no other
    phase and had one acknowledged.
    """
    loaded: dict[str, set[tuple[str, str]]] = {}
    for cell in cells:
        whole = cell.loads_acked >= cell.loads_asked or len(cell.phases) == 1
        if cell.loads_acked and whole:
            places = ((section, phase) for section in cell.sections for phase in cell.phases)
            loaded.setdefault(cell.key.row, set()).update(places)
    return tuple(_loaded(each, loaded.get(each.row, set())) for each in coverage)


def _loaded(device: DeviceCoverage, places: Set[tuple[str, str]]) -> DeviceCoverage:
    states = (
        replace(s, loaded=tuple(p for p in s.saved if any((section, p) in places for section in s.sections)))
        for s in device.states
    )
    return replace(device, states=tuple(states))


def sum_of(devices: Sequence[DeviceCoverage]) -> Sum:
    """Each description and subsection of some devices counts once, on however many machines it is."""
    found: dict[tuple[str, str], bool] = {}
    for state in (state for device in devices for state in device.states):
        key = (state.part_of, state.name)
        found[key] = found.get(key, False) or bool(state.loaded)
    tops = [loaded for (part_of, _), loaded in found.items() if not part_of]
    parts = [loaded for (part_of, _), loaded in found.items() if part_of]
    return Sum(
        descriptions=len(tops),
        descriptions_loaded=sum(tops),
        subsections=len(parts),
        subsections_loaded=sum(parts),
    )
