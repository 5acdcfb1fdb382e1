# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything in this folder has the marker ``integration`` and needs a real QEMU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import MissingError
from harness.qemu.binary import find_binary

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # pytest hands all items of the session to this hook, not only those of this folder.
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def qemu_path() -> Path:
    """The QEMU of the integration tests. Without one they are skipped; under CI they fail."""
    try:
        return find_binary()
    except MissingError as error:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI has to have a QEMU: {error}", pytrace=False)
        pytest.skip(str(error))
