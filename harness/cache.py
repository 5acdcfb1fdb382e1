# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of folders that are either whole or not there.

A folder is built under a temporary name beside its place (:func:`harness.files.temp_dir`) and gets its name by one
rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from harness.errors import HostError
from harness.files import sweep, sync, temp_dir, write_atomically

#: What may be pruned: recordings of this host, packs from elsewhere and their guests, and marks of cases that were made
#: here. All else is small, or costs a download.
PRUNABLE = ("packs", "imported", "made")
#: A folder that was used so lately is never pruned.
GRACE_S = 3600.0
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


def kept_answer(key: str) -> Any:
    """What :func:`keep_answer` kept there; None where nothing is, or nothing that can be read."""
    try:
        return json.loads((cache_root() / key).read_text())
    except (OSError, ValueError):
        return None


def keep_answer(key: str, answer: object) -> None:
    """Keep an answer that would be the same if it were asked for again.

    :param key: path below the cache; it names all that the answer depends on
    :param answer: JSON, and not null
    :raises HostError: no space
    """
    write_atomically(cache_root() / key, json.dumps(answer).encode())


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def hold(folder: Path) -> int | None:
    """Mark a folder of the cache as used now, and as being used until the descriptor is closed or the process ends.

    :return: the descriptor; None for a folder that is not of the cache, or that cannot be marked
    """
    if folder.absolute().parent.parent != cache_root():
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(folder)
    except OSError:
        return None
    return handle


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFolder:
    """A folder of the cache that can be made again.

    :param used_s: seconds since the epoch when it was used last
    :param in_use: a process holds it
    """

    path: Path
    size_bytes: int
    used_s: float
    in_use: bool


def folder_bytes(folder: Path) -> int:
    """What lies in a folder, as the disk counts it; what goes away meanwhile counts nothing."""
    total = 0
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


def prunable() -> list[KeptFolder]:
    """The folders of the cache that may be pruned, used longest ago first."""
    found = []
    for path in (path for kind in PRUNABLE for path in (cache_root() / kind).glob("*")):
        # what begins with a dot is being built
        if path.is_dir() and not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError), _locked(path, fcntl.LOCK_EX) as free:
                used_s = path.stat().st_mtime
                found.append(KeptFolder(path=path, size_bytes=folder_bytes(path), used_s=used_s, in_use=not free))
    return sorted(found, key=lambda each: each.used_s)


def to_prune(
    folders: Sequence[KeptFolder], now_s: float, *, keep_bytes: int | None, older_s: float | None
) -> list[KeptFolder]:
    """Which of the folders go: all that were not used for so long, and of the rest those used longest ago until no
    more is left than is to be kept. What is in use stays, and so does what was used in the last hour: a run may be
    about to open it."""
    free = [each for each in folders if not each.in_use and now_s - each.used_s >= GRACE_S]
    going = [each for each in free if older_s is not None and now_s - each.used_s >= older_s]
    if keep_bytes is not None:
        left = sum(each.size_bytes for each in folders if each not in going)
        for each in (each for each in free if each not in going):
            if left <= keep_bytes:
                break
            going.append(each)
            left -= each.size_bytes
    return going


def remove_kept(folder: KeptFolder) -> bool:
    """Delete one; False when somebody took it meanwhile. It goes by one rename: nobody finds half of it."""
    try:
        with _locked(folder.path, fcntl.LOCK_EX) as free:
            if not free or folder.path.stat().st_mtime != folder.used_s:
                return False
            with temp_dir(folder.path.parent) as temp:
                folder.path.rename(temp / folder.path.name)
    except FileNotFoundError:
        return False
    return True
