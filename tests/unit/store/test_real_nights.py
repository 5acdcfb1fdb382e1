# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten nights that were run for real, by ``tests/bench/nights.py``: what each says of the one before it.

Four releases and a build ``mine``, which is another one from night to night. What the nights told when they were
written is told again of nights that are imported from their folders, oldest first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard

from harness.nights.folder import NIGHT
from harness.nights.kept import import_night
from harness.results.events import EVENTS_NAME
from harness.store.compare import compare
from harness.store.document import CompareDoc
from harness.store.importing import import_run
from harness.store.read import History
from harness.store.signatures import signatures_on
from harness.store.states import SignatureState, read_rules
from harness.store.write import RunState

NIGHTS = Path(__file__).with_name("nights.jsonl.zst")
PLATFORM = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
PLANTED = tuple(
    f"reject:-:ERROR: Cannot migrate while device properties (subsys/subsys_ven) differ:e1000e:{family}"
    for family in ("pc", "q35")
)
#: What each night tells of mine: 10.0 twice, 11.1 twice, a planted fault twice, 11.1, none, 10.0, 11.1.
TOLD: tuple[dict[str, tuple[str, ...]], ...] = (
    {},  # the first: all is new
    {},
    {"fixed": (PLATFORM,)},
    {},  # was killed, and begun again
    {"new": PLANTED},
    {"excused": PLANTED},
    {"fixed": PLANTED},
    {},
    {"back": (PLATFORM,)},
    {"fixed": (PLATFORM,)},
)
LISTS = ("new", "back", "fixed", "unseen", "flaky", "excused")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders that the nights left, as ``pack`` of the bench has put them into one file."""
    lines = zstandard.ZstdDecompressor().decompress(NIGHTS.read_bytes(), max_output_size=1 << 28).splitlines(True)
    found: list[Path] = []
    while lines:
        folder, count = tmp_path_factory.mktemp("night"), int(lines[0])
        (folder / EVENTS_NAME).write_bytes(b"".join(lines[1 : 1 + count]))
        (folder / NIGHT).write_bytes(lines[1 + count])
        del lines[: 2 + count]
        found.append(folder)
    return found


def document(folder: Path) -> dict[str, Any]:
    """What the night told when it was over."""
    found: dict[str, Any] = json.loads((folder / NIGHT).read_bytes())
    return found


def imported(engine: sa.Engine, folder: Path) -> CompareDoc | None:
    """A night, taken into the history and held against the one before it."""
    found = import_run(engine, folder)
    import_night(engine, folder, found.run)
    assert found.state is RunState.ENDED
    history = History(engine)
    last, *before = history.runs(limit=2)
    return compare(history, before[0], last, read_rules()) if before else None


def of_mine(doc: CompareDoc) -> dict[str, tuple[str, ...]]:
    """The findings of mine in each list that has some."""
    names = {name: {c.signature for c in getattr(doc, name) if c.cell.startswith("mine/")} for name in LISTS}
    return {name: tuple(sorted(found)) for name, found in names.items() if found}


def test_each_night_says_what_was_changed_before_it_and_nothing_else(
    engine: sa.Engine, history: History, folders: list[Path]
) -> None:
    assert len(folders) == len(TOLD)
    for number, folder in enumerate(folders):
        doc, night = imported(engine, folder), document(folder)
        if doc is None:
            continue
        assert (number, of_mine(doc)) == (number, TOLD[number])
        # the releases did not change
        assert [c.cell for name in LISTS for c in getattr(doc, name) if not c.cell.startswith("mine/")] == []
        # and the night said the same when it was written
        for name in set(LISTS) - {"excused"}:
            written = [(c["cell"], c["signature"]) for c in night["compared"][name]]
            assert [(c.cell, c.signature) for c in getattr(doc, name)] == written
        assert [c.cell for c in doc.excused] == [each["change"]["cell"] for each in night["excused"]]
    # 11.1 crashes too where a device's sections are loaded twice without a reset: a script that does not says nothing
    states = {each.qemu: str(each.state) for each in signatures_on(history, read_rules(), PLATFORM)}
    assert states == dict.fromkeys(("5.2", "7.2", "10.0", "11.1", "mine"), "open")
    planted = {each.state for name in PLANTED for each in signatures_on(history, read_rules(), name)}
    assert planted == {SignatureState.FIXED_IN}


def test_a_night_that_was_killed_and_one_that_lacks_a_build_say_so(folders: list[Path]) -> None:
    documents = list(map(document, folders))
    assert [number for number, doc in enumerate(documents) if doc["resumed"]] == [3]
    assert [number for number, doc in enumerate(documents) if doc["absent"]] == [7]
    assert [doc["exit_code"] for doc in documents] == [1, 0, 0, 0, 1, 0, 0, 3, 1, 0]
    assert all(doc["counts"] and not doc["missing"] for doc in documents)
