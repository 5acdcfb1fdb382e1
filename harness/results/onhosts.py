# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that had each cell judged on each host: what each of them says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.results.document import Cell, CellOnHosts, HostOutcome, Weight, weight_of
from harness.results.verdict import Verdict, rank


def weight_on_hosts(cell: Cell) -> Weight:
    """Which of the outcomes of a cell stands for all, the lowest first: a finding, then that it was not decided."""
    place = rank(Verdict.OK) if cell.verdict.is_undecided else rank(cell.verdict) + (not cell.verdict.is_finding)
    return place, *weight_of(cell)[1:]


def cells_on_hosts(hosts: Sequence[str], planned: Iterable[Sequence[Cell]]) -> tuple[CellOnHosts, ...]:
    """What each cell came to on each host.

    What was not left to the hosts, such as a device that the machine does not have, is not among them. A further look,
    without what was blamed, is made by those hosts alone that found something.

    :param planned: the cells that came of each one that was planned
    """
    if not hosts:
        return ()
    found: list[CellOnHosts] = []
    for cells in planned:
        for key in dict.fromkeys(cell.key for cell in cells if cell.host):
            there = [host for host in hosts if not key.rest or any(c.host == host for c in cells if c.key == key)]
            outcomes = (_outcome(host, [c for c in cells if c.key == key and c.host == host]) for host in there)
            found.append(CellOnHosts(cell=str(key), outcomes=tuple(outcomes)))
    return tuple(found)


def _outcome(host: str, cells: Sequence[Cell]) -> HostOutcome:
    if not cells:
        return HostOutcome(host=host, verdict=None)
    worst = min(cells, key=weight_of)
    return HostOutcome(host=host, verdict=worst.verdict, signature=worst.signature or "")
