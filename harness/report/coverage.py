# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the state that QEMU knows for the devices of a run was loaded, in words and as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.text import number
from harness.results.coverage import Sum, sum_of
from harness.results.document import DeviceCoverage, MatrixDoc

NOTE = (
    "QEMU describes the state of a device (-dump-vmstate), and saves a subsection only while the device needs it. "
    "What no phase brought was never loaded: a verdict of ok says nothing of it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """One device of one machine.

    :param row: what its cells have in common
    :param never: names of what was never loaded
    """

    row: str
    device: str
    descriptions: str
    subsections: str
    never: tuple[str, ...]


def coverage_rows(doc: MatrixDoc) -> tuple[CoverageRow, ...]:
    """A row for each device, in the order of the run."""
    return tuple(_row(device) for device in doc.coverage)


def _row(device: DeviceCoverage) -> CoverageRow:
    total = sum_of([device])
    return CoverageRow(
        row=device.row,
        device=device.device,
        descriptions=_of(total.descriptions_loaded, total.descriptions),
        subsections=_of(total.subsections_loaded, total.subsections),
        never=tuple(state.name for state in device.missing),
    )


def share_text(total: Sum) -> str:
    """How much of all descriptions and subsections was loaded: ``12 of 14``."""
    return _of(total.descriptions_loaded + total.subsections_loaded, total.descriptions + total.subsections)


def coverage_text(devices: Sequence[DeviceCoverage]) -> str:
    """One sentence for some devices; empty when nothing is known of them."""
    if not devices:
        return ""
    total = sum_of(devices)
    return (
        f"state loaded: {_of(total.descriptions_loaded, total.descriptions)} descriptions, "
        f"{_of(total.subsections_loaded, total.subsections)} subsections that QEMU knows for these devices"
    )


def _of(part: int, whole: int) -> str:
    return f"{number(part)} of {number(whole)}"
