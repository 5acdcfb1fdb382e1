# SPDX-License-Identifier: GPL-2.0-or-later
"""A session against a secondary that is told when to break: what is counted, and where the break is said to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_cells import symptom, words

from harness.colo.messages import Step
from harness.colo.primary import ENABLE_COLO, OPEN_RETURN_PATH, ChannelBroken
from harness.colo.symptom import Sign, Symptom
from harness.engines import colo as engine
from harness.engines import evidence
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Pace, Session, in_turn
from harness.engines.schedule import Schedule, plan_loads
from harness.engines.secondary import Secondary, capabilities
from harness.errors import DeadlineError, QemuError, Stopped
from harness.oracles.load import judge, warnings_of
from harness.oracles.marker import marker, moment_of
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.qemu.scope import ProcessScope
from harness.results.document import Warned
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade


class FakeMonitor:
    def __init__(self, events: Sequence[str]) -> None:
        self._events = events

    def drain_events(self) -> list[dict[str, Any]]:
        return [{"event": name} for name in self._events]


class FakeSecondary:
    """Takes checkpoints until it is told to break; stands for vm, primary and process at once."""

    breaks_at: int | None = None
    kind = "closed"
    at_start = False
    exit: Exit | None = None
    text = ""
    events: Sequence[str] = ()
    deaf: Exception | None = None
    last: FakeSecondary | None = None
    pid = 4711

    def __init__(self, *_: object, **__: object) -> None:
        self.vm = self.primary = self.process = self
        self.monitor = FakeMonitor(self.events)
        self.sent: list[tuple[bytes, bytes]] = []
        self.begun: tuple[bytes, bytes] | None = None
        self.waited: list[float] = []
        type(self).last = self

    def start(self, head: bytes, body: list[bytes]) -> None:
        self.begun = head, b"".join(body)
        if self.at_start:
            raise ChannelBroken(Step.INCOMING, self.kind, symptom("as told"))

    checkpoints = property(lambda self: len(self.sent))

    def request(self) -> None:
        """Asked for a checkpoint."""

    def load(self, first: bytes, ram: Sequence[bytes], *, behind: Sequence[bytes] = (), more_s: float) -> None:
        devices = b"".join([first, *behind])
        assert more_s > 0
        self.sent.append((devices, b"".join(ram)))
        if len(self.sent) == self.breaks_at:
            raise ChannelBroken(Step.LOAD, self.kind, symptom("as told"))

    @property
    def clock(self) -> FakeSecondary:
        return self

    def close(self) -> None:
        """Time is not counted any more."""

    def ended(self, within_s: float) -> Exit | None:
        self.waited.append(within_s)
        return self.exit

    printed_at_start = 0

    def stderr(self, since: int = 0) -> str:
        return self.text[since:]

    def stderr_size(self) -> int:
        """All that is printed at the end was there from the second checkpoint on."""
        return len(self.text.encode()) if len(self.sent) >= 2 else 0

    def qmp(self, command: str, timeout_s: float) -> None:
        assert command == "query-status"
        assert timeout_s > 0
        if self.deaf:
            raise self.deaf

    def __enter__(self) -> FakeSecondary:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSecondary]:
    kind = type("Fake", (FakeSecondary,), {})
    monkeypatch.setattr(engine, "Secondary", kind)
    monkeypatch.setattr(evidence, "describe_threads", lambda pid: f"threads of {pid}")
    return kind


@pytest.fixture
def session(make_pack: Callable[..., Path], binary: QemuBinary, handmade: Handmade) -> Iterator[Callable[..., Session]]:
    with StatePack(make_pack()) as pack:

        def make(schedule: Schedule, phases: Sequence[str], loads: int, **more: Any) -> Session:
            base = Session(
                binary=binary,
                dialect=ENABLE_COLO,
                buffers=Buffers(pack),
                plan=plan_loads(schedule, phases, loads),
                selection=Selection(own=frozenset({handmade.ahci})),
                mode=GuestMode.RUNNING,
            )
            return replace(base, **more)

        yield make


def sent(fake: type[FakeSecondary]) -> FakeSecondary:
    assert fake.last is not None
    return fake.last


def test_what_is_sent_follows_the_schedule(
    session: Callable[..., Session], fake: type[FakeSecondary], handmade: Handmade
) -> None:
    evidence = session(Schedule.ALTERNATE, ["kernel", "bound"], 4).run()
    assert (evidence.loads_asked, evidence.loads_acked, evidence.checkpoints_acked) == (4, 4, 4)
    assert evidence.broken is None
    last = sent(fake)
    assert last.begun is not None
    assert last.begun[0] == handmade.head
    assert handmade.devices(0x11) in last.begun[1]
    assert [devices for devices, _ in last.sent] == [handmade.devices(mark) for mark in (0x11, 0x22) * 2]
    # the first load is of the phase that the incoming stream brought: no page differs
    assert [bool(ram) for _, ram in last.sent] == [False, True, True, True]
    assert last.sent[1][1] == last.sent[3][1] != last.sent[2][1]


def test_sessions_in_turn_share_a_secondary_as_long_as_it_is_well(
    session: Callable[..., Session], fake: type[FakeSecondary], handmade: Handmade
) -> None:
    def of(own: str) -> tuple[Session, Any]:
        return session(Schedule.BACK_TO_BACK, ["bound"], 2, selection=Selection(own=frozenset({own}))), told.append

    told: list[int] = []
    turns = [of(handmade.ahci), of("cpu"), of("i8259")]
    assert [evidence.loads_acked for evidence in in_turn(turns)] == [2, 2, 2]
    last = sent(fake)
    assert [devices.count(handmade.full(1, 0x22)) for devices, _ in last.sent] == [1, 2, 1]
    assert sum(told) == 6
    fake.breaks_at = 2
    first, second = in_turn(turns)
    assert first.broken is None
    assert second.broken is not None
    assert (second.broken.load, second.loads_acked) == (1, 0)


def test_the_marker_stands_behind_all_that_is_loaded_back_to_back(
    session: Callable[..., Session], fake: type[FakeSecondary], handmade: Handmade
) -> None:
    loads = session(Schedule.BACK_TO_BACK, ["bound"], 150, selection=Selection(own=frozenset({"cpu"})))
    loads.run()
    plain = [devices for devices, _ in sent(fake).sent]
    assert len(plain) > 1
    assert plain[0].count(handmade.full(1, 0x22)) > 1
    moment_of(loads, len(plain) - 1, Verdict.CRASH)
    assert [devices for devices, _ in sent(fake).sent] == [*plain[:-1], plain[-1] + marker()]


def test_the_incoming_stream_is_whole_though_sections_are_excluded(
    session: Callable[..., Session], fake: type[FakeSecondary], handmade: Handmade
) -> None:
    selection = Selection(own=frozenset({handmade.ahci}), excluded=frozenset({"cpu"}))
    session(Schedule.SAME, ["bound"], 1, selection=selection).run()
    last = sent(fake)
    assert last.begun is not None
    assert handmade.devices(0x22) in last.begun[1]
    assert last.sent[0][0] == handmade.devices(0x22).replace(handmade.full(1, 0x22), b"")


@pytest.mark.parametrize(("at", "phase"), [(1, "kernel"), (2, "bound"), (3, "kernel")])
def test_a_break_is_placed_in_its_load(
    session: Callable[..., Session], fake: type[FakeSecondary], at: int, phase: str
) -> None:
    fake.breaks_at = at
    fake.exit = Exit(status=-6, signal="SIGABRT")
    evidence = session(Schedule.ALTERNATE, ["kernel", "bound"], 10).run()
    assert evidence.broken is not None
    assert (evidence.broken.load, evidence.broken.phase, evidence.broken.step) == (at, phase, Step.LOAD)
    assert (evidence.loads_asked, evidence.loads_acked, evidence.checkpoints_acked) == (10, at - 1, at - 1)
    assert judge(evidence).verdict is Verdict.CRASH


def test_a_break_in_the_second_buffer_counts_the_first_ones_loads(
    session: Callable[..., Session], fake: type[FakeSecondary]
) -> None:
    fake.breaks_at = 2
    evidence = session(Schedule.BACK_TO_BACK, ["bound"], 250).run()
    assert evidence.broken is not None
    assert (evidence.broken.load, evidence.loads_acked, evidence.checkpoints_acked) == (101, 100, 1)


def test_a_break_in_the_incoming_stream_is_load_zero(
    session: Callable[..., Session], fake: type[FakeSecondary]
) -> None:
    fake.at_start = True
    evidence = session(Schedule.WALK, ["kernel", "bound"], 10).run()
    assert evidence.broken is not None
    assert (evidence.broken.load, evidence.broken.phase, evidence.loads_acked) == (0, "kernel", 0)
    assert "incoming stream" in words(judge(evidence))


@pytest.mark.parametrize(
    ("kind", "waits"), [("closed", True), ("unexpected", True), ("late", False), ("refused", False)]
)
def test_only_a_qemu_that_may_be_dying_is_waited_for(
    session: Callable[..., Session], fake: type[FakeSecondary], kind: str, waits: bool
) -> None:
    fake.breaks_at, fake.kind = 1, kind
    session(Schedule.SAME, ["bound"], 3).run()
    assert [wait > 0 for wait in sent(fake).waited] == [waits]


def test_progress_adds_up_to_what_was_acknowledged(session: Callable[..., Session], fake: type[FakeSecondary]) -> None:
    told: list[int] = []
    session(Schedule.SAME, ["bound"], 50).run(told.append)
    assert sum(told) == 50
    fake.breaks_at = 31
    told.clear()
    session(Schedule.SAME, ["bound"], 50).run(told.append)
    assert sum(told) == 30


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        (["STOP", "RESUME"], ()),
        (["STOP", "SHUTDOWN", "MIGRATION"], ("SHUTDOWN",)),
        (["RESET", "GUEST_PANICKED"], ("RESET", "GUEST_PANICKED")),
    ],
)
def test_only_events_of_the_guests_end_are_evidence(
    session: Callable[..., Session], fake: type[FakeSecondary], events: list[str], wanted: tuple[str, ...]
) -> None:
    fake.events = events
    evidence = session(Schedule.SAME, ["bound"], 3).run()
    assert evidence.events == wanted
    assert judge(evidence).verdict is (Verdict.GUEST_FAULT if wanted else Verdict.OK)


@pytest.mark.parametrize("deaf", [DeadlineError("late"), QemuError("gone")])
def test_a_main_loop_that_does_not_answer_is_a_hang(
    session: Callable[..., Session], fake: type[FakeSecondary], deaf: Exception
) -> None:
    fake.deaf = deaf
    evidence = session(Schedule.SAME, ["bound"], 3).run()
    assert evidence.events == ("NO-ANSWER",)
    assert judge(evidence).verdict is Verdict.HANG


def test_what_qemu_says_of_the_harness_is_not_its_own_words(
    session: Callable[..., Session], fake: type[FakeSecondary]
) -> None:
    fake.text = "qemu: warning: a\nqemu: terminating on signal 15 from pid 7 (x)\nqemu: b\n"
    assert session(Schedule.SAME, ["bound"], 1).run().log == "qemu: warning: a\nqemu: b"


def test_what_qemu_said_when_it_started_is_no_word_of_a_load(
    session: Callable[..., Session], fake: type[FakeSecondary]
) -> None:
    start = "qemu: warning: two floppy controllers\nthe one picked may be another one\n"
    fake.text, fake.printed_at_start = f"{start}qemu: refused", len(start)
    assert session(Schedule.SAME, ["bound"], 1).run().log == "qemu: refused"


def test_a_hang_brings_the_threads_of_qemu(session: Callable[..., Session], fake: type[FakeSecondary]) -> None:
    fake.breaks_at, fake.kind, fake.text = 2, "late", "qemu: a\n"
    evidence = session(Schedule.SAME, ["bound"], 3).run()
    assert evidence.log == "qemu: a\nthreads of 4711"
    assert judge(evidence).verdict is Verdict.HANG


def test_a_warning_is_kept_with_its_load(session: Callable[..., Session], fake: type[FakeSecondary]) -> None:
    fake.text = "qemu-system-x86_64: warning: a\nqemu-system-x86_64: warning: a\n"
    evidence = session(Schedule.SAME, ["bound"], 3).run()
    assert [load for load, _ in evidence.warnings] == [2, 2]
    assert warnings_of(evidence) == (Warned(text="warning: a", load=2, times=2),)


def test_a_run_that_is_told_to_stop_gives_no_evidence(
    session: Callable[..., Session], fake: type[FakeSecondary]
) -> None:
    scope = ProcessScope()
    scope.stop()
    with pytest.raises(Stopped):
        session(Schedule.SAME, ["bound"], 3, scope=scope).run()
    assert sent(fake).sent == []


@pytest.mark.parametrize(("mode", "rests"), [(GuestMode.RUNNING, 3), (GuestMode.PARKED, 0)])
def test_only_a_running_guest_is_given_time(
    session: Callable[..., Session],
    fake: type[FakeSecondary],
    monkeypatch: pytest.MonkeyPatch,
    mode: GuestMode,
    rests: int,
) -> None:
    slept: list[float] = []
    drained: list[object] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(engine, "drain_console", drained.append)
    session(Schedule.SAME, ["bound"], 3, mode=mode, pace=Pace(run_s=0.5)).run()
    assert slept == [0.5] * rests
    # what it says meanwhile is read: a port that nobody reads has a byte to send again, and does not take all states
    assert drained == [fake.last] * rests


def test_what_a_secondary_of_each_dialect_has_switched_on() -> None:
    on = {dialect.name: [c["capability"] for c in capabilities(dialect)] for dialect in (ENABLE_COLO, OPEN_RETURN_PATH)}
    assert on == {"enable-colo": ["x-colo"], "open-return-path": ["return-path", "x-colo"]}
    assert all(c["state"] is True for c in capabilities(OPEN_RETURN_PATH))


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], None),
        ([{"event": "STOP"}, {"event": "RESUME"}], None),
        ([{"event": "COLO_EXIT", "data": {"mode": "secondary", "reason": "error"}}], "error"),
        ([{"event": "STOP"}, {"event": "COLO_EXIT"}], "unknown"),
    ],
)
def test_a_secondary_has_given_up_when_it_says_colo_exit(events: list[dict[str, Any]], said: str | None) -> None:
    class Vm:
        class monitor:  # noqa: N801 - stands for an attribute
            @staticmethod
            def drain_events() -> list[dict[str, Any]]:
                return events

    secondary = object.__new__(Secondary)
    secondary.vm = Vm()  # type: ignore[assignment]
    answer = secondary._given_up()
    assert answer == (None if said is None else Symptom(sign=Sign.LEFT_COLO, said=said))


def test_the_machine_is_reset_before_each_load_when_it_is_asked_for(
    session: Callable[..., Session], fake: type[FakeSecondary], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    monkeypatch.setattr(engine, "reset_machine", lambda vm, _: done.append(len(vm.sent)))
    monkeypatch.setattr(fake, "__init__", lambda self, _b, machine, *_, **__: started(self, machine.resettable))
    resettable: list[bool] = []

    def started(self: FakeSecondary, may_reset: bool) -> None:
        resettable.append(may_reset)
        FakeSecondary.__init__(self)

    assert session(Schedule.SAME, ["bound"], 3, reset_first=True).run().loads_acked == 3
    assert done == [0, 1, 2]
    assert session(Schedule.SAME, ["bound"], 3).run().loads_acked == 3
    assert (done, resettable) == ([0, 1, 2], [True, False])
