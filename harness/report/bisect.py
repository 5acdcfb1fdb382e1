# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bisection came to in words."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.triage.bisect import BisectReport, Build, BuildChange, Found, Tried


def change_text(change: BuildChange) -> str:
    """Between which builds it changed."""
    old, new = _named(change.before.build), _named(change.after.build)
    told = f"last good is {old}, first bad is {new}" if change.broke else f"last bad is {old}, first good is {new}"
    skipped = ", ".join(map(_named, change.skipped))
    return f"{told}; could not be tried in between: {skipped}" if skipped else told


def contradiction_texts(report: BisectReport) -> list[str]:
    """What does not fit together, a sentence each."""
    told = [_misgiven(each) for each in report.misgiven]
    if len(report.changes) > 1:
        told.append(f"it changes {len(report.changes)} times: {'; '.join(map(change_text, report.changes))}")
    return told


def check_ends(report: BisectReport) -> None:
    """Raise when nothing can be said.

    :raises HarnessError: contradictions, or no change
    """
    if report.contradicts:
        hint = "; exchange --good and --bad" if report.swapped else ""
        raise HarnessError(f"no version can be named: {'; '.join(contradiction_texts(report))}{hint}")
    if not report.changes:
        raise HarnessError("no version can be named: nothing changed between them")


def _misgiven(tried: Tried) -> str:
    what = "could not be tried" if tried.outcome is Found.SKIPPED else f"is {tried.outcome}"
    return f"{_named(tried.build)} was given as {tried.build.given} and {what}"


def _named(build: Build) -> str:
    return build.version if build.name == build.version else f"{build.version} ({build.name})"
