# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload merge``: the shards of a run as one run."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from harness.commands.execute import report_matrix
from harness.commands.notify import check_notify, notify
from harness.commands.output import err
from harness.errors import UsageError
from harness.report.merged import merged_text
from harness.report.writer import write_reports
from harness.results.events import write_events
from harness.results.folder import folder_of, held_against
from harness.results.known import load_known
from harness.results.merged import merge as put_together


def merge(
    folders: tuple[Path, ...], out: Path, known: Path | None, hook: str | None, store: str | None, as_json: bool
) -> int:
    """Write the reports of the whole run; returns its exit code, or 3 where something is missing."""
    if any(out.absolute() == folder_of(folder).absolute() for folder in folders):
        raise UsageError(f"--out {out}: a shard is there; name another folder")
    check_notify(hook)
    issues = None if known is None else load_known(known)
    merged = put_together(folders, issues)
    fold = write_events(merged.events, out)
    if store is not None:
        _keep_merged(store, out)
    held = held_against(fold.document(), fold.started)
    write_reports(held.doc, out)
    for line in merged_text(merged):
        err.print(escape(line), soft_wrap=True)
    code = report_matrix(held, out, as_json=as_json, cut="incomplete")
    if hook:
        notify(hook, held.doc, out, code)
    return code


def _keep_merged(store: str, out: Path) -> None:
    """Take the whole run into a history, once.

    :raises UsageError: that is no history
    :raises HostError: it cannot be written
    """
    from harness.store.engine import opened
    from harness.store.importing import import_run

    with opened(store, create=True) as engine:
        import_run(engine, out)
