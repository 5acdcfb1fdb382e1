# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from made_postgresql import Cluster, Server, programs, started_server

# A deadline would be an assertion about time, and fail on a busy machine.
hypothesis.settings.register_profile("postload", deadline=None, print_blob=True)
hypothesis.settings.load_profile("postload")

# A shell without job control starts what it puts into the background with SIGINT ignored, nohup starts it with SIGHUP
# ignored, and every child inherits that. The program tells what ended a QEMU, so both work here however pytest started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def postgresql_programs() -> Path:
    """The folder of Debian's PostgreSQL. Without one the tests that want it are skipped; under CI they fail."""
    bin_dir = programs()
    if bin_dir is None:
        why = "there is no PostgreSQL here: apt-get install --no-install-recommends postgresql"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI has to have it: {why}", pytrace=False)
        pytest.skip(why)
    return bin_dir


@pytest.fixture(scope="session")
def postgresql(postgresql_programs: Path) -> Iterator[Cluster]:
    """One that is started once for all tests."""
    with started_server(postgresql_programs) as server:
        yield server.cluster


@pytest.fixture
def own_postgresql(postgresql_programs: Path) -> Iterator[Server]:
    """One that a test has for itself, and may kill."""
    with started_server(postgresql_programs) as server:
        yield server
