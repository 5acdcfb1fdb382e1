# SPDX-License-Identifier: GPL-2.0-or-later
"""The primary against a secondary that is played byte for byte."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.colo import primary as primary_module
from harness.colo.messages import Step, name_of
from harness.colo.primary import ENABLE_COLO, OPEN_RETURN_PATH, ChannelBroken, Dialect, Primary
from harness.colo.symptom import Sign, Symptom
from harness.deadline import Lost

HEAD = b"QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x02pc"
BODY = (b"ram" * 100, b"", bytearray(b"devices\x00"), memoryview(b"\x06\x00\x00\x00\x02{}"))
BODY_BYTES = b"ram" * 100 + b"devices\x00" + b"\x06\x00\x00\x00\x02{}"
STREAMS = {
    ENABLE_COLO: HEAD + b"\x08\x00\x08\x00\x00" + BODY_BYTES,
    OPEN_RETURN_PATH: HEAD + b"\x08\x00\x01\x00\x00" + BODY_BYTES,
}
SHUT = struct.pack(">HHI", 1, 4, 0)
READY, REQUEST, REPLY, SEND, SIZE, RECEIVED, LOADED = (struct.pack(">I", n) for n in range(7))
DEVICES = b"\x04section"
RAM = (b"\x03ram", b"pages")
BUFFER = SEND + b"\x03rampages" + b"\x00" + SIZE + struct.pack(">Q", 9) + b"\x04section" + b"\x00"

Act = bytes | int | None
#: What the secondary reads before each of its answers, the answer, and the step that it belongs to.
EXCHANGES: dict[Dialect, tuple[tuple[int, bytes, Step], ...]] = {
    dialect: (
        *((len(STREAMS[dialect]), SHUT, Step.INCOMING) for _ in range(dialect.return_path)),
        (0 if dialect.return_path else len(STREAMS[dialect]), READY, Step.INCOMING),
        (4, REPLY, Step.REQUEST),
        (len(BUFFER), RECEIVED, Step.SEND),
        (0, LOADED, Step.LOAD),
    )
    for dialect in (ENABLE_COLO, OPEN_RETURN_PATH)
}
CUTS = [
    pytest.param(dialect, at, count, id=f"{dialect.name}-{at}-{count}")
    for dialect, exchange in EXCHANGES.items()
    for at, (_, answer, _) in enumerate(exchange)
    for count in range(len(answer))
]
ANSWERS = [
    pytest.param(dialect, at, id=f"{dialect.name}-{at}")
    for dialect, exchange in EXCHANGES.items()
    for at in range(len(exchange))
]

WRONG = [
    pytest.param(dialect, at, other, id=f"{dialect.name}-{at}-{other}")
    for dialect, exchange in EXCHANGES.items()
    for at, (_, answer, _) in enumerate(exchange)
    for other in (0, 1, 2, 3, 4, 5, 6, 7, 0xDEADBEEF)
    if struct.pack(">I", other) != answer
]


class FakeSecondary(threading.Thread):
    """Reads so many bytes (a number), answers (bytes), hangs up (None); keeps what it read."""

    def __init__(self, sock: socket.socket, script: Sequence[Act]) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.script = script
        self.got = b""

    def run(self) -> None:
        for act in self.script:
            if act is None:
                self.sock.close()
            elif isinstance(act, int):
                self._read(act)
            else:
                self.sock.sendall(act)

    def _read(self, count: int) -> None:
        end = len(self.got) + count
        while len(self.got) < end:
            piece = self.sock.recv(end - len(self.got))
            assert piece, "the primary hung up"
            self.got += piece


Connect = Callable[..., tuple[Primary, FakeSecondary]]


class WhileItActs:
    """No time counts while the secondary has something to do, however slow this host is."""

    def __init__(self, fake: FakeSecondary) -> None:
        self._fake = fake
        self._last = time.monotonic()
        self._lost_s = 0.0

    def lost(self) -> Lost:
        now = time.monotonic()
        if self._fake.is_alive():
            self._lost_s += now - self._last
        self._last = now
        return Lost(total_s=self._lost_s)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    monkeypatch.setattr(primary_module, "SILENCE_S", 0.01)
    started: list[tuple[Primary, FakeSecondary]] = []

    def start(script: Sequence[Act], *, timeout_s: float = 20.0, **more: Any) -> tuple[Primary, FakeSecondary]:
        ours, theirs = socket.socketpair()
        theirs.settimeout(20.0)
        fake = FakeSecondary(theirs, script)
        primary = Primary(ours, WhileItActs(fake), timeout_s=timeout_s, **more)
        started.append((primary, fake))
        fake.start()
        return primary, fake

    yield start
    for primary, fake in started:
        primary.close()
        fake.join(20.0)
        fake.sock.close()


def play(primary: Primary, dialect: Dialect) -> None:
    primary.start(HEAD, BODY, dialect)
    primary.checkpoint(DEVICES, RAM)


def script_until(dialect: Dialect, at: int) -> list[Act]:
    """All exchanges before one, and the reading that comes before its answer."""
    acts: list[Act] = []
    for reads, answer, _ in EXCHANGES[dialect][:at]:
        acts += [reads, answer]
    return [*acts, EXCHANGES[dialect][at][0]]


@pytest.mark.parametrize("dialect", EXCHANGES, ids=lambda d: d.name)
def test_a_session_is_byte_for_byte_the_protocol(connect: Connect, dialect: Dialect) -> None:
    bare = SEND + b"\x00" + SIZE + struct.pack(">Q", 1) + b"\x00"
    more: list[Act] = [4, REPLY, len(bare), RECEIVED + LOADED] * 2
    primary, fake = connect([*script_until(dialect, 0), *_answers(dialect), *more])
    play(primary, dialect)
    assert primary.checkpoints == 1
    primary.checkpoint(b"")
    primary.checkpoint(b"")
    fake.join(20.0)
    assert primary.checkpoints == 3
    assert fake.got == STREAMS[dialect] + REQUEST + BUFFER + (REQUEST + bare) * 2


def test_sections_that_stand_again_and_again_are_sent_as_often(connect: Connect) -> None:
    buffer = SEND + b"\x00" + SIZE + struct.pack(">Q", 2 + 3 * 2000 + 1) + b"ab" + b"xyz" * 2000 + b"\x00"
    answers = _answers(ENABLE_COLO)
    primary, fake = connect([*script_until(ENABLE_COLO, 0), *answers[:1], 4, REPLY, len(buffer), RECEIVED + LOADED])
    primary.start(HEAD, BODY, ENABLE_COLO)
    primary.request()
    primary.load(b"ab", behind=[b"xyz"] * 2000)
    fake.join(20.0)
    assert fake.got.endswith(REQUEST + buffer)


def _answers(dialect: Dialect) -> list[Act]:
    exchange = EXCHANGES[dialect]
    acts: list[Act] = [exchange[0][1]]
    for reads, answer, _ in exchange[1:]:
        acts += [reads, answer]
    return acts


def test_answers_that_come_byte_by_byte_are_put_together(connect: Connect) -> None:
    acts = [
        piece
        for act in [*script_until(OPEN_RETURN_PATH, 0), *_answers(OPEN_RETURN_PATH)]
        for piece in ([bytes([b]) for b in act] if isinstance(act, bytes) else [act])
    ]
    primary, _ = connect(acts)
    play(primary, OPEN_RETURN_PATH)
    assert primary.checkpoints == 1


@pytest.mark.parametrize(("dialect", "at", "count"), CUTS)
def test_an_answer_cut_anywhere_is_a_closed_channel(connect: Connect, dialect: Dialect, at: int, count: int) -> None:
    _, answer, step = EXCHANGES[dialect][at]
    primary, _ = connect([*script_until(dialect, at), answer[:count], None])
    with pytest.raises(ChannelBroken) as caught:
        play(primary, dialect)
    assert (caught.value.step, caught.value.kind) == (step, "closed")
    if 0 < count < 4:
        assert (caught.value.symptom.got, caught.value.symptom.of) == (count, 4)
    assert primary.checkpoints == 0


#: What comes before the missing answer has so long too, on a host that is busy.
LATE_S = 0.2


@pytest.mark.parametrize(("dialect", "at"), ANSWERS)
@pytest.mark.parametrize("count", [0, 3])
def test_an_answer_that_does_not_come_is_late(connect: Connect, dialect: Dialect, at: int, count: int) -> None:
    _, answer, step = EXCHANGES[dialect][at]
    primary, _ = connect([*script_until(dialect, at), answer[:count]], timeout_s=LATE_S)
    with pytest.raises(ChannelBroken) as caught:
        play(primary, dialect)
    assert (caught.value.step, caught.value.kind) == (step, "late")
    assert caught.value.symptom == Symptom(sign=Sign.NO_ANSWER, seconds=LATE_S)


LEFT = Symptom(sign=Sign.LEFT_COLO, said="error")


@pytest.mark.parametrize(("dialect", "at"), ANSWERS)
def test_a_secondary_that_gave_up_is_not_waited_for(connect: Connect, dialect: Dialect, at: int) -> None:
    step = EXCHANGES[dialect][at][2]
    fakes: list[FakeSecondary] = []
    over: list[bool] = []

    def left() -> Symptom | None:
        # silent because it is still reading is not the same as silent because it gave up
        over.append(not fakes or not fakes[0].is_alive())
        # what it said last may have come meanwhile: a silence that begins behind its end is meant
        return LEFT if over[-2:] == [True, True] else None

    primary, fake = connect(script_until(dialect, at), timeout_s=20.0, watch=left)
    fakes.append(fake)
    with pytest.raises(ChannelBroken) as caught:
        play(primary, dialect)
    assert (caught.value.step, caught.value.kind, caught.value.symptom) == (step, "refused", LEFT)


@pytest.mark.parametrize(("dialect", "at", "other"), WRONG)
def test_any_other_message_is_unexpected(connect: Connect, dialect: Dialect, at: int, other: int) -> None:
    _, answer, step = EXCHANGES[dialect][at]
    wrong = struct.pack(">I", other)
    primary, _ = connect([*script_until(dialect, at), wrong])
    with pytest.raises(ChannelBroken) as caught:
        play(primary, dialect)
    assert (caught.value.step, caught.value.kind) == (step, "unexpected")
    said = wrong.hex() if answer == SHUT else name_of(other)
    assert (caught.value.symptom.sign, caught.value.symptom.said) == (Sign.OTHER_MESSAGE, said)


def test_a_secondary_that_hangs_up_with_data_unread_is_closed(connect: Connect) -> None:
    primary, _ = connect([3, None])
    with pytest.raises(ChannelBroken) as caught:
        primary.start(HEAD, [bytes(1 << 22)], ENABLE_COLO)
    assert (caught.value.step, caught.value.kind) == (Step.INCOMING, "closed")


def test_a_secondary_that_takes_no_data_is_late(connect: Connect) -> None:
    primary, _ = connect([3], timeout_s=0.03)
    with pytest.raises(ChannelBroken) as caught:
        primary.start(HEAD, [bytes(1 << 22)], ENABLE_COLO)
    assert (caught.value.step, caught.value.kind) == (Step.INCOMING, "late")
    assert caught.value.symptom.sign is Sign.NO_DATA_TAKEN


def test_a_second_checkpoint_into_a_closed_channel_names_its_request(connect: Connect) -> None:
    primary, fake = connect([*script_until(ENABLE_COLO, 0), *_answers(ENABLE_COLO), None])
    play(primary, ENABLE_COLO)
    fake.join(20.0)
    with pytest.raises(ChannelBroken) as caught:
        primary.checkpoint(DEVICES)
    assert (caught.value.step, caught.value.kind) == (Step.REQUEST, "closed")
    assert primary.checkpoints == 1


def test_more_buffers_than_one_call_takes_through_a_small_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(20.0)
    buffers = [bytes([n % 251]) * (n % 700) for n in range(3000)]
    wanted = HEAD + b"\x08\x00\x08\x00\x00" + b"".join(buffers)
    fake = FakeSecondary(theirs, [len(wanted), READY])
    fake.start()
    Primary(ours, timeout_s=20.0).start(HEAD, buffers, ENABLE_COLO)
    fake.join(20.0)
    assert fake.got == wanted
    ours.close()
    theirs.close()


class StingySocket:
    """Takes as many bytes of each call as it is told, then answers READY."""

    def __init__(self, portions: Sequence[int]) -> None:
        self._portions = cycle(portions)
        self.got = b""
        self.largest = 0

    def settimeout(self, seconds: None) -> None:
        assert seconds is None

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, len(value)) == (socket.SOL_SOCKET, 16)

    def sendmsg(self, buffers: Sequence[bytes]) -> int:
        self.largest = max(self.largest, len(buffers))
        taken = b"".join(buffers)[: next(self._portions)]
        self.got += taken
        return len(taken)

    def recv(self, count: int, flags: int) -> bytes:
        assert (count, flags) == (4, 0)
        return READY


@given(
    sizes=st.lists(st.integers(0, 40), max_size=60),
    portions=st.lists(st.integers(1, 200), min_size=1, max_size=10),
)
def test_partial_sends_lose_and_repeat_nothing(sizes: list[int], portions: list[int]) -> None:
    sock = StingySocket(portions)
    body = [bytes([65 + index % 26]) * size for index, size in enumerate(sizes)]
    Primary(cast(socket.socket, sock), timeout_s=20.0).start(HEAD, body, ENABLE_COLO)
    assert sock.got == HEAD + b"\x08\x00\x08\x00\x00" + b"".join(body)


def test_no_call_has_more_buffers_than_the_kernel_takes() -> None:
    sock = StingySocket([1 << 20])
    Primary(cast(socket.socket, sock), timeout_s=20.0).start(HEAD, [b"x"] * 5000, ENABLE_COLO)
    assert sock.largest == 1024
    assert sock.got.endswith(b"x" * 5000)


def test_messages_have_their_qapi_names() -> None:
    assert [name_of(n) for n in range(8)] == [
        "CHECKPOINT_READY",
        "CHECKPOINT_REQUEST",
        "CHECKPOINT_REPLY",
        "VMSTATE_SEND",
        "VMSTATE_SIZE",
        "VMSTATE_RECEIVED",
        "VMSTATE_LOADED",
        "0x00000007",
    ]
