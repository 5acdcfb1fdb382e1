# SPDX-License-Identifier: GPL-2.0-or-later
"""What is varied for one device: schedules, migrations, oracles; each judges cells."""
