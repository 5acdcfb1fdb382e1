# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrying out a run: what is done when, and by whom."""
