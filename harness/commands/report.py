# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload report``: the reports of a run from its events, also of one that was killed or still goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness.commands.execute import report_matrix
from harness.commands.output import err
from harness.commands.qualify import report_answer, write_answer
from harness.errors import UsageError
from harness.facts import KvmTried
from harness.qualify.model import QualifyDoc
from harness.qualify.run import Context, qualify_doc
from harness.report.qualify import qualify_plain
from harness.report.text import plural
from harness.report.writer import FORMATS, write_reports
from harness.results.document import MatrixDoc, read_model
from harness.results.events import EVENTS_NAME, Fold, cut_bytes, fold_file, is_being_written
from harness.results.folder import held_against


def report(run: Path, formats: list[str], out: Path | None, as_json: bool) -> int:
    """Make the reports; returns the exit code of the run."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--format {name!r}: expected one of {', '.join(FORMATS)}")
    path = run / EVENTS_NAME if run.is_dir() else run
    fold = fold_file(path)
    for note in _notes(path):
        err.print(escape(f"{path}: {note}"), soft_wrap=True)
    held = held_against(fold.document(), fold.started)
    into, wanted = out or path.parent, formats or list(FORMATS)
    if fold.started.qualify is None:
        write_reports(held.doc, into, wanted)
        return report_matrix(held, into, as_json=as_json)
    answer = QualifyDoc.from_json(fold.answer or _bare_answer(fold, held.doc))
    write_answer(answer, replace(held.doc, complete=answer.complete), into, wanted)
    return report_answer(answer, len(held.doc.cells), into, as_json=as_json)


def _notes(path: Path) -> list[str]:
    if is_being_written(path):
        return ["the run still goes on"]
    cut = cut_bytes(path)
    what = f"what there is of it, {plural(cut, 'byte')}, is left out"
    return [f"the last line was not written to its end; {what}"] if cut else []


def _bare_answer(fold: Fold, doc: MatrixDoc) -> dict[str, Any]:
    """What the cells alone say: the run was stopped before it could ask the QEMUs for causes."""
    asked = fold.started.qualify or {}
    kvm = read_model(KvmTried, asked["kvm"], "a run of postload qualify") if asked["kvm"] else None
    context = Context(binaries={}, deciding=asked["deciding"], travelled=asked["travelled"], kvm=kvm)
    return qualify_plain(qualify_doc(replace(doc, complete=False), context))
