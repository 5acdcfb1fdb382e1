# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one host program: with a deadline, and dead when this process is dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import DeadlineError, HostError, MissingError


def run_tool(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    needed: str = "",
    reasons: Callable[[str], Sequence[str]] = lambda _: (),
) -> bytes:
    """Run a program to its end and return its standard output.

    :param needed: what to tell the user when the program is not installed
    :param reasons: finds in its standard output why it failed, for what its last words leave out
    :raises MissingError: the program is not installed
    :raises DeadlineError: it did not end in time; it and its children are killed
    :raises HostError: it could not be started or ended with another status than 0; the message ends with its
    last words
    """
    words = [str(word) for word in argv]
    program = shutil.which(words[0])
    if program is None:
        raise MissingError(f"program {words[0]!r} is not installed. {needed}".rstrip())
    command = [*_with_parent(), program, *words[1:]]
    full_env = {**os.environ, **(env or {}), "LC_ALL": "C"}
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=full_env,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{words[0]} cannot be started: {error}") from error
    out, err = _finish(child, words[0], stdin, timeout_s)
    if child.returncode != 0:
        last = last_words(err)
        why = [line for line in reasons(out.decode("utf-8", "replace")) if line not in last]
        raise HostError(f"{words[0]} ended with status {child.returncode}: {'; '.join([*why, last])}")
    return out


def _with_parent() -> list[str]:
    """A prefix that has the kernel kill the child when this process ends, however it ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _finish(child: subprocess.Popen[bytes], name: str, stdin: bytes | None, timeout_s: float) -> tuple[bytes, bytes]:
    try:
        return child.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{name} did not end within {timeout_s:.0f} s") from error
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def last_words(stderr: bytes, lines: int = 3) -> str:
    """The last lines that are not empty, as one line of text."""
    text = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return "; ".join(text[-lines:]) or "it said nothing"
