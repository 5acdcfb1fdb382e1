# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload bundle``: a finding as a folder for a bug report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import click
from rich.markup import escape

from harness.arch import architecture_of
from harness.commands.minimise import case_folder, minimise_cell
from harness.commands.output import err, print_json
from harness.errors import HarnessError, HostError, PostloadError, Stopped, UsageError
from harness.qemu.binary import find_binary
from harness.qemu.installed import entries, launched
from harness.report.bundle import WRITING
from harness.report.text import plural
from harness.results.document import Cell, find_cell
from harness.results.folder import folder_of, read_matrix
from harness.results.signature import name_of
from harness.text import printable
from harness.triage.bundle import ATTACHABLE_BYTES, Bundle, bundle_cell, kept_case
from harness.triage.case import CASE_FILE
from harness.triage.interrupt import one_interrupt
from harness.triage.tries import check_target

#: Where those of a whole run lie, in its folder.
BUNDLES = "bundles"


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


def bundle_all(run: Path, out: Path | None, qemus: tuple[str, ...], as_json: bool) -> int:
    """Minimise and bundle each signature of a run once; returns the exit code.

    What cannot be minimised is bundled as it is. Of a signature that comes to no bundle is said why, and the others
    are made all the same.

    :raises HarnessError: some bundles do not show their failure, or could not be made
    """
    folder = out or folder_of(run) / BUNDLES
    documents: list[dict[str, object]] = []
    failed: list[str] = []
    for signature, cell in one_of_each(read_matrix(run).cells).items():
        place = folder / cell.slug
        err.print(f"{escape(signature)}: {escape(cell.id)}", soft_wrap=True)
        try:
            made = None if (place / CASE_FILE).exists() else _made(cell, run, place, qemus)
        except (HostError, Stopped):
            raise
        except PostloadError as error:
            failed.append(signature)
            documents.append({"signature": signature, "cell": cell.id, "error": str(error)})
            err.print(f"  {escape(str(error))}", soft_wrap=True)
            continue
        if made is None:
            err.print(f"  {escape(str(place))} is there already", soft_wrap=True)
            continue
        documents.append({"signature": signature, "cell": cell.id, **_document(made)})
        if not made.answer.reproduced:
            failed.append(signature)
        if not as_json:
            _tell(made)
    if as_json:
        print_json({"schema": "postload.bundles/1", "bundles": documents})
    if failed:
        raise HarnessError(f"{plural(len(failed), 'signature')} without a bundle that shows it: {', '.join(failed)}")
    return 0


def one_of_each(cells: Sequence[Cell]) -> dict[str, Cell]:
    """A cell for each signature: one that can be made small where there is one, and the one with the fewest loads."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.verdict.is_finding and (name := name_of(cell)):
            found.setdefault(name, []).append(cell)
    return {name: min(each, key=lambda cell: (not _shrinks(cell), cell.loads_acked)) for name, each in found.items()}


def _shrinks(cell: Cell) -> bool:
    try:
        check_target(cell)
    except UsageError:
        return False
    return True


def _made(cell: Cell, run: Path, place: Path, qemus: Sequence[str]) -> Bundle:
    if _shrinks(cell) and kept_case(run, cell) is None:
        minimise_cell(cell, case_folder(run, cell))
    others = [str(find_binary(name)) for name in qemus] or _installed(cell.id, run)
    place.parent.mkdir(parents=True, exist_ok=True)
    with one_interrupt(), err.status("Making the case small and trying it"):
        return bundle_cell(cell.id, run, place, WRITING, others)


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
