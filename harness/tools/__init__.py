# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's package tools, and running other programs."""
