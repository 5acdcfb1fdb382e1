# SPDX-License-Identifier: GPL-2.0-or-later
"""State packs: written, read, checked, as a folder or as one file."""
