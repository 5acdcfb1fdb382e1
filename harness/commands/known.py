# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload known``: the file of known issues."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from harness.commands.output import print_json
from harness.report.console import SafeConsole
from harness.results.document import find_cell
from harness.results.folder import read_matrix
from harness.results.known import add_known, load_known


def add(cell: str, run: Path, link: str, note: str, until: datetime | None, path: Path) -> int:
    """Add the finding of a cell, by its id or a part of it that no other has."""
    found = find_cell(read_matrix(run), cell)
    added = add_known(path, found, link, note, until.date() if until else None)
    say = f"{path}: added" if added else f"{path}: known already"
    SafeConsole().print(escape(f"{say}: {found.id}"), soft_wrap=True)
    return 0


def list_known(path: Path, as_json: bool) -> int:
    """Show the known issues."""
    issues = load_known(path)
    if as_json:
        print_json({"schema": "postload.known/1", "issues": [issue.model_dump(mode="json") for issue in issues]})
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("signature", "affected", "fixed in", "until", "link", "note"):
        table.add_column(title, overflow="fold")
    for issue in issues:
        until = str(issue.until or "")
        row = (issue.signature, ", ".join(issue.affected), issue.fixed_in or "", until, issue.link, issue.note)
        table.add_row(*(escape(text) for text in row))
    SafeConsole().print(table)
    return 0
