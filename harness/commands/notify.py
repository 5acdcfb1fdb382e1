# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell of a run that has ended: a webhook gets its summary and document, a command has them named.

What is told of is never decided here: a hook that fails is said to, and the run's exit code stays. No shell reads the
command, and neither its words nor the address, which may hold a secret, are repeated in a message or a report.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape

from harness.commands.output import err
from harness.errors import UsageError
from harness.report.summary import headline, render_summary
from harness.report.writer import SUMMARY_NAME
from harness.results.document import MatrixDoc
from harness.results.folder import JSON_NAME
from harness.text import one_line

OPTION = "--notify"
DEADLINE_S = 60.0
_URL = re.compile(r"https?://", re.IGNORECASE)
_PASSWORD = re.compile(r"(\w+://[^/@:\s]*):[^/@\s]*@")
_HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfRun:
    """What is told.

    :param text: what a chat shows, or a mail has
    :param code: that the run ends with
    :param paths: of the text and of the document, as files
    """

    headline: str
    text: str
    document: Mapping[str, Any]
    complete: bool
    code: int
    paths: tuple[Path, Path]


def notify(target: str, doc: MatrixDoc, out: Path, code: int) -> None:
    """Tell whoever is named of a matrix; a failure is said on stderr.

    :param target: a URL that takes JSON by POST, or a command line
    :param out: where the reports lie
    :param code: that the run ends with
    """
    message = EndOfRun(
        headline=headline(doc),
        text=render_summary(doc),
        document=doc.to_json(),
        complete=doc.complete,
        code=code,
        paths=(out / SUMMARY_NAME, out / JSON_NAME),
    )
    send(target, message)


def send(target: str, message: EndOfRun) -> None:
    """Tell whoever is named; a failure is said on stderr.

    :param target: a URL that takes JSON by POST, or a command line
    """
    problem = _post(target, message) if _URL.match(target) else _call(target, message)
    if problem:
        err.print(escape(f"postload: {OPTION}: {one_line(problem)}; the result of the run stays"), soft_wrap=True)


def check_notify(target: str | None) -> None:
    """Look at an option before the run begins.

    :raises UsageError: it is neither a URL nor a command line
    """
    if target is None or (_URL.match(target) and urlsplit(target).hostname):
        return
    try:
        words = [] if _URL.match(target) else shlex.split(target)
    except ValueError as error:
        raise UsageError(f"{OPTION}: {error}; expected a URL or a command line") from error
    if not words:
        raise UsageError(f"{OPTION}: expected a URL such as https://HOST/PATH, or a command line")


def shown_command(words: Sequence[str]) -> tuple[str, ...]:
    """A command line for a report: without passwords in URLs, and without the address or words of a hook."""
    shown = [_PASSWORD.sub(rf"\1:{_HIDDEN}@", word) for word in words]
    for at, word in enumerate(words):
        if word.startswith(f"{OPTION}="):
            shown[at] = f"{OPTION}={_HIDDEN}"
        elif at and words[at - 1] == OPTION:
            shown[at] = _HIDDEN
    return tuple(shown)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A summary goes where it was sent, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, message: EndOfRun) -> str:
    """What went wrong; empty for nothing. ``text`` is what chats show, the rest is for programs."""
    body = {
        "text": message.text,
        "headline": message.headline,
        "exit_code": message.code,
        "complete": message.complete,
        "document": message.document,
    }
    data = json.dumps(body, default=str).encode()
    host = urlsplit(url).hostname
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=DEADLINE_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"{host} answered {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else type(error).__name__
        return f"{host}: {reason}"


def _call(command: str, message: EndOfRun) -> str:
    """What went wrong; empty for nothing. The summary is the command's standard input."""
    summary, document = map(str, message.paths)
    told = {"headline": message.headline, "summary": summary, "document": document}
    words = [_filled(word, told) for word in shlex.split(command)]
    name = Path(words[0]).name
    environment = {f"POSTLOAD_{key.upper()}": value for key, value in told.items()}
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment, "POSTLOAD_EXIT_CODE": str(message.code)},
            start_new_session=True,
        )
    except OSError as error:
        return f"{name}: {error.strerror}"
    try:
        _, said = process.communicate(message.text.encode("utf-8", "replace"), timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"{name} had not ended after {DEADLINE_S:g} s"
    except BaseException:
        _end(process)
        raise
    last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return "" if process.returncode == 0 else f"{name} ended with {process.returncode}{': ' + last if last else ''}"


def _filled(word: str, told: dict[str, str]) -> str:
    for key, value in told.items():
        word = word.replace(f"{{{key}}}", value)
    return word


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
