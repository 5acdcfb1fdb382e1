# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty histories, in SQLite and in a real PostgreSQL: a test that takes one runs in both.

The migrations run once for each; a test has a copy of what they made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from made_postgresql import Cluster

from harness.store.engine import open_store, store_url
from harness.store.read import History
from harness.store.tables import HEAD, metadata


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.db"
    open_store(str(path), create=True).dispose()
    return path


@pytest.fixture(scope="session")
def one_database(postgresql: Cluster) -> str:
    url = postgresql.url(postgresql.create())
    open_store(url).dispose()
    return url


@pytest.fixture
def empty_database(one_database: str) -> Iterator[str]:
    """Emptied behind each test: to make and drop one takes PostgreSQL a second."""
    yield one_database
    engine = sa.create_engine(store_url(one_database))
    with engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD})
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What a user would give with ``--store``."""
    if request.param == "sqlite":
        yield str(shutil.copy(request.getfixturevalue("empty_file"), tmp_path / "history.db"))
        return
    yield request.getfixturevalue("empty_database")


@pytest.fixture
def engine(store: str) -> Iterator[sa.Engine]:
    made = open_store(store)
    yield made
    made.dispose()


@pytest.fixture
def history(engine: sa.Engine) -> History:
    return History(engine)
