# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry out a run for a command: progress, reports kept up to date, the answer, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness.commands.doctor import host_facts
from harness.commands.options import err, run_scope
from harness.errors import PostloadError
from harness.qemu.binary import AccelState
from harness.report.terminal import LiveProgress, print_matrix
from harness.report.writer import render_json, write_json, write_reports
from harness.results.document import MatrixDoc
from harness.results.known import annotate, load_known
from harness.results.verdict import exit_code
from harness.work.run import Options, Run


def carry_out(
    options: Options, accel: AccelState, given: dict[str, Any], work: Callable[[Run], MatrixDoc], **more: Any
) -> int:
    """Do the work of a run, print and write what came of it; returns the exit code.

    :param given: the command's ``out``, ``as_json`` and ``known``
    :param more: what else :class:`Run` is to be given
    """
    issues = None if given["known"] is None else load_known(given["known"])
    doc = keep_reports(options, accel, given["out"], work, **more)
    if issues is None:
        return _report(doc, given, exit_code(cell.verdict for cell in doc.cells))
    held = annotate(doc, issues)
    write_reports(held.doc, given["out"])
    code = _report(held.doc, given, held.exit_code)
    err.print(escape(held.text), soft_wrap=True)
    return code


def keep_reports(
    options: Options, accel: AccelState, out: Path, work: Callable[[Run], MatrixDoc], **more: Any
) -> MatrixDoc:
    """Do the work of a run, its reports kept up to date all the while."""
    with LiveProgress(total_cells=0, console=err) as progress:
        run = Run(
            options,
            watcher=progress,
            on_cell=partial(_keep, out),
            host=host_facts({accel.name: accel}),
            command=["postload", *sys.argv[1:]],
            scope=run_scope(),
            **more,
        )
        with _last_words(run, out):
            doc = work(run)
    write_reports(doc, out)
    return doc


def _keep(out: Path, doc: MatrixDoc) -> None:
    write_json(doc, out)


@contextmanager
def _last_words(run: Run, out: Path) -> Iterator[None]:
    """A run that ends by an error still leaves all its reports."""
    try:
        yield
    except PostloadError:
        if run.document().cells:
            write_reports(run.document(), out)
        raise


def _report(doc: MatrixDoc, given: dict[str, Any], code: int) -> int:
    out, as_json = given["out"], given["as_json"]
    if as_json:
        sys.stdout.write(render_json(doc))
    print_matrix(doc, err if as_json else Console(highlight=False))
    err.print(f"reports: {escape(str(out / 'matrix.html'))}, matrix.json, matrix.md, junit.xml", soft_wrap=True)
    if not doc.complete:
        err.print(f"postload: interrupted: {len(doc.cells)} cells were judged", soft_wrap=True)
        return 3
    return code
