# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: hashed whole, written by rename."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import harness
from harness.errors import HostError


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write by rename, so that nobody ever reads half a file.

    :raises HostError: no space, or the folder cannot be written
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def data_dir(name: str) -> Path:
    """``devices`` or ``guests``: of the checkout, else as installed with the package."""
    package = Path(harness.__file__).parent
    beside = package.parent / name
    return beside if beside.is_dir() and (package.parent / "pyproject.toml").exists() else package / "_data" / name
