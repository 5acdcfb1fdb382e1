# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload bisect``: which version of QEMU changed a finding."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from harness.arch import architecture_named
from harness.commands.output import err, print_json
from harness.errors import PackError, PostloadError, UsageError
from harness.qemu.binary import QemuBinary, find_binary, probe_binary
from harness.qemu.installed import entries
from harness.qemu.process import scratch_folder
from harness.report.bisect import change_text, check_ends, contradiction_texts
from harness.report.bundle import WRITING
from harness.report.console import SafeConsole
from harness.results.document import find_cell
from harness.results.folder import read_matrix
from harness.text import printable
from harness.triage.bisect import BisectReport, Build, Tried, bisect, builds, git_lines
from harness.triage.bundle import SCRIPT, UNTRIED, ScriptAnswer, bundle_cell, kept_case, run_script
from harness.triage.case import CASE_FILE
from harness.triage.elsewhere import check_case, made_here
from harness.triage.interrupt import one_interrupt


def bisect_cell(
    cell: str, run: Path, bundle: Path | None, good: str, bad: str, qemus: tuple[str, ...], as_json: bool
) -> int:
    """Print the change; returns the exit code.

    :raises HarnessError: no version can be named
    """
    passing = _binary(good)
    guests = architecture_named(passing[1].target)
    found = builds(passing, _binary(bad), [_binary(name) for name in qemus], _installed())
    with one_interrupt(), scratch_folder() as scratch:
        case = _case(cell, run, bundle, scratch / "bundle")
        check_case(case, [passing[1].path])
        report = bisect(found, lambda build: _answer(case, build.path), _tell)
    for_git = bundle.absolute() if bundle else Path("/path/to/bundle")
    lines = [line for change in report.changes[:1] if report.decided for line in git_lines(change, for_git, guests)]
    if as_json:
        print_json(_document(cell, report, lines))
    else:
        _print(report, lines)
    check_ends(report)
    return 0


def _case(cell: str, run: Path, bundle: Path | None, scratch: Path) -> Path:
    """A folder that the script can be run on."""
    if bundle is not None:
        if not (bundle / CASE_FILE).is_file() or not (bundle / SCRIPT).is_file():
            raise UsageError(f"{bundle} is not a bundle: expected {CASE_FILE} and {SCRIPT}")
        return bundle
    if kept_case(run, find_cell(read_matrix(run), cell)) is None:
        err.print("no minimised case of this cell: its own is taken")
    return bundle_cell(cell, run, scratch, WRITING).folder


def _answer(case: Path, qemu: str) -> ScriptAnswer:
    """What a build says; one that has not what a case from elsewhere names is not given it."""
    try:
        check_case(case, [qemu])
    except PackError as error:
        return ScriptAnswer(qemu=qemu, code=UNTRIED, line=f"not tried: {error}", seconds=0.0)
    return run_script(case, qemu, foreign=not made_here(case))


def _binary(name: str) -> tuple[str, QemuBinary]:
    return name, probe_binary(find_binary(name))


def _installed() -> list[tuple[str, QemuBinary]]:
    found = []
    for each in entries():
        try:
            found.append((each.name, probe_binary(each.launcher)))
        except PostloadError as error:
            err.print(f"{escape(each.name)}: left out: {escape(str(error))}")
    return found


def _tell(tried: Tried) -> None:
    err.print(f"{escape(tried.build.name)}: {tried.outcome}")


def _print(report: BisectReport, lines: list[str]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("version", "QEMU", "", "answer"):
        table.add_column(name, overflow="fold")
    for each in report.tried:
        table.add_row(each.build.version, escape(each.build.name), str(each.outcome), escape(_short(each)))
    SafeConsole().print(table)
    for change in report.changes:
        click.echo(printable(change_text(change)))
    if lines:
        click.echo("\nThe commit, in a clone of QEMU's sources:\n")
        for line in lines:
            click.echo(printable(f"  {line}"))


def _short(tried: Tried) -> str:
    """The answer without what stands in the columns before it."""
    line = tried.answer.line
    return line.partition(", machine ")[2] or line.partition(": ")[2] or line


def _document(cell: str, report: BisectReport, lines: list[str]) -> dict[str, object]:
    return {
        "schema": "postload.bisect/1",
        "cell": cell,
        "decided": report.decided,
        "builds": [{**_build(t.build), "outcome": t.outcome, "answer": t.answer.line} for t in report.tried],
        "changes": [
            {"before": _build(c.before.build), "after": _build(c.after.build), "broke": c.broke, "text": change_text(c)}
            for c in report.changes
        ],
        "contradictions": contradiction_texts(report),
        "git": lines,
    }


def _build(build: Build) -> dict[str, str]:
    return {"name": build.name, "path": build.path, "version": build.version, "given": build.given}
