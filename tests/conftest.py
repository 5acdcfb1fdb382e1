# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import signal

import hypothesis

# A deadline would be an assertion about time, and fail on a busy machine.
hypothesis.settings.register_profile("postload", deadline=None, print_blob=True)
hypothesis.settings.load_profile("postload")

# A shell without job control starts what it puts into the background with SIGINT ignored, nohup starts it with SIGHUP
# ignored, and every child inherits that. The program tells what ended a QEMU, so both work here however pytest started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
