# SPDX-License-Identifier: GPL-2.0-or-later
"""Reproducers of open findings are asked of each new build, and only they say that one is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import QEMU
from made_runs import crashed, events, judged, started, write_nights, write_run

from harness.commands.bundle import one_of_each
from harness.nights.reproducers import TRIES, Reproducer, asked_of, bundle_folder, reproducers_due
from harness.results.document import Qemu
from harness.results.events import Fold
from harness.store.compare import compare
from harness.store.keep import put_reproduction
from harness.store.read import History
from harness.store.signatures import signatures_on
from harness.store.states import Reproduced, read_rules
from harness.triage.bundle import ScriptAnswer
from harness.triage.case import CASE_FILE

BOUND = "pc-q35-7.2/ahci/bound/same"
NEWER = replace(QEMU, version="7.2.23", label="7.2.23", sha256="34" * 32)
OTHER = replace(QEMU, version="11.1.0", label="11.1.0", sha256="56" * 32)


@pytest.fixture
def signature(history: History, tmp_path: Path) -> str:
    write_nights(history.engine, [[judged(BOUND)], [crashed(BOUND)]])
    (found,) = history.signatures()
    bundle = bundle_folder(tmp_path, found.name)
    bundle.mkdir()
    (bundle / CASE_FILE).write_text("{}")
    return found.name


def due(history: History, bundles: Path, *builds: Qemu) -> list[Reproducer]:
    found = signatures_on(history, read_rules())
    return list(reproducers_due(found, builds, history.reproductions(), history.builds_seen(), bundles))


def test_a_new_build_of_the_line_is_asked_once(history: History, tmp_path: Path, signature: str) -> None:
    (one,) = due(history, tmp_path, NEWER, OTHER)
    assert (one.signature, one.qemu, one.bundle) == (signature, NEWER, bundle_folder(tmp_path, signature))
    put_reproduction(history.engine, signature=signature, qemu=NEWER, answer=Reproduced.STILL)
    assert due(history, tmp_path, NEWER) == []


def test_a_build_that_showed_it_is_not_asked(history: History, tmp_path: Path, signature: str) -> None:
    assert due(history, tmp_path, QEMU) == []
    write_run(history.engine, started(2), events([crashed(BOUND, record_qemu=NEWER, load_qemu=NEWER)]))
    assert due(history, tmp_path, NEWER) == []


def test_what_could_not_be_tried_is_asked_again(history: History, tmp_path: Path, signature: str) -> None:
    put_reproduction(history.engine, signature=signature, qemu=NEWER, answer=Reproduced.UNDECIDED)
    assert len(due(history, tmp_path, NEWER)) == 1


def test_what_is_fixed_is_not_asked_of_the_next(history: History, tmp_path: Path, signature: str) -> None:
    put_reproduction(history.engine, signature=signature, qemu=NEWER, answer=Reproduced.GONE)
    assert due(history, tmp_path, replace(NEWER, version="7.2.24", label="7.2.24", sha256="78" * 32)) == []


def test_without_a_bundle_nobody_is_asked(history: History, tmp_path: Path, signature: str) -> None:
    (bundle_folder(tmp_path, signature) / CASE_FILE).unlink()
    assert due(history, tmp_path, NEWER) == []


@pytest.mark.parametrize("answer", [None, Reproduced.STILL, Reproduced.UNDECIDED, Reproduced.GONE])
def test_a_finding_that_is_gone_is_fixed_only_when_its_reproducer_says_so(
    history: History, signature: str, answer: Reproduced | None
) -> None:
    write_run(history.engine, started(2), events([judged(BOUND, record_qemu=NEWER, load_qemu=NEWER)]))
    if answer is not None:
        put_reproduction(history.engine, signature=signature, qemu=NEWER, answer=answer)
    newest, before = history.runs(limit=2)
    doc = compare(history, before, newest, read_rules())
    told = {
        name: [change.signature for change in getattr(doc, name)]
        for name in ("fixed", "unseen", "still", "new", "back")
    }
    wanted = {Reproduced.GONE: "fixed", Reproduced.STILL: "still"}.get(answer or Reproduced.NONE, "unseen")
    assert told == {name: [signature] if name == wanted else [] for name in told}


def answers(*codes: int) -> Iterator[ScriptAnswer]:
    return (ScriptAnswer(qemu="q", code=code, line="") for code in codes)


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ((0,), Reproduced.STILL),
        ((1, 1, 0), Reproduced.STILL),
        ((1,) * TRIES, Reproduced.GONE),
        ((125,), Reproduced.UNDECIDED),
        ((1, 125), Reproduced.UNDECIDED),
    ],
)
def test_one_try_shows_that_it_is_there_and_several_that_it_is_gone(codes: tuple[int, ...], wanted: Reproduced) -> None:
    left = answers(*codes)
    assert asked_of(lambda: next(left)) is wanted
    assert list(left) == []


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_night_bundles_is_in_its_history(history: History, order: int) -> None:
    """Two guests break in two ways in the platform's one cell: the night's document and its history keep the same."""
    first, told = started(), events([crashed(words="one way"), crashed(words="another")][::order])
    write_run(history.engine, first, told)
    night = Fold(first)
    for event in told:
        night.add(event)
    (signature,) = one_of_each(night.document().cells)
    put_reproduction(history.engine, signature=signature, qemu=QEMU, answer=Reproduced.STILL)
    assert [each.signature for each in history.reproductions()] == [signature]


def test_bundles_of_two_findings_have_two_folders(tmp_path: Path) -> None:
    names = ["crash:f:a b:x:pc", "crash:f:a/b:x:pc", "crash:" + "f" * 300, "crash:" + "f" * 301]
    found = {bundle_folder(tmp_path, name).name for name in names}
    assert len(found) == 4
    assert all("/" not in name and len(name) < 100 for name in found)
