# SPDX-License-Identifier: GPL-2.0-or-later
"""Which night goes on, and which begins anew."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_runs import events, judged, started

from harness.errors import HostError
from harness.nights.folder import NIGHT, OLDEST, cut_off, last_once
from harness.results.events import EVENTS_NAME, EventLog

BEGAN = datetime(2026, 1, 1, 22, tzinfo=UTC)
SOON = BEGAN + timedelta(hours=3)


def written(out: Path, name: str = "20260101-220000-aaaaaa", night: str = "n") -> Path:
    with EventLog(out / name) as log:
        log.write(started(0, night=night, run=name))
        log.write(events([judged()])[1])
    return out / name


def test_a_night_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    folder = written(tmp_path)
    found = cut_off(tmp_path, "n", SOON)
    assert found is not None
    assert (found.folder, found.started.name, len(found.events)) == (folder, folder.name, 2)


def test_one_that_is_over_does_not(tmp_path: Path) -> None:
    (written(tmp_path) / NIGHT).write_text("{}")
    assert cut_off(tmp_path, "n", SOON) is None
    assert cut_off(tmp_path / "none", "n", SOON) is None


def test_another_build_or_question_is_another_night(tmp_path: Path) -> None:
    written(tmp_path)
    assert cut_off(tmp_path, "other", SOON) is None


def test_what_was_cut_off_long_ago_stays_so(tmp_path: Path) -> None:
    written(tmp_path)
    assert cut_off(tmp_path, "n", BEGAN + OLDEST) is not None
    assert cut_off(tmp_path, "n", BEGAN + OLDEST + timedelta(seconds=1)) is None


def test_one_that_goes_on_already_is_not_joined(tmp_path: Path) -> None:
    with EventLog(tmp_path / "20260101-220000-aaaaaa") as log:
        log.write(started(0, night="n"))
        with pytest.raises(HostError, match="this night still goes on"):
            cut_off(tmp_path, "n", SOON)


def test_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    older = written(tmp_path, "20260101-220000-aaaaaa")
    (written(tmp_path, "20260102-220000-bbbbbb") / EVENTS_NAME).write_bytes(b"\0\0\0\n")
    found = cut_off(tmp_path, "n", SOON)
    assert found is not None
    assert found.folder == older


def test_what_came_once_is_that_of_the_night_before(tmp_path: Path) -> None:
    assert last_once(tmp_path, tmp_path / "3") == set()
    for name in "124":
        once = [{"line": "l", "signature": f"hang:{name}"}]
        (tmp_path / name).mkdir()
        (tmp_path / name / NIGHT).write_text(json.dumps({"once": once}))
    assert last_once(tmp_path, tmp_path / "3") == {("l", "hang:2")}
    (tmp_path / "2" / NIGHT).write_text("no json")
    assert last_once(tmp_path, tmp_path / "3") == set()
