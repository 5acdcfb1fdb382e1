# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of folders that are either whole or not there.

A folder is built under a temporary name beside its place (:func:`harness.files.temp_dir`) and gets its name by one
rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from harness.errors import HostError
from harness.files import sweep, sync, temp_dir

CACHE_VARIABLE = "POSTLOAD_CACHE"
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
            sync(path)
