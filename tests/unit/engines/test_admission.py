# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a machine before any checkpoint, with a QEMU that leaves when it does not take a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.engines import admission
from harness.qemu.monitor import SessionClosed


@pytest.mark.parametrize("gone", [True, False])
def test_a_stream_is_not_taken_by_a_qemu_that_leaves_while_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, gone: bool
) -> None:
    def poll_until(command: str, *_: object, **__: object) -> dict[str, str]:
        if gone:
            raise SessionClosed(command, "ExecInterruptedError")
        return {"status": "completed"}

    @contextlib.contextmanager
    def opened(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(monitor=SimpleNamespace(poll_until=poll_until), deadline=lambda _: None)

    monkeypatch.setattr(admission, "Vm", opened)
    monkeypatch.setattr(admission, "connect_incoming", opened)
    monkeypatch.setattr(admission, "send_all", lambda *_: None)
    stream = tmp_path / "own.stream"
    stream.write_bytes(b"")
    machine: Any = SimpleNamespace(make_files=lambda _: None, command=lambda *_: None)
    binary: Any = SimpleNamespace(path="qemu")
    assert admission._is_taken(binary, machine, stream, SimpleNamespace()) is not gone  # type: ignore[arg-type]
