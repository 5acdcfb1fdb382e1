# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload qemu``: QEMUs of several versions side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.commands.output import err, print_json
from harness.errors import UsageError
from harness.qemu.install import install_own, install_version
from harness.qemu.installed import Installed, entries
from harness.qemu.installed import remove as remove_name
from harness.qemu.versions import load_versions
from harness.report.console import SafeConsole


def install(
    what: str, full: bool, refresh: bool, datadirs: tuple[Path, ...], module_dir: Path | None, env: tuple[str, ...]
) -> int:
    """Install one, and say what was installed; returns the exit code."""
    started = time.monotonic()
    name, own, path = what.partition("=")
    if own:
        note = "own build"
        if full or refresh:
            raise UsageError("--full and --refresh are for Debian's versions, not for an own build")
        if not path:
            raise UsageError(f"{what}: expected NAME=PATH")
        done = install_own(name, Path(path), datadirs=datadirs, module_dir=module_dir, env=_variables(env))
    else:
        if datadirs or module_dir or env:
            raise UsageError("--datadir, --module-dir and --env are for an own build: NAME=PATH")
        with _progress() as report:
            done, note = install_version(name, report, full=full, refresh=refresh)
    _say(done, note, time.monotonic() - started)
    return 0


def list_installed(as_json: bool) -> int:
    """Show the QEMUs that have a name, and the versions that can be installed."""
    there = entries()
    if as_json:
        sources = {name: [str(s) for s in v.sources] for name, v in load_versions().versions.items()}
        installed = [{**each.to_json(), "launcher": str(each.launcher), "whole": each.whole} for each in there]
        print_json({"schema": "postload.qemus/1", "installed": installed, "installable": sources})
        return 0
    console = SafeConsole()
    if there:
        console.print(_table(there))
    else:
        console.print("No QEMU is installed by name; the host's own is used unless --qemu says otherwise.")
    rest = [name for name in load_versions().versions if name not in {each.name for each in there}]
    known = f"{', '.join(rest)} (postload qemu install VERSION), and " if rest else ""
    console.print(f"Can be installed: {known}own builds by NAME=PATH.", soft_wrap=True)
    return 0


def remove(name: str) -> int:
    """Forget a name, and delete its folder in the cache; never files of yours."""
    gone = remove_name(name)
    kept = "the downloaded packages are kept" if gone.kind == "suite" else f"{gone.source} is left as it is"
    err.print(f"removed {name}; {kept}", soft_wrap=True)
    return 0


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for key, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--env {key}: expected KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _say(done: Installed, note: str, seconds: float) -> None:
    size = f", {done.size_bytes / 1e6:.0f} MB on disk" if done.size_bytes else ""
    build = f" ({done.build})" if done.build else ""
    text = f"{done.name}: QEMU {done.version}{build}, {done.launcher}{size}, {seconds:.1f} s; {note}"
    err.print(text, soft_wrap=True, markup=False)


def _table(there: list[Installed]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "version", "size", "from", "build"):
        table.add_column(title, overflow="fold", justify="right" if title == "size" else "left")
    for each in there:
        size = f"{each.size_bytes / 1e6:.0f} MB" if each.size_bytes else ""
        state = "" if each.whole else " (not there any more)"
        table.add_row(each.name, each.version, size, each.source + state, each.build)
    return table


class _Report:
    """Progress of an installation: a bar on a terminal, a line for each step elsewhere."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("starting", total=None)

    def step(self, text: str) -> None:
        if err.is_terminal:
            self._bar.reset(self._task, description=text, total=None)
        else:
            err.print(text, soft_wrap=True, markup=False)

    def download(self, done_bytes: int, total_bytes: int) -> None:
        self._bar.update(self._task, completed=done_bytes, total=total_bytes)


@contextmanager
def _progress() -> Iterator[_Report]:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield _Report(bar)
