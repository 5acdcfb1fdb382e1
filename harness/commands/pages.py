# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload pages``: a history as a folder of pages."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from harness.commands.output import err
from harness.errors import HostError, NothingToRun, UsageError
from harness.files import swap_folder, sweep, temp_dir
from harness.report.console import SafeConsole
from harness.report.pages import Site, archive_name, pages
from harness.report.text import plural
from harness.results.document import Cell
from harness.store.compare import compare
from harness.store.nights import Nights, read_nights
from harness.store.read import History, Reproduction, RunRow, open_history
from harness.store.signatures import signatures_on
from harness.store.speeds import curves
from harness.store.states import HistoryRules, read_rules
from harness.triage.kept import KeptCase, archive, case_in, kept_cases

#: Lies in a folder that this program wrote, and may replace.
STAMP = ".postload-pages"
#: Of a signature so many of the newest cells are looked at for one that is kept whole.
_MOST_LOGS = 5


def write_pages(store: str, out: Path, last: int, against: str | None, rules: Path | None) -> int:
    """Write the pages into a new folder, and put it in place of the old one.

    :raises UsageError: there is no such history or run, or ``out`` has something else in it
    :raises NothingToRun: the history has no runs
    :raises HostError: the history cannot be read, or the folder cannot be written
    """
    place = _checked(out)
    with open_history(store) as history, err.status("Reading the history"):
        site = _site(history, last, against, read_rules(rules))
    count = _write(site, place)
    text = f"{plural(count, 'page')} of {plural(len(site.nights.runs), 'run')}: open {out / 'index.html'}"
    SafeConsole().print(escape(text), soft_wrap=True)
    return 0


def _checked(out: Path) -> Path:
    place = out.resolve()
    if place.exists() and not (place / STAMP).exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{out}: expected a folder that is new, empty, or was written by postload pages")
    return place


def _site(history: History, last: int, against: str | None, rules: HistoryRules) -> Site:
    nights = read_nights(history, last=last)
    if not nights.runs:
        raise NothingToRun("the history has no runs yet")
    newest = nights.runs[0]
    reproductions = history.reproductions()
    before = history.run(against) if against else next(iter(nights.runs[1:]), None)
    return Site(
        nights=nights,
        compared=compare(history, before, newest, rules) if before else None,
        curves=curves(nights, history),
        signatures=history.signatures(),
        on=signatures_on(history, rules),
        logs=_logs(history, nights),
        reproductions=reproductions,
        cases=_cases(reproductions, nights.runs),
        archives=frozenset(),
        excuses=history.excuses(nights.runs),
    )


def _logs(history: History, nights: Nights) -> dict[str, Cell]:
    """Of each signature the newest cell that is kept whole."""
    found: dict[str, Cell] = {}
    tries: dict[str, int] = {}
    for run in nights.runs:
        for remark in nights.remarks.get(run.number, ()):
            name = remark.signature
            if name and name not in found and tries.get(name, 0) < _MOST_LOGS:
                tries[name] = tries.get(name, 0) + 1
                cell = history.log(run, remark.cell.key)
                if cell is not None:
                    found[name] = cell
    return found


def _cases(reproductions: Iterable[Reproduction], runs: Iterable[RunRow]) -> dict[str, KeptCase]:
    """Those that this host has: of the reproducers that were asked last, then of the newest runs."""
    found: dict[str, KeptCase] = {}
    for each in reproductions:
        case = case_in(Path(each.script)) if each.script else None
        if case is not None and case.signature == each.signature:
            found.setdefault(case.signature, case)
    for run in runs:
        if run.folder and run.host in ("", platform.node()):
            for name, case in kept_cases(Path(run.folder)).items():
                if name not in found or (case.is_bundle and not found[name].is_bundle):
                    found[name] = case
    return found


def _write(site: Site, place: Path) -> int:
    """How many pages there are."""
    count = 0
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        with temp_dir(place.parent) as temp, err.status("Writing the pages"):
            new = temp / "site"
            for folder in ("devices", "signatures", "runs", "bundles"):
                (new / folder).mkdir(parents=True, exist_ok=True)
            for name, text in pages(replace(site, archives=_pack(site, new))):
                (new / name).write_text(text, encoding="utf-8")
                count += name.endswith(".html")
            (new / STAMP).touch()
            swap_folder(new, place)
    except OSError as error:
        raise HostError(f"cannot write {place}: {error.strerror}") from error
    return count


def _pack(site: Site, new: Path) -> frozenset[str]:
    """The bundles that can be downloaded, by their signatures."""
    packed = set()
    for name, case in site.cases.items():
        data = archive(case) if case.is_bundle and name in site.named else None
        if data is not None:
            (new / archive_name(name)).write_bytes(data)
            packed.add(name)
    return frozenset(packed)
