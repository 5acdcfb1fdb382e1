# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload bundle``: a finding as a folder for a bug report."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from rich.markup import escape

from harness.arch import architecture_of
from harness.commands.output import err, print_json
from harness.errors import HarnessError
from harness.qemu.binary import find_binary
from harness.qemu.installed import entries, launched
from harness.report.bundle import WRITING
from harness.results.document import find_cell
from harness.results.folder import read_matrix
from harness.text import printable
from harness.triage.bundle import ATTACHABLE_BYTES, Bundle, bundle_cell
from harness.triage.interrupt import one_interrupt


def bundle(cell: str, run: Path, out: Path, qemus: tuple[str, ...], as_json: bool) -> int:
    """Write the bundle; returns the exit code.

    :raises HarnessError: it was written, and does not show the failure
    """
    others = [str(find_binary(name)) for name in qemus] or _installed(cell, run)
    with one_interrupt(), err.status("Making the case small and trying it"):
        made = bundle_cell(cell, run, out, WRITING, others)
    if as_json:
        print_json(_document(made))
    else:
        _tell(made)
    if not made.answer.reproduced:
        raise HarnessError(f"{made.folder}: the bundle was written, but does not show the failure: {made.answer.line}")
    return 0


def _installed(text: str, run: Path) -> list[str]:
    """Every other QEMU of this host and of those that are installed beside it, for the cell's architecture."""
    cell = find_cell(read_matrix(run), text)
    name = architecture_of(cell.machine).program.name
    paths = [each.launcher for each in entries() if each.whole and name in Path(each.program).name]
    host = shutil.which(name)
    paths = [Path(host), *paths] if host else paths
    return [str(path) for path in paths if launched(path).sha256 != cell.load_qemu.sha256]


def _tell(made: Bundle) -> None:
    click.echo(f"{printable(str(made.folder))}: {made.size_bytes / 1000:.0f} kB")
    for answer in (made.answer, *made.others):
        click.echo(printable(f"  {answer.line}"))
    if made.changed:
        err.print(f"{escape(made.answer.qemu)}: not the program any more that the cell was found on")
    if made.size_bytes > ATTACHABLE_BYTES:
        err.print(f"{escape(str(made.folder))}: larger than 1 MB; postload minimise may make the case smaller")


def _document(made: Bundle) -> dict[str, object]:
    answers = [
        {"qemu": a.qemu, "exit_code": a.code, "answer": a.line, "seconds": round(a.seconds, 3)}
        for a in (made.answer, *made.others)
    ]
    return {
        "schema": "postload.bundle/1",
        "folder": str(made.folder),
        "size_bytes": made.size_bytes,
        "reproduced": made.answer.reproduced,
        "answers": answers,
    }
