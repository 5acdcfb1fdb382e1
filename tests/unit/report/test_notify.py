# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is told of a run that has ended: a real server on this host, real commands, and what becomes of failures."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.commands import notify as module
from harness.commands.notify import check_notify, notify, shown_command
from harness.errors import UsageError
from harness.report.summary import headline, render_summary
from harness.results.document import MatrixDoc


@dataclass
class Hook:
    """A server, what it was sent, and what it answers."""

    url: str = ""
    status: int = 204
    got: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.got.append((self.path, self.headers["Content-Type"], body))
            self.send_response(hook.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/secret-path"
    yield hook
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def python(code: str, *words: str) -> str:
    return shlex.join([sys.executable, "-c", code, *words])


def test_a_webhook_gets_summary_and_document(doc: MatrixDoc, tmp_path: Path, hook: Hook) -> None:
    notify(hook.url, doc, tmp_path, 1)
    [(path, kind, body)] = hook.got
    assert (path, kind) == ("/secret-path", "application/json")
    told = json.loads(body)
    assert told["text"] == render_summary(doc)
    assert told["document"] == json.loads(json.dumps(doc.to_json(), default=str))
    assert (told["exit_code"], told["complete"], told["headline"]) == (1, True, headline(doc))


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_told_without_its_address(
    doc: MatrixDoc, tmp_path: Path, hook: Hook, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.status = status
    notify(hook.url, doc, tmp_path, 0)
    said = capsys.readouterr().err
    assert f"--notify: 127.0.0.1 answered {status}" in said
    assert "secret-path" not in said
    assert len(hook.got) == 1, "nothing is sent elsewhere"


def test_a_webhook_that_is_not_there_is_told(
    doc: MatrixDoc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notify("http://127.0.0.1:9/token", doc, tmp_path, 0)
    said = capsys.readouterr().err
    assert "--notify: 127.0.0.1: " in said
    assert "token" not in said


def test_a_command_gets_the_summary_and_the_names_of_the_files(doc: MatrixDoc, tmp_path: Path) -> None:
    told = "sys.argv[2:], os.environ['POSTLOAD_EXIT_CODE'], sys.stdin.read()"
    code = f"import os, sys; print({told}, file=open(sys.argv[1], 'w'))"
    notify(python(code, str(tmp_path / "got"), "{headline}", "{summary}", "{document}"), doc, tmp_path, 1)
    words = [headline(doc), str(tmp_path / "summary.md"), str(tmp_path / "matrix.json")]
    assert (tmp_path / "got").read_text() == f"{words} 1 {render_summary(doc)}\n"


def test_no_shell_reads_the_command(doc: MatrixDoc, tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[2:], file=open(sys.argv[1], 'w'))"
    command = f"{python(code, str(tmp_path / 'got'))} $(id) ; touch {tmp_path / 'injected'} '|' \"$HOME\""
    notify(command, doc, tmp_path, 0)
    assert (tmp_path / "got").read_text() == f"{['$(id)', ';', 'touch', str(tmp_path / 'injected'), '|', '$HOME']}\n"
    assert not (tmp_path / "injected").exists()


def test_a_command_that_fails_is_told_without_its_words(
    doc: MatrixDoc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notify(python("import sys; sys.exit('first\\nno such mailbox [red]')", "--token=secret"), doc, tmp_path, 0)
    said = capsys.readouterr().err
    assert "ended with 1: no such mailbox [red]; the result of the run stays" in said
    assert "secret" not in said
    notify("/no/such/program --token=secret", doc, tmp_path, 0)
    assert "--notify: program: No such file or directory" in capsys.readouterr().err


def test_a_command_that_does_not_end_is_ended_with_its_children(
    doc: MatrixDoc, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)
    notify("sh -c 'sleep 600 & wait'", doc, tmp_path, 0)
    assert "sh had not ended after 0.5 s" in capsys.readouterr().err


def test_a_command_that_reads_nothing_is_no_failure(
    doc: MatrixDoc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notify("true", doc, tmp_path, 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("target", ["", "  ", "mail 'x", "https://", "http:///path"])
def test_what_is_neither_is_refused_before_the_run(target: str) -> None:
    with pytest.raises(UsageError, match=r"--notify: .*expected a URL"):
        check_notify(target)


def test_a_report_shows_no_secret() -> None:
    words = ["matrix", "--notify", "https://h/token", "--notify=curl -H x:y", "--store", "postgresql://me:pw@host/db"]
    assert shown_command(words) == (
        "matrix", "--notify", "***", "--notify=***", "--store", "postgresql://me:***@host/db",
    )  # fmt: skip
