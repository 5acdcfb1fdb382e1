# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions that the host disturbs: lost time counts for no deadline, and what it spoilt is asked again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from made_claims import claims_doc, load_case, loads_of

from harness.colo.messages import U32, Message
from harness.deadline import Deadline, Lost
from harness.engines.schedule import Schedule, plan_loads
from harness.errors import HarnessError
from harness.oracles.load import Judgement
from harness.qemu.disturbance import TRIES, Disturbance, Hindered, current_account
from harness.qemu.scope import ProcessScope
from harness.report.claims import told
from harness.results.verdict import Verdict
from harness.studies import loads, pairs, patient
from harness.studies.findings import How, PairFault
from harness.studies.model import Lab, Question, spoilt, whole
from harness.studies.patient import Patient

TERM = Hindered(how=Disturbance.ENDED, signal="SIGTERM")
STOPPED = Hindered(how=Disturbance.STOPPED, seconds=12.0)
STARVED = Hindered(how=Disturbance.STARVED, seconds=12.0, share=0.8)


class Standstill:
    """A clock of a QEMU that has been stopped all the time."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def lost(self) -> Lost:
        return Lost(total_s=time.monotonic() - self._begun)


def vm_of(clock: Any) -> Any:
    return SimpleNamespace(
        deadline=lambda timeout_s: Deadline(timeout_s, clock),
        ended=lambda *_: None,
        monitor=SimpleNamespace(drain_events=list),
        process=SimpleNamespace(clock=clock, stderr=lambda: "", pid=0),
    )


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Patient, socket.socket]]:
    """A secondary that is stopped, and its end of the connection."""
    monkeypatch.setattr(patient, "REQUEST_S", 0.05)
    ours, theirs = socket.socketpair()
    found = object.__new__(Patient)
    found.sock, found.vm = ours, vm_of(Standstill())
    yield found, theirs
    ours.close()
    theirs.close()


def later(sock: socket.socket, *messages: Message) -> None:
    """Send it when every deadline would be over."""
    threading.Timer(0.3, lambda: sock.sendall(b"".join(U32.pack(message) for message in messages))).start()


def test_a_secondary_that_is_stopped_is_waited_for(stopped: tuple[Patient, socket.socket]) -> None:
    secondary, theirs = stopped
    later(theirs, Message.CHECKPOINT_REPLY)
    assert secondary.reply()
    later(theirs, Message.VMSTATE_RECEIVED, Message.VMSTATE_LOADED)
    assert secondary.reaction(timeout_s=0.05).how is How.LOADED


def test_a_pair_that_is_stopped_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "TIMEOUT_S", 0.05)
    relay: Any = SimpleNamespace(loaded=0, ready=False)
    lab: Any = SimpleNamespace(scope=ProcessScope())
    threading.Timer(0.3, lambda: setattr(relay, "loaded", 1)).start()
    pairs._wait_healthy(lab, relay, vm_of(Standstill()), vm_of(Standstill()), PairFault.KILLED)
    assert relay.loaded == 1


def disturbed(*hindrances: Hindered | None) -> Any:
    """Work that the host disturbs in its first tries; it returns how many there were."""
    tries: list[int] = []

    def work(*_: object) -> int:
        number = len(tries)
        tries.append(number)
        if number < len(hindrances) and (hindered := hindrances[number]) is not None:
            current_account().ended(hindered)
        return len(tries)

    return work


def test_what_was_seen_of_a_qemu_that_was_stopped_or_ended_is_no_answer() -> None:
    assert whole(disturbed(TERM, STOPPED)) == 3
    assert whole(disturbed(STARVED)) == 1
    assert whole(disturbed(None)) == 1
    assert spoilt(None, (STARVED, STOPPED))


def test_each_item_is_tried_again_by_itself() -> None:
    lab = Lab(binary=Any, ability=Any, buffers=Any, workers=1)  # type: ignore[arg-type]
    assert lab.each(disturbed(None, TERM), ["one", "two"]) == [1, 3]


def test_a_machine_that_the_host_keeps_from_answering_says_so() -> None:
    def ask(_: Lab) -> Any:
        return whole(disturbed(*[TERM] * TRIES))

    lab: Any = SimpleNamespace(family="pc")
    answer = Question(number=1, ask=ask).answer([lab])
    assert answer.failed[0].hindered == (TERM,)
    (entry,) = told(claims_doc(questions=(answer,)))
    assert "host disturbed each of 3 tries: QEMU was ended from outside by SIGTERM" in entry.failed


def test_a_machine_that_cannot_answer_by_itself_blames_no_host() -> None:
    def ask(_: Lab) -> Any:
        raise HarnessError("no pair")

    lab: Any = SimpleNamespace(family="pc")
    (entry,) = told(claims_doc(questions=(Question(number=1, ask=ask).answer([lab]),)))
    assert entry.failed == "pc: no pair"


@pytest.mark.parametrize(("first", "tries"), [(Verdict.HANG, 2), (Verdict.OK, 1)])
def test_loads_that_broke_while_qemu_was_stopped_are_loaded_again(
    monkeypatch: pytest.MonkeyPatch, first: Verdict, tries: int
) -> None:
    seen: list[Verdict] = []

    def case(*_: object) -> Any:
        verdict = Verdict.OK if seen else first
        if not seen:
            current_account().ended(STOPPED)
        seen.append(verdict)
        return load_case(verdict=verdict), Judgement(verdict=verdict), 1

    monkeypatch.setattr(loads, "_case", case)
    monkeypatch.setattr(loads, "_blame", lambda *_: None)
    lab = Lab(binary=Any, ability=Any, buffers=Any)  # type: ignore[arg-type]
    monkeypatch.setattr(Lab, "family", "pc")
    _, cases = loads.find_broken(lab, "bound", plan_loads(Schedule.SAME, ["bound"], 2))
    assert len(seen) == tries
    assert loads_of(*cases).figures.sessions_failed == 0
