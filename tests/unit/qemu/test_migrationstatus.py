# SPDX-License-Identifier: GPL-2.0-or-later
"""Every word of QAPI's MigrationStatus up to 11.1, and what a waiting engine may conclude from it."""

from __future__ import annotations

import pytest

from harness.qemu.migrationstatus import STAGES, Stage, stage_of


@pytest.mark.parametrize(
    ("status", "begun", "over", "bad"),
    [
        ("none", False, False, False),
        ("setup", False, False, False),
        ("wait-unplug", True, False, False),
        ("active", True, False, False),
        ("pre-switchover", True, False, False),
        ("device", True, False, False),
        ("postcopy-device", True, False, False),
        ("postcopy-active", True, False, False),
        ("postcopy-recover-setup", True, False, False),
        ("postcopy-recover", True, False, False),
        ("colo", True, False, False),
        ("completed", True, True, False),
        ("cancelling", True, False, True),
        ("failing", True, False, True),
        ("cancelled", True, True, True),
        ("failed", True, True, True),
        ("postcopy-paused", True, True, True),
    ],
)
def test_every_status_has_its_stage(status: str, begun: bool, over: bool, bad: bool) -> None:
    stage = STAGES[status]
    assert (stage.begun, stage.over, stage.bad) == (begun, over, bad)
    assert stage_of({"status": status}) is stage


def test_the_table_has_the_seventeen_words_of_11_1() -> None:
    assert len(STAGES) == 17


def test_no_status_is_none_and_an_unknown_one_goes_on() -> None:
    assert stage_of({}) is Stage.NONE
    assert stage_of({"status": "postcopy-of-tomorrow"}) is Stage.RUNNING
