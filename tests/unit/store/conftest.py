# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty histories. The migrations run once; each test has a copy of what they made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from harness.store.engine import open_store
from harness.store.read import History


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.db"
    open_store(str(path), create=True).dispose()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """What a user would give with ``--store``."""
    return str(shutil.copy(empty_store, tmp_path / "history.db"))


@pytest.fixture
def engine(store: str) -> Iterator[sa.Engine]:
    made = open_store(store)
    yield made
    made.dispose()


@pytest.fixture
def history(engine: sa.Engine) -> History:
    return History(engine)
