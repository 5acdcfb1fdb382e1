# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty histories, in SQLite and in a real PostgreSQL: a test that takes one runs in both.

The migrations run once for each; a test has a copy of what they made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from made_postgresql import Cluster, cluster, programs

from harness.store.engine import open_store
from harness.store.read import History


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.db"
    open_store(str(path), create=True).dispose()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """Debian's PostgreSQL, started for these tests. Without one they are skipped; under CI they fail."""
    bin_dir = programs()
    if bin_dir is None:
        why = "there is no PostgreSQL here: apt-get install --no-install-recommends postgresql"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI has to have it: {why}", pytrace=False)
        pytest.skip(why)
    with cluster(bin_dir) as made:
        yield made


@pytest.fixture(scope="session")
def empty_database(postgresql: Cluster) -> str:
    name = postgresql.create()
    open_store(postgresql.url(name)).dispose()
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What a user would give with ``--store``."""
    if request.param == "sqlite":
        yield str(shutil.copy(request.getfixturevalue("empty_file"), tmp_path / "history.db"))
        return
    made: Cluster = request.getfixturevalue("postgresql")
    name = made.create(request.getfixturevalue("empty_database"))
    yield made.url(name)
    made.drop(name)


@pytest.fixture
def engine(store: str) -> Iterator[sa.Engine]:
    made = open_store(store)
    yield made
    made.dispose()


@pytest.fixture
def history(engine: sa.Engine) -> History:
    return History(engine)
