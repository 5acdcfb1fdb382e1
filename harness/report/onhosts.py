# SPDX-License-Identifier: GPL-2.0-or-later
"""Which hosts differ, of a run that had each cell judged on each of them."""

from __future__ import annotations

from harness.report.text import number, plural
from harness.results.document import CellOnHosts, MatrixDoc

#: So many cells are named; matrix.json has all of them.
_MOST = 50


def hosts_lines(doc: MatrixDoc) -> list[str]:
    """The hosts and how many cells they differ in, then these cells; nothing for a run that any host judged."""
    if not doc.each_host:
        return []
    hosts = list(dict.fromkeys(each.host for cell in doc.each_host for each in cell.outcomes))
    differ = [cell for cell in doc.each_host if cell.differs]
    count = "no cell differs" if not differ else f"{number(len(differ))} differ{'s' if len(differ) == 1 else ''}"
    head = f"{plural(len(doc.each_host), 'cell')} on each of {', '.join(hosts)}: {count}"
    more = len(differ) - _MOST
    return [head, *map(_line, differ[:_MOST]), *([f"and {number(more)} more, in matrix.json"] if more > 0 else [])]


def _line(cell: CellOnHosts) -> str:
    """``CELL  ok: alpha, beta; crash: gamma``, the verdict of most hosts first."""
    said: dict[tuple[str, str], list[str]] = {}
    for each in cell.outcomes:
        said.setdefault((str(each.verdict or "not judged"), each.signature), []).append(each.host)
    groups = sorted(said.items(), key=lambda item: -len(item[1]))
    several = len({verdict for verdict, _ in said}) < len(said)
    return f"{cell.cell}  " + "; ".join(
        f"{verdict}{f' ({signature})' if several and signature else ''}: {', '.join(hosts)}"
        for (verdict, signature), hosts in groups
    )
