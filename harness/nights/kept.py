# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night puts into its history beside its run: excuses, and what reproducers said.

All of it stands in ``night.json`` too, so that a night which is imported says the same as one that was written while it
went on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from harness.errors import UsageError
from harness.nights.document import NightDoc, ReproducerAnswer, read_night
from harness.nights.folder import NIGHT
from harness.nights.telling import excuses_of
from harness.store.keep import put_excuses, put_reproduction
from harness.store.read import History


def put_answer(engine: sa.Engine, said: ReproducerAnswer) -> None:
    """Keep what a reproducer said of a build.

    :raises UsageError: no run of this history has such a finding
    :raises HostError: the database does not take it
    """
    put_reproduction(
        engine, signature=said.signature, qemu=said.qemu, answer=said.answer, at=said.at, script=said.script
    )


def import_night(engine: sa.Engine, folder: Path, run: str) -> None:
    """Take what a night did not count, and what reproducers said in it, into a history that has its run.

    A folder without ``night.json`` is none of a night, or of one that was cut off; there is nothing to take. An answer
    about a finding that no run of the history has is left out.

    :param folder: of the run
    :param run: its name
    :raises UsageError: it is damaged; names the file
    :raises HostError: the database does not take it
    """
    path = folder / NIGHT
    if not path.exists():
        return
    doc = _read(path)
    put_excuses(engine, History(engine).run(run), excuses_of(doc))
    for said in (*doc.reproduced, *doc.made):
        with suppress(UsageError):
            put_answer(engine, said)


def _read(path: Path) -> NightDoc:
    try:
        return read_night(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
