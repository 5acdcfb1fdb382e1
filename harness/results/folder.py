# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of a run, as every command after it reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from harness.errors import UsageError
from harness.results.document import MatrixDoc
from harness.results.events import EVENTS_NAME, Started, fold_file
from harness.results.known import Issue, KnownRun, annotate

JSON_NAME = "matrix.json"


def folder_of(run: Path) -> Path:
    """The folder of a run that was named by its folder or by a file in it."""
    return run if run.is_dir() else run.parent


def read_matrix(run: Path) -> MatrixDoc:
    """The document of a run: ``matrix.json`` in a folder, or that file itself.

    Of a run that was killed or still goes on, ``matrix.json`` has what was judged when it was written: there the
    events of the same run have more, and are read.

    :raises UsageError: there is neither, or it is not a matrix document; an event is damaged
    """
    path = run / JSON_NAME if run.is_dir() else run
    events = run / EVENTS_NAME
    if run.is_dir() and events.exists() and not path.exists():
        return _folded(events)
    doc = _read_json(path)
    if doc.complete or not run.is_dir() or not events.exists():
        return doc
    folded = _folded(events)
    return folded if (folded.command, folded.started) == (doc.command, doc.started) else doc


def held_against(doc: MatrixDoc, started: Started) -> KnownRun:
    """A document with the known issues that its run was held against, which may be none."""
    return annotate(doc, [Issue.model_validate(issue) for issue in started.known or ()])


def _folded(events: Path) -> MatrixDoc:
    fold = fold_file(events)
    doc = held_against(fold.document(), fold.started).doc
    unanswered = fold.started.qualify is not None and fold.answer is None
    return replace(doc, complete=doc.complete and not unanswered)


def _read_json(path: Path) -> MatrixDoc:
    try:
        return MatrixDoc.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected the folder that a run wrote with --out") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
