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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil
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


class Server:
    """A server in a folder of its own, which is made and removed with the block.

    :raises AssertionError: it cannot be made or started; says what it printed
    """

    def __init__(self, bin_dir: Path) -> None:
        self._bin_dir = bin_dir
        # not pytest's folder: another user has to get into it, and a socket's path has at most 107 bytes
        self._folder = Path(tempfile.mkdtemp(prefix="postload-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[psutil.Process] = []
        self.cluster = Cluster(socket=self._folder)

    def __enter__(self) -> Server:
        self._as_user = _as_user(self._folder)
        words = [str(self._bin_dir / "initdb"), "-D", str(self._folder / "data"), "-U", USER, "-A", "trust"]
        words += ["-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(
            [*self._as_user, *words], capture_output=True, text=True, timeout=START_TIMEOUT_S, cwd="/"
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process is not None:
                for process in self._frozen:
                    with suppress(psutil.NoSuchProcess):
                        process.resume()
                self._end(signal.SIGQUIT)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=40"]
        words = [self._bin_dir / "postgres", "-D", self._folder / "data", "-k", self._folder, *options]
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen([*self._as_user, *map(str, words)], stdout=log, stderr=log, cwd="/")
        _wait(self.cluster, self._process, self._folder / "log")

    def kill(self) -> None:
        """End it at once, as a crash would; its children see that and end too. While one is left, none can start."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        _, left = psutil.wait_procs(children, START_TIMEOUT_S)
        assert not left

    def freeze(self) -> None:
        """Stop all of it where it is: it is there, and does not answer. It is ended all the same."""
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        first.suspend()  # it starts no more of them
        self._frozen = [first, *first.children(recursive=True)]
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def _end(self, sent: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(sent)
        self._process.wait(START_TIMEOUT_S)
        self._process = None


@contextmanager
def started_server(bin_dir: Path) -> Iterator[Server]:
    """A server that has started, and is stopped behind the block."""
    with Server(bin_dir) as server:
        server.start()
        yield server


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
