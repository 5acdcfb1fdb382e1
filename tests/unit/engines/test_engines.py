# SPDX-License-Identifier: GPL-2.0-or-later
"""All engines are of one kind, and one function looks at the QEMU that they leave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.engines import evidence as module
from harness.engines.colo import Session
from harness.engines.evidence import DEATH_GRACE_S, Break, Count, Engine, break_at, evidence_of
from harness.engines.fresh import Fresh
from harness.engines.loadvm import Loadvm
from harness.engines.migration import RealMigration
from harness.engines.pair import Pair
from harness.engines.postcopy import Postcopy
from harness.qemu.process import Exit

# held by mypy
ENGINES: tuple[type[Engine], ...] = (Session, Fresh, Loadvm, Postcopy, RealMigration, Pair)


class Qemu:
    """A QEMU on paper that may be dead, silent, or whole."""

    pid = 4321
    reason = "guest-reset"

    def __init__(self, exit: Exit | None = None) -> None:
        self.exit = exit
        self.waited: list[float] = []
        self.process = self.clock = self.monitor = self
        self.timed = True

    def close(self) -> None:
        self.timed = False

    def drain_events(self) -> list[dict[str, Any]]:
        return [{"event": "SHUTDOWN", "data": {"guest": False, "reason": self.reason}}]

    def ended(self, within_s: float = 0.0) -> Exit | None:
        self.waited.append(within_s)
        return self.exit

    printed_at_start = 0

    def stderr(self, _since: int = 0) -> str:
        return "qemu: oops\n"


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "guest_events", lambda _vm, timeout_s: ("RESET", f"within {timeout_s:g}"))
    monkeypatch.setattr(module, "describe_threads", lambda pid: f"threads of {pid}")


def broken(kind: str) -> Break:
    return break_at(ChannelBroken(Step.LOAD, kind, symptom("why")), 3, "bound")


def seen(qemu: Qemu, broken: Break | None) -> Any:
    return evidence_of(cast(Any, qemu), Count(asked=9, passed=2), broken, started=0.0)


def test_every_engine_runs() -> None:
    assert all(callable(engine.run) for engine in ENGINES)


def test_a_break_says_where_it_was() -> None:
    assert broken("closed") == Break(step=Step.LOAD, kind="closed", symptom=symptom("why"), load=3, phase="bound")


def test_a_whole_qemu_is_asked_for_its_guest() -> None:
    qemu = Qemu()
    found = seen(qemu, None)
    assert (found.loads_asked, found.loads_acked, found.checkpoints_acked) == (9, 2, 2)
    assert (found.exit, found.log, found.events) == (None, "qemu: oops", ("RESET", "within 20"))
    assert qemu.waited == [0.0]


@pytest.mark.parametrize(
    ("kind", "waited_s"), [("closed", DEATH_GRACE_S), ("unexpected", DEATH_GRACE_S), ("late", 0.0)]
)
def test_one_that_hung_up_is_given_time_to_die(kind: str, waited_s: float) -> None:
    qemu = Qemu(Exit(status=-6, signal="SIGABRT"))
    found = seen(qemu, broken(kind))
    assert (found.exit, found.events, qemu.waited) == (Exit(status=-6, signal="SIGABRT"), (), [waited_s])
    assert found.log == "qemu: oops"


def test_of_one_that_hangs_the_threads_are_told() -> None:
    qemu = Qemu()
    found = seen(qemu, broken("late"))
    assert (found.exit, found.events, found.log) == (None, (), "qemu: oops\nthreads of 4321")
    assert not qemu.timed  # the debugger that looks at its threads stops it


def test_one_that_somebody_told_to_end_is_waited_for() -> None:
    qemu = Qemu()
    qemu.reason = "host-signal"
    seen(qemu, None)
    assert qemu.waited == [0.0, DEATH_GRACE_S]


@pytest.mark.parametrize(
    ("event", "reason", "names"),
    [
        ("SHUTDOWN", "guest-reset", ("SHUTDOWN",)),
        ("SHUTDOWN", "host-signal", ()),
        ("RESET", "host-qmp-system-reset", ()),
        ("RESET", "snapshot-load", ()),
        ("RESET", "guest-reset", ("RESET",)),
        ("STOP", "", ()),
    ],
)
def test_only_ends_that_the_guest_came_to_are_its_own(event: str, reason: str, names: tuple[str, ...]) -> None:
    told = [{"event": event, "data": {"reason": reason} if reason else {}}]
    qemu = SimpleNamespace(monitor=SimpleNamespace(drain_events=lambda: told))
    assert module.guest_ends(cast(Any, qemu)) == names


def test_one_that_refused_and_lives_is_asked_with_less_patience() -> None:
    assert seen(Qemu(), broken("refused")).events == ("RESET", "within 5")
