# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads with a look at more than their answers: memory, saved state, the guest's life, failing disks."""
