# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty histories in SQLite; ``tests/unit/store`` has those in PostgreSQL too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store.engine import open_store
from harness.store.read import History


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nights") / "empty.db"
    open_store(str(path), create=True).dispose()
    return path


@pytest.fixture
def history(empty_file: Path, tmp_path: Path) -> Iterator[History]:
    engine = open_store(str(shutil.copy(empty_file, tmp_path / "history.db")))
    yield History(engine)
    engine.dispose()
