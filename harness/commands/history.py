# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload history`` and ``postload import``."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from harness.commands.output import err, print_json
from harness.report.console import SafeConsole
from harness.report.history import history_text
from harness.report.text import plural
from harness.store.asked import ask
from harness.store.engine import open_store
from harness.store.importing import import_run
from harness.store.read import open_history


def history(what: str | None, store: str, last: int, as_json: bool) -> int:
    """Show runs, or what is asked for."""
    with open_history(store) as kept:
        doc = ask(kept, what, last)
    if as_json:
        print_json(doc.to_json())
    else:
        SafeConsole().print(escape(history_text(doc)), soft_wrap=True)
    return 0


def import_runs(folders: tuple[Path, ...], store: str, as_json: bool) -> int:
    """Take the runs of some folders into a history."""
    engine = open_store(store, create=True)
    try:
        found = [import_run(engine, folder) for folder in folders]
    finally:
        engine.dispose()
    for folder, each in zip(folders, found, strict=True):
        what = "imported" if each.new else "was there already"
        text = f"{folder}: run {each.run} {what}: {each.state}, {plural(each.cells, 'cell')} judged"
        (err if as_json else SafeConsole()).print(escape(text), soft_wrap=True)
    if as_json:
        rows = [{"run": e.run, "state": e.state, "new": e.new, "cells": e.cells} for e in found]
        print_json({"schema": "postload.import/1", "runs": rows})
    return 0
