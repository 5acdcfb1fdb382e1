# SPDX-License-Identifier: GPL-2.0-or-later
"""Six nights that were run for real, by ``tests/bench/nights.py``: what each says of the one before it.

Four QEMUs. ``mine`` is 10.0 in night 0, 11.1 in nights 1 and 2, 11.1 with a planted fault in night 3, 11.1 again in 4
and 10.0 again in 5. Night 2 was killed. On 7.2 and 10.0 the platform of q35 crashes, and from 7.2 on an xHCI without
MSI-X does.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
import zstandard

from harness.results.document import Qemu
from harness.store.compare import compare
from harness.store.document import CompareDoc
from harness.store.importing import import_run
from harness.store.keep import put_reproduction
from harness.store.read import History
from harness.store.signatures import signatures_on
from harness.store.states import Reproduced, read_rules
from harness.store.write import RunState

NIGHTS = Path(__file__).with_name("nights.jsonl.zst")
PLATFORM = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
PLANTED = {
    f"reject:-:ERROR: Cannot migrate while device properties (subsys/subsys_ven) differ:e1000e:{family}"
    for family in ("pc", "q35")
}
RULES = read_rules()


@pytest.fixture(autouse=True)
def states(engine: sa.Engine, tmp_path: Path) -> list[RunState]:
    """The nights, imported from the folders that they left."""
    events = zstandard.ZstdDecompressor().decompress(NIGHTS.read_bytes(), max_output_size=1 << 26)
    nights = events.split(b'{"event":"started"')[1:]
    found = []
    for number, night in enumerate(nights):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cells.jsonl").write_bytes(b'{"event":"started"' + night)
        found.append(import_run(engine, folder).state)
    return found


def told(history: History, night: int) -> CompareDoc:
    """A night against the one before it."""
    runs = history.runs()[::-1]
    return compare(history, runs[night - 1], runs[night], RULES)


def of_mine(doc: CompareDoc) -> dict[str, set[str]]:
    """The findings of ``mine`` in each list that has some."""
    names = ("new", "back", "fixed", "unseen", "flaky")
    found = {name: {c.signature for c in getattr(doc, name) if c.cell.startswith("mine/")} for name in names}
    return {name: signatures for name, signatures in found.items() if signatures}


def test_a_night_that_was_killed_is_marked(states: list[RunState], history: History) -> None:
    assert states == [RunState.KILLED if number == 2 else RunState.ENDED for number in range(6)]
    killed = history.runs()[::-1][2]
    assert (killed.judged, killed.judged < killed.planned) == (9, True)


@pytest.mark.parametrize(
    ("night", "expected"),
    [
        (1, {"unseen": {PLATFORM}}),  # 11.1 mends the platform of q35
        (2, {}),
        (3, {"new": PLANTED}),
        (4, {"unseen": PLANTED}),
        (5, {"back": {PLATFORM}}),
    ],
)
def test_each_night_says_what_was_changed_before_it_and_nothing_else(
    history: History, night: int, expected: dict[str, set[str]]
) -> None:
    doc = told(history, night)
    assert of_mine(doc) == expected
    others = [c for name in ("new", "back", "unseen", "flaky") for c in getattr(doc, name) if c.cell[:4] != "mine"]
    assert others == []  # nothing was changed in the other three
    assert doc.exit_code == {2: 3, 3: 1, 5: 1}.get(night, 0)


def test_what_the_killed_night_did_not_judge_is_told_and_is_not_gone(history: History) -> None:
    doc = told(history, 2)
    assert Counter(str(change.look) for change in doc.not_run) == {"unjudged": 17}
    assert PLATFORM in {change.signature for change in doc.not_run}


def test_the_fixed_build_is_fixed_when_its_reproducer_says_so(engine: sa.Engine, history: History) -> None:
    runs = history.runs()[::-1]
    (build,) = {row.loader for row in history.cells(runs[1]) if row.cell.startswith("mine/")}
    (found,) = [each for each in history.builds(runs[1]) if each.sha256 == build]
    qemu = Qemu(version=found.version, build=found.build, path=found.path, sha256=found.sha256, label="mine")
    put_reproduction(engine, signature=PLATFORM, qemu=qemu, answer=Reproduced.GONE, at=runs[1].started)
    assert of_mine(told(history, 1)) == {"fixed": {PLATFORM}}
    states = {each.qemu: str(each.state) for each in signatures_on(history, RULES, PLATFORM)}
    assert states == {"7.2": "open", "10.0": "open", "mine": "back"}
