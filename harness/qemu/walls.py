# SPDX-License-Identifier: GPL-2.0-or-later
"""Walls around a QEMU that is given a pack from elsewhere, behind the check of what it asks for.

The pack's guest, its device state and its RAM are the pack's own bytes: a fault of QEMU's that they reach must not be
one of the host's. QEMU itself forbids programs and privileges (``-sandbox``); a small launcher
(:mod:`harness.qemu.wallrun`) takes files, network, user and capabilities away before QEMU starts. Each wall is tried
here once, and what a host does not have is said and not pretended: :func:`standing`.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.cache import keep_answer, kept_answer
from harness.errors import HostError
from harness.qemu.hosttime import run_watched
from harness.qemu.installed import entries, launched

#: What ``-sandbox on`` shall deny.
SANDBOX = {"obsolete": "deny", "elevateprivileges": "deny", "spawn": "deny", "resourcecontrol": "deny"}
_LAUNCHER = Path(__file__).with_name("wallrun.py")
_TRY_TIMEOUT_S = 20.0
_PIPE = subprocess.PIPE
_NOBODY = 65534
#: In a deeper scratch folder a socket is named by way of this process's files, which nobody behind walls gets at.
_DEEP_BYTES = 50
#: What programs of a distribution read, and what a machine says of its processors.
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """Which walls stand.

    :param sandbox: QEMU's own: it starts no program and gains no privilege
    :param files: it opens nothing but its own files and its scratch folder
    :param network: it has none
    :param user: it is not root: ``nobody``, or the user who started this program
    :param powerless: it has no capability
    """

    sandbox: bool = False
    files: bool = False
    network: bool = False
    user: bool = False
    powerless: bool = False

    @property
    def names(self) -> list[str]:
        """Those that stand."""
        return [each.name for each in fields(self) if getattr(self, each.name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What one QEMU needs within its walls.

    :param read: files and folders
    :param write: folders that are its own
    """

    walls: Walls
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()

    def plus(self, folder: Path) -> Confinement:
        """With one more folder of its own."""
        return Confinement(walls=self.walls, read=self.read, write=(*self.write, str(folder)))

    def beside(self, program: str) -> Confinement:
        """The same walls around a program that its QEMU works with, which has no folder yet."""
        return Confinement(walls=self.walls, read=(*_SYSTEM, program))

    def argv(self, argv: Sequence[str]) -> list[str]:
        """A program behind the launcher; it dies with this process.

        :raises HostError: a folder of its own cannot be given to its user
        """
        uid = _NOBODY if self.walls.user and os.geteuid() == 0 else None
        if uid is not None:
            _give(self.write, uid)
        return _launched(argv, self.walls, self.read, self.write, uid)


def confined(binary: str, workdir: Path) -> Confinement:
    """The walls that a QEMU gets here."""
    return Confinement(walls=standing(binary), read=(*_SYSTEM, *program_paths(binary)), write=(str(workdir),))


def script_confined(qemu: str, read: Iterable[Path], write: Path) -> Confinement:
    """The walls for a Python script that starts a QEMU; it keeps its user, whose Python need not be everybody's.

    :param read: what else it reads
    """
    python = (sys.prefix, sys.base_prefix, sys.executable, "/proc")
    needed = (*_SYSTEM, *python, *program_paths(qemu), *map(str, read))
    return Confinement(walls=replace(standing(qemu), user=False), read=needed, write=(str(write),))


@cache
def standing(binary: str | None) -> Walls:
    """The walls that this host and a QEMU have; without a QEMU those of the host.

    Each was tried: a kernel, a container or a policy may have it and not give it.
    """
    root = os.geteuid() == 0
    if binary is not None and not Path(binary).is_file():
        binary = None
    sandbox = binary is not None and _has_sandbox(binary)
    if len(os.fsencode(tempfile.gettempdir())) > _DEEP_BYTES:
        return Walls(sandbox=sandbox, user=not root, powerless=not root)
    paths = [tempfile.gettempdir(), *([] if binary is None else program_paths(binary))]
    return Walls(
        sandbox=sandbox,
        files=_stands(Walls(files=True)),
        network=_stands(Walls(network=True)),
        user=not root or (_stands(Walls(user=True)) and all(map(_is_public, paths))),
        powerless=_stands(Walls(powerless=True)) if root else True,
    )


def program_paths(binary: str) -> list[str]:
    """What a QEMU is made of beside the system's own files: launcher, program, firmware and modules."""
    path = Path(binary).resolve()
    program = launched(path).program.resolve()
    named = [each for each in entries() if each.launcher.resolve() == path]
    folders = [folder for each in named for folder in (each.folder, *each.datadirs, each.module_dir) if folder]
    # an own build has its firmware in ../share or beside it
    beside = [str(each) for each in (program.parent, program.parent.parent) if len(each.parts) > 2]
    return list(dict.fromkeys([str(path), str(program), *folders, *beside]))


def _launched(
    argv: Sequence[str], walls: Walls, read: Sequence[str], write: Sequence[str], uid: int | None
) -> list[str]:
    plan: dict[str, Any] = {
        "parent": os.getpid(),
        "files": walls.files,
        "read": list(read),
        "write": list(write),
        "devices": _DEVICES,
        "network": walls.network,
        "uid": uid,
        "powerless": walls.powerless and os.geteuid() == 0,
    }
    return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(plan), *argv]


@cache
def _stands(walls: Walls) -> bool:
    """Whether a program can be run behind some walls."""
    if walls.files and landlock() == 0:
        return False
    uid = _NOBODY if walls.user else None
    argv = _launched(["/bin/sh", "-c", ":"], walls, _SYSTEM, (), uid)
    try:
        return run_watched(argv, timeout_s=_TRY_TIMEOUT_S, stdout=_PIPE, stderr=_PIPE).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def landlock() -> int:
    """The kernel's version of Landlock, 0 where it has none."""
    from harness.qemu.wallrun import landlock_version

    return landlock_version()


def _has_sandbox(binary: str) -> bool:
    """Whether a build takes ``-sandbox``, kept by its hash: it is tried with ``--version``.

    One with a sanitizer does not count: that starts a program to name the functions of its report.
    """
    program = launched(Path(binary))
    key = f"probe/{program.sha256}-sandbox.json"
    kept = kept_answer(key)
    if kept is not None:
        return bool(kept)
    value = ",".join(["on", *(f"{key}={what}" for key, what in SANDBOX.items())])
    argv = [binary, "-sandbox", value, "--version"]
    try:
        done = run_watched(argv, timeout_s=_TRY_TIMEOUT_S, stdout=_PIPE, stderr=_PIPE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    with program.program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        sanitized = text.find(b"__asan_init") >= 0 or text.find(b"__ubsan_handle") >= 0
    has = done.returncode == 0 and b"QEMU emulator" in done.stdout and not sanitized
    keep_answer(key, has)
    return has


def _is_public(path: str) -> bool:
    """Whether everybody can get at a file or folder."""
    there = Path(path)
    try:
        modes = [each.stat().st_mode for each in (there, *there.parents)]
    except OSError:
        return False
    return bool(modes[0] & 0o004) and all(mode & 0o001 for mode in modes[1:])


def _give(folders: Iterable[str], uid: int) -> None:
    try:
        for folder in map(Path, folders):
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
    except OSError as error:
        raise HostError(f"cannot give {error.filename} to user {uid}: {error.strerror}") from error
