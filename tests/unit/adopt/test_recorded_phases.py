# SPDX-License-Identifier: GPL-2.0-or-later
"""Phases that are asked for are those that the machine can get to."""

from __future__ import annotations

import pytest

from harness.commands.resolve import recorded_phases
from harness.errors import UsageError
from harness.names import USUAL_PHASES


def test_phases_are_taken_in_the_order_of_a_guests_life() -> None:
    assert recorded_phases(["bound", "firmware"], "pc-q35-7.2") == ("firmware", "bound")
    assert recorded_phases([], "virt-7.2") == tuple(USUAL_PHASES)


def test_a_machine_with_none_of_them_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"virt-7\.2 has no phase firmware"):
        recorded_phases(["firmware"], "virt-7.2")
