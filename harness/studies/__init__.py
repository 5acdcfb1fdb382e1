# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions of the mailing list, answered with numbers by ``postload claims``."""
