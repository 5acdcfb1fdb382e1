# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of folders that are either whole or not there.

A folder is built under a temporary name beside its place and gets its name by one rename. The temporary name
has a lock file that its builder holds: the kernel lets go of the lock when the builder dies, however it dies,
so a lock that can be taken marks a leftover (a pid would be taken again by somebody else, and means nothing
in another container).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from harness.errors import HostError

CACHE_VARIABLE = "POSTLOAD_CACHE"
_TEMP_PREFIX = ".tmp-"
_LOCK_SUFFIX = ".lock"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


def cache_root() -> Path:
    """The folder of everything that can be made again: ``$POSTLOAD_CACHE``, else the user's cache folder. It
    may not exist."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("postload"))


def publish_dir(key: str, build: Callable[[Path], None]) -> Path:
    """The folder of a key, built when it is not there.

    Two processes may build the same key at once: one of them wins and both get the winner's folder. When
    ``build`` fails, or the process dies, nothing is published.

    :param key: a relative path such as ``guests/3f2a...``; equal keys mean equal contents
    :param build: fills the empty folder that it is given
    :raises HostError: the disk is full, or the cache cannot be written
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a cache key: {key!r}")
    target = cache_root() / key
    if target.is_dir():
        return target
    with disk_errors(cache_root()):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        with temp_dir(target.parent) as temp:
            build(temp)
            _flush(temp)
            _publish(temp, target)
    return target


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


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    :raises HostError: the disk is full, or the folder cannot be written
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with temp_dir(path.parent) as temp:
            fresh = temp / path.name
            fresh.write_bytes(data)
            _sync(fresh)
            fresh.replace(path)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a :class:`HostError` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = f"free some space there, or name another folder in ${CACHE_VARIABLE}"
            raise HostError(f"the disk of {folder} is full: {free}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            why = f"{error.strerror}; name another folder in ${CACHE_VARIABLE}"
            raise HostError(f"the folder {folder} cannot be written: {why}") from error
        raise


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


def _publish(temp: Path, target: Path) -> None:
    try:
        temp.rename(target)
    except OSError as error:
        # Another process was first: its folder is as good. rename(2) never replaces a folder that is not
        # empty.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not target.is_dir():
            raise


def _flush(folder: Path) -> None:
    """Put the files on the disk before the rename, which could otherwise survive a power cut that their
    contents do not."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
