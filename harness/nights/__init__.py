# SPDX-License-Identifier: GPL-2.0-or-later
"""Nights: what a run each night is asked for, what of it goes first, and what it came to. Returns data."""
