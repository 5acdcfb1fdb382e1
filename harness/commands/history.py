# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload history``, ``compare``, ``baseline``, ``import`` and ``prune``."""

from __future__ import annotations

import re
from pathlib import Path

from rich.markup import escape

from harness.commands.output import err, print_json
from harness.errors import UsageError
from harness.nights.kept import import_night
from harness.report.console import SafeConsole
from harness.report.history import compare_text, history_text
from harness.report.text import plural
from harness.results.folder import folder_of
from harness.store.asked import ask
from harness.store.compare import compare
from harness.store.engine import opened
from harness.store.importing import Imported, import_run
from harness.store.keep import prune, set_mark, shrink
from harness.store.read import open_history
from harness.store.states import read_rules


def history(what: str | None, store: str, last: int, as_json: bool) -> int:
    """Show runs, or what is asked for."""
    with open_history(store) as kept:
        doc = ask(kept, what, last)
    if as_json:
        print_json(doc.to_json())
    else:
        SafeConsole().print(escape(history_text(doc)), soft_wrap=True)
    return 0


def compare_runs(before: str, after: str, rules: Path | None, everything: bool, store: str, as_json: bool) -> int:
    """Hold a run against an earlier one; returns 1 for what is new or back, 3 for what is missing, else 0."""
    read = read_rules(rules)
    with open_history(store) as kept:
        doc = compare(kept, kept.run(before), kept.run(after), read)
    if as_json:
        print_json(doc.to_json())
    else:
        SafeConsole().print(escape(compare_text(doc, everything=everything)), soft_wrap=True)
    return doc.exit_code


def set_baseline(run: str, store: str) -> int:
    """Make a run the baseline."""
    with open_history(store) as kept:
        found = kept.run(run)
        set_mark(kept.engine, found)
    SafeConsole().print(escape(f"{found.name} is the baseline"), soft_wrap=True)
    return 0


def prune_runs(keep: str | None, log_days: float | None, dry_run: bool, store: str, as_json: bool) -> int:
    """Take out old runs and logs.

    :raises UsageError: nothing says how much
    """
    if keep is None and log_days is None:
        raise UsageError("expected --keep N, --keep DAYSd or --logs DAYS, such as --keep 90d --logs 14")
    match = re.fullmatch(r"(\d+)(d?)", keep or "0")
    if match is None:
        raise UsageError(f"--keep {keep}: expected a number of runs such as 200, or of days such as 90d")
    runs, days = (None, float(match[1])) if match[2] else (int(match[1]), None)
    with open_history(store) as kept:
        pruned = prune(
            kept.engine,
            keep_runs=None if keep is None else runs,
            keep_days=None if keep is None else days,
            log_days=log_days,
            dry_run=dry_run,
        )
        left = len(kept.runs())
        if (pruned.runs or pruned.logs) and not dry_run:
            shrink(kept.engine)
    if as_json:
        print_json({"schema": "postload.prune/1", "runs": list(pruned.runs), "logs": pruned.logs, "dry_run": dry_run})
        return 0
    verb = "would be removed" if dry_run else "removed"
    text = f"{verb}: {plural(len(pruned.runs), 'run')}, {plural(pruned.logs, 'log')}; {plural(left, 'run')} there"
    SafeConsole().print(escape(text), soft_wrap=True)
    return 0


def import_runs(folders: tuple[Path, ...], store: str, as_json: bool) -> int:
    """Take the runs of some folders into a history; those that cannot be taken keep none of the others out."""
    found: list[Imported] = []
    errors: list[UsageError] = []
    with opened(store, create=True) as engine:
        for folder in folders:
            try:
                found.append(import_run(engine, folder))
                import_night(engine, folder_of(folder), found[-1].run)
            except UsageError as error:
                errors.append(error)
                continue
            (err if as_json else SafeConsole()).print(escape(_imported(folder, found[-1])), soft_wrap=True)
    if as_json:
        rows = [{"run": one.run, "state": one.state, "new": one.new, "cells": one.cells} for one in found]
        print_json({"schema": "postload.import/1", "runs": rows})
    for each in errors:
        err.print(escape(f"postload: {each}"), soft_wrap=True)
    return UsageError.exit_code if errors else 0


def _imported(folder: Path, found: Imported) -> str:
    what = "imported" if found.new else "was there already"
    return f"{folder}: run {found.run} {what}: {found.state}, {plural(found.cells, 'cell')} judged"
