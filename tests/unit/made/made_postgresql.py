# SPDX-License-Identifier: GPL-2.0-or-later
"""A PostgreSQL of a test's own: Debian's, on a unix socket in a temporary folder, gone when the test is."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg

#: initdb takes a second, and more on a machine that has others to serve.
START_TIMEOUT_S = 120.0
USER = "postload"
_NUMBERS = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A server that takes connections of anybody on this host.

    :param socket: folder of its socket
    """

    socket: Path

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={self.socket}"

    def create(self, template: str = "template1") -> str:
        """A new database, a copy of another one; returns its name."""
        name = f"test{next(_NUMBERS)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def programs() -> Path | None:
    """The folder of Debian's newest PostgreSQL, or that of the ``initdb`` in the path; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb") or (debian[-1] if debian else None)
    return None if found is None else Path(found).resolve().parent


@contextmanager
def cluster(bin_dir: Path) -> Iterator[Cluster]:
    """A server that has started, and is stopped behind the block.

    :raises AssertionError: it does not start; says what it printed
    """
    # not pytest's folder: another user has to get into it, and a socket's path has at most 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="postload-pg-"))
    try:
        as_user = _as_user(folder)
        data = folder / "data"
        words: list[str | Path] = [
            bin_dir / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        made = subprocess.run([*as_user, *words], capture_output=True, text=True, timeout=START_TIMEOUT_S, cwd="/")
        assert made.returncode == 0, made.stdout + made.stderr
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=40"]
        with (folder / "log").open("w") as log:
            words = [bin_dir / "postgres", "-D", data, "-k", folder, *options]
            server = subprocess.Popen([*as_user, *words], stdout=log, stderr=log, cwd="/")
        try:
            _wait(Cluster(socket=folder), server, folder / "log")
            yield Cluster(socket=folder)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(START_TIMEOUT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user(folder: Path) -> list[str]:
    """It refuses root: then it is somebody else, who dies with us."""
    ends = ["setpriv", "--pdeathsig", "QUIT"]
    if os.geteuid() != 0:
        return ends
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    return [*ends, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]


def _wait(made: Cluster, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(made.url()).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
