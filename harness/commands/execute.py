# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry out a run for a command: events kept, progress, reports, the answer, the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness.commands.doctor import host_facts
from harness.commands.keeping import kept_run
from harness.commands.notify import check_notify, notify, shown_command
from harness.commands.options import DEFAULT_OUT
from harness.commands.output import err
from harness.commands.remote import elsewhere
from harness.commands.resolve import run_scope
from harness.errors import HostError, NothingToRun, PostloadError
from harness.qemu.binary import AccelState, QemuBinary
from harness.qemu.walls import standing
from harness.report.console import SafeConsole
from harness.report.merged import shard_text
from harness.report.sentences import known_text
from harness.report.snapshots import Snapshots
from harness.report.terminal import LiveProgress, print_matrix
from harness.report.text import were
from harness.report.walls import walls_text, walls_warning
from harness.report.writer import render_json, write_reports
from harness.results.document import MatrixDoc
from harness.results.events import CellsPlanned, Event, EventLog, Judged, ShardOf, Started, new_run_name
from harness.results.folder import held_against
from harness.results.known import Issue, KnownRun
from harness.work.asked import Options
from harness.work.run import Run, Sink
from harness.work.share import Share


def carry_out(
    options: Options,
    accel: AccelState,
    given: dict[str, Any],
    work: Callable[[Run], MatrixDoc],
    *,
    issues: Sequence[Issue] | None,
    foreign: bool = False,
    shard: ShardOf | None = None,
    **more: Any,
) -> int:
    """Do the work of a run, print and write what came of it; returns the exit code.

    :param given: the command's ``out``, ``as_json``, ``store``, ``remote``, ``each_host`` and ``notify``
    :param issues: that the run is held against; None when it is held against none
    :param foreign: what is loaded came from elsewhere
    :param shard: the part of a run that this is
    :param more: what else :class:`Run` is to be given
    """
    check_notify(given["notify"])
    walls = told_walls(options.binaries) if foreign else None
    with (
        EventLog(given["out"]) as log,
        # a history has whole runs
        kept_run(None if shard else given["store"], given["out"]) as keep,
        elsewhere(given, options) as there,
    ):
        started = begin(accel, known=issues, walls=walls, shard=shard, hosts=there.hosts)
        remote = there.of(started.name)
        with shown_run(options, started, log, keep=keep.sinks, hook=given["notify"], remote=remote, **more) as run:
            doc = work(run)
            keep.end(doc)
    held = held_against(doc, started)
    write_reports(held.doc, given["out"])
    empty = shard is not None and not options.share and doc.complete
    if empty and given["as_json"]:
        sys.stdout.write(render_json(held.doc))
    code = 0 if empty else report_matrix(held, given["out"], as_json=given["as_json"])
    if shard is not None:
        err.print(shard_text(shard, empty=empty), soft_wrap=True)
        # whether there was anything to run is for the whole run to say
        code = 0 if code == NothingToRun.exit_code else code
    if given["notify"]:
        notify(given["notify"], held.doc, given["out"], code)
    return code


def told_walls(binaries: Sequence[QemuBinary]) -> str:
    """The walls around what came from elsewhere, in words; a warning is printed where they are too few."""
    walls = [standing(binary.path) for binary in binaries]
    for warning in dict.fromkeys(walls_warning(each, root=os.geteuid() == 0) for each in walls):
        if warning is not None:
            err.print(f"postload: {warning}", soft_wrap=True)
    return "; ".join(dict.fromkeys(map(walls_text, walls)))


def begin(
    accel: AccelState,
    known: Sequence[Issue] | None,
    qualify: dict[str, Any] | None = None,
    walls: str | None = None,
    shard: ShardOf | None = None,
    hosts: tuple[str, ...] = (),
) -> Started:
    """The first event of the run that the command line asks for.

    :param walls: around a QEMU that loads what came from elsewhere, in words
    :param hosts: each cell is to be judged on each of these
    """
    return Started(
        command=("postload", *shown_command(sys.argv[1:])),
        host=host_facts({accel.name: accel}) | ({} if walls is None else {"walls": walls}),
        known=None if known is None else [issue.model_dump(mode="json") for issue in known],
        qualify=qualify,
        run=new_run_name(),
        shard=shard,
        hosts=hosts,
    )


@contextmanager
def shown_run(
    options: Options, started: Started, log: EventLog, keep: Sequence[Sink] = (), hook: str | None = None, **more: Any
) -> Iterator[Run]:
    """A run that is shown while it goes on, with reports now and then, and also when it fails.

    :param keep: take the events before they are shown
    :param hook: is told of a run that fails; see :func:`harness.commands.notify.notify`
    """
    out = log.folder
    with LiveProgress(total_cells=0, console=err) as progress:
        snapshots = Snapshots(out, lambda: held_against(run.document(), started).doc, lambda: log.size_bytes)
        sinks = (*keep, _shown(progress.take, options.share), snapshots.take)
        run = Run(options, watcher=progress, started=started, write=log.write, sinks=sinks, scope=run_scope(), **more)
        with _last_words(run, started, out, hook):
            yield run


def _shown(take: Callable[[Event], None], share: Share | None) -> Callable[[Event], None]:
    """What a display is told: of the planned cells those that are judged here."""

    def shown(event: Event) -> None:
        if share is not None and isinstance(event, Judged) and not share.has(event.planned):
            return  # of a run that goes on: told before it was cut off
        if share is not None and isinstance(event, CellsPlanned):
            event = replace(event, cells=tuple(filter(share.has, event.cells)))
        take(event)

    return shown


@contextmanager
def _last_words(run: Run, started: Started, out: Path, hook: str | None) -> Iterator[None]:
    """A run that ends by an error still leaves all its reports, where there is room for them, and is told of."""
    try:
        yield
    except PostloadError as error:
        doc = held_against(run.document(), started).doc
        if doc.cells:
            with suppress(HostError):
                write_reports(doc, out)
        if hook:
            notify(hook, doc, out, error.exit_code)
        raise


def report_matrix(held: KnownRun, out: Path, *, as_json: bool, cut: str = "interrupted") -> int:
    """Print a matrix whose reports are written; returns the exit code of its run.

    :param cut: what a run is that is not complete
    """
    doc = held.doc
    if as_json:
        sys.stdout.write(render_json(doc))
    print_matrix(doc, err if as_json else SafeConsole(), "" if out == DEFAULT_OUT else str(out))
    others = "matrix.json, matrix.md, junit.xml, matrix.tap, summary.md"
    err.print(f"reports: {escape(str(out / 'matrix.html'))}, {others}", soft_wrap=True)
    if not doc.complete:
        err.print(f"postload: {cut}: {were(len(doc.cells), 'cell')} judged", soft_wrap=True)
    news = known_text(held)
    if news:
        err.print(escape(news), soft_wrap=True)
    return held.exit_code if doc.complete else 3
