# SPDX-License-Identifier: GPL-2.0-or-later
"""All lanes, in the order of a report."""

from __future__ import annotations

from collections.abc import Mapping

from harness import names
from harness.lanes import checks, faileddisks, guest, migrations, reset, schedules
from harness.lanes.lane import Lane

_ALL = (*migrations.LANES, *schedules.LANES, *checks.LANES, *faileddisks.LANES, *guest.LANES, *reset.LANES)

LANES: Mapping[str, Lane] = names.in_order("lanes", names.LANES, {lane.name: lane for lane in _ALL})
