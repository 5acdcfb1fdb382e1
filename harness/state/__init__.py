# SPDX-License-Identifier: GPL-2.0-or-later
"""Where device state comes from: recordings, and what is done to their sections before they are loaded."""
