# SPDX-License-Identifier: GPL-2.0-or-later
"""All lanes, in the order of a report."""

from __future__ import annotations

from collections.abc import Mapping

from harness.lanes import checks, migrations, schedules
from harness.lanes.lane import Lane

LANES: Mapping[str, Lane] = {lane.name: lane for lane in (*migrations.LANES, *schedules.LANES, *checks.LANES)}
MIGRATIONS = tuple(lane.name for lane in migrations.LANES)
SCHEDULES = tuple(lane.name for lane in schedules.LANES)
ORACLES = tuple(lane.name for lane in checks.LANES)
