# SPDX-License-Identifier: GPL-2.0-or-later
"""Reloads the same device state many times through QEMU's COLO checkpoint path and names what breaks."""

__version__ = "0.1.0"
