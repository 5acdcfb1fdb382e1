# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be judged: device profiles and what they say of a device."""
