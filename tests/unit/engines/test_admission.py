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
from harness.qemu.disturbance import Disturbance, Hindered
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


def answers(monkeypatch: pytest.MonkeyPatch, unwell: dict[str, dict[str, Any]], asked: list[list[str]]) -> None:
    """A machine is asked for its devices: it is well unless one of them is not, and says what a lone one does."""

    def answer(_binary: object, _dialect: object, machine: Any, _scope: object) -> dict[str, Any]:
        asked.append(machine.names)
        met = [name for name in machine.names if name in unwell]
        alone = unwell[met[0]] if len(met) == 1 else {}
        return {"well": not met, "refused": None, "dies": False} | alone

    monkeypatch.setattr(admission, "_answer", answer)


def admitted(names: list[str]) -> admission.Admission:
    def machine_with(some: Any) -> Any:
        return SimpleNamespace(name="pc", names=list(some))

    binary: Any = SimpleNamespace(version="11.1.3")
    return admission._admission(binary, SimpleNamespace(), machine_with, names, SimpleNamespace())  # type: ignore[arg-type]


def test_a_device_that_colo_refuses_is_found_beside_one_whose_own_state_no_migration_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All together they are neither refused nor dead of memory, and yet none of them would be judged."""
    names = [f"d{number}" for number in range(32)]
    unwell: dict[str, dict[str, Any]] = {
        "d3": {},
        "d20": {"refused": "COLO: cannot disable RAM discard"},
        "d29": {"dies": True},
    }
    asked: list[list[str]] = []
    answers(monkeypatch, unwell, asked)
    found = admitted(names)
    assert {name: lack.said for name, lack in found.refused.items()} == {"d20": "COLO: cannot disable RAM discard"}
    assert found.breaking == {"d29"}
    assert len(asked) < len(names)


def test_nothing_more_is_asked_of_a_machine_that_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    answers(monkeypatch, {}, asked)
    assert admitted(["a", "b"]) == admission.Admission()
    assert asked == [["a", "b"]]


@pytest.mark.parametrize(("how", "false"), [(Disturbance.STARVED, False), (Disturbance.STOPPED, True)])
def test_a_machine_that_is_merely_slow_is_believed_when_it_dies(how: Disturbance, *, false: bool) -> None:
    """On a busy host each try is starved, and a guest would be lost for it."""
    died: Any = {"well": False, "refused": None, "dies": True}
    assert admission._may_be_false(died, (Hindered(how=how),)) is false
