# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders that are either whole or not there.

What is made stands under a temporary name beside its place until it gets its name by one rename. The temporary name
has a lock file that its maker holds: the kernel lets go of the lock when the maker dies, however it dies, so a lock
that can be taken marks a leftover (a pid would be taken again by somebody else, and means nothing in another
container).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import harness
from harness.errors import HostError

_TEMP_PREFIX = ".tmp-"
_LOCK_SUFFIX = ".lock"
#: Of ``renameat2``, see linux/fcntl.h and linux/fs.h.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write one file; see :func:`write_together`.

    :raises HostError: no space, or the folder cannot be written
    """
    write_together(path.parent, {path.name: data})


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of one folder: nobody ever reads half of one, and none is touched before all are on the disk.

    A file that is there keeps its mode. What a writer left that was killed is removed by the next one.

    :param files: name to content
    :raises HostError: no space, or the folder cannot be written; what was there is whole
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with temp_dir(folder) as temp:
            for name, data in files.items():
                (temp / name).write_bytes(data)
                if (folder / name).is_file():
                    shutil.copymode(folder / name, temp / name)
                # else the rename could survive a power cut, and the content not
                sync(temp / name)
            for name in files:
                (temp / name).replace(folder / name)
    except OSError as error:
        what = folder / next(iter(files)) if len(files) == 1 else f"the files of {folder}"
        raise HostError(f"cannot write {what}: {error.strerror}") from error


def folder_without(folder: Path, names: Iterable[str]) -> None:
    """Have a folder, and no files of these names in it.

    :raises HostError: it cannot be written
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot write in {folder}: {error.strerror}") from error


@contextlib.contextmanager
def temp_dir(parent: Path) -> Iterator[Path]:
    """An empty folder in ``parent`` that goes away with the block, or by a later :func:`sweep` if this
    process dies."""
    lock_path, lock = _new_lock(parent)
    temp = lock_path.with_suffix("")
    try:
        temp.mkdir()
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the temporary folders in ``parent`` whose builders are dead."""
    for lock_path in parent.glob(f"{_TEMP_PREFIX}*{_LOCK_SUFFIX}"):
        try:
            lock = os.open(lock_path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
            lock_path.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(lock)


def swap_folder(new: Path, place: Path) -> None:
    """Give a folder its name in one step: whoever reads by that name finds the old one or the new one, and never half.

    What was there is at ``new`` afterwards. A file system that cannot exchange two names has none for a moment.

    :param new: on the same file system as ``place``
    :raises HostError: it cannot be done; what was there is there
    """
    try:
        if not place.exists():
            new.rename(place)
        elif not _exchange(new, place):
            old = new.with_name(f"{new.name}.old")
            place.rename(old)
            new.rename(place)
            old.rename(new)
    except OSError as error:
        raise HostError(f"cannot replace {place}: {error.strerror}") from error


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places; whether this system can."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))


def sync(path: Path) -> None:
    """Have a file's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def data_dir(name: str) -> Path:
    """``devices`` or ``guests``: of the checkout, else as installed with the package."""
    package = Path(harness.__file__).parent
    beside = package.parent / name
    return beside if beside.is_dir() and (package.parent / "pyproject.toml").exists() else package / "_data" / name


def _new_lock(parent: Path) -> tuple[Path, int]:
    """A locked lock file that no sweeper took away between its creation and its locking."""
    while True:
        path = parent / f"{_TEMP_PREFIX}{uuid.uuid4().hex}{_LOCK_SUFFIX}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                return path, lock
        except BlockingIOError:
            pass
        os.close(lock)
