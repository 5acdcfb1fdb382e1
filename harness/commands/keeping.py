# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that goes into a history while it goes on. Without one, the database's libraries are not imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from harness.commands.output import err
from harness.results.document import MatrixDoc
from harness.work.run import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Where the events of a run go besides its folder, and what is to be done when it has ended."""

    sinks: tuple[Sink, ...] = ()
    end: Callable[[MatrixDoc], None] = lambda doc: None


@contextmanager
def kept_run(store: str | None, out: Path) -> Iterator[Keeper]:
    """A run that is written into a history, or into none.

    :param out: folder of the run
    :raises UsageError: that is no history
    :raises HostError: it cannot be opened or written at the start. What it does not take later is said when the run
        has ended, and is in the folder
    """
    if store is None:
        yield Keeper()
        return
    from harness.store.engine import opened
    from harness.store.importing import heal
    from harness.store.write import RunSink

    with opened(store, create=True) as engine:
        heal(engine)
        sink = RunSink(engine, str(out.absolute()))
        try:
            yield Keeper(sinks=(sink.take,), end=lambda doc: sink.end(doc.machines))
        finally:
            sink.close()
            if sink.error is not None:
                text = f"postload: {sink.error}; {sink.lost} events are missing there: postload import {out}"
                err.print(escape(text), soft_wrap=True)
