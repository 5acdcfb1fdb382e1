# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to load device state into a QEMU, each bringing back evidence."""
