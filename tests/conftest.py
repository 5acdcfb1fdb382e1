# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import hypothesis

# A deadline would be an assertion about time, and fail on a busy machine.
hypothesis.settings.register_profile("postload", deadline=None, print_blob=True)
hypothesis.settings.load_profile("postload")
