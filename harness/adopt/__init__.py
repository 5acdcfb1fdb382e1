# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody else's VM: its command line or libvirt domain, and its saved state, made a state pack of."""
