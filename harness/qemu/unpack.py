# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages unpacked into a prefix that cannot point out of itself.

Two things would lead a plain ``dpkg-deb -x`` into the host: absolute symbolic links
(``/lib64/ld-linux-x86-64.so.2`` of older releases), and ``/lib`` beside ``/usr/lib``, which newer releases have merged
and older packages have not. Here ``/lib``, ``/lib64``, ``/bin`` and ``/sbin`` are names for their folder in ``usr``,
and every link is made relative.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HostError
from harness.tools.program import run_tool

UNPACK_TIMEOUT_S = 120.0
_MERGED = ("bin", "lib", "lib64", "sbin")


def unpack(deb: Path, root: Path, *, keep: Sequence[str], leave: Sequence[str] = (), needed: str = "") -> int:
    """Unpack the wanted part of a package; returns the number of files.

    Its scripts are not run, owners and device nodes are not made.

    :param keep: beginnings of the paths to unpack, such as ``usr/lib/``
    :param leave: beginnings of paths to leave out of these
    :param needed: what to tell the user when there is no dpkg-deb
    :raises HostError: the package is damaged, or the disk is full
    :raises MissingError: there is no dpkg-deb
    """
    data = run_tool(["dpkg-deb", "--fsys-tarfile", deb], timeout_s=UNPACK_TIMEOUT_S, needed=needed)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            return sum(_unpack_member(tar, member, root, keep, leave) for member in tar)
    except tarfile.TarError as error:
        raise HostError(f"package {deb.name} is damaged: {error}") from error


def merged(path: str) -> str:
    """A package's path (``./lib/x``, ``/usr/lib/x``) as it lies in the prefix (``usr/lib/x``); it stays inside."""
    clean = posixpath.normpath("/" + path.lstrip("/")).lstrip("/")
    return f"usr/{clean}" if clean.split("/")[0] in _MERGED else clean


def link_target(name: str, target: str) -> str:
    """What a link of a package has to say in the prefix: always relative, never out of it.

    :param name: the link's path in the package
    :param target: what it says there
    """
    folder = posixpath.dirname("/" + posixpath.normpath(name).lstrip("/"))
    return posixpath.relpath("/" + merged(posixpath.join(folder, target)), "/" + posixpath.dirname(merged(name)))


def _unpack_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, keep: Sequence[str], leave: Sequence[str]
) -> int:
    name = merged(member.name)
    if member.isdir() or not name.startswith(tuple(keep)) or name.startswith(tuple(leave)):
        return 0
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if member.issym():
        path.symlink_to(link_target(member.name, member.linkname))
    elif member.islnk():
        os.link(root / merged(member.linkname), path)
    elif member.isreg():
        _copy(tar, member, path)
    else:
        return 0
    return 1


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise HostError(f"{member.name} of a package has no content")
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    path.chmod(0o755 if member.mode & 0o111 else 0o644)
