# SPDX-License-Identifier: GPL-2.0-or-later
"""Plays the primary to a real secondary over a connected socket.

The exchange of one checkpoint (``colo_do_checkpoint_transaction`` and ``colo_incoming_process_checkpoint`` in
``migration/colo.c``)::

    primary    u32 CHECKPOINT_REQUEST
    secondary  u32 CHECKPOINT_REPLY            its guest is stopped
    primary    u32 VMSTATE_SEND, RAM sections, u8 0
    primary    u32 VMSTATE_SIZE, u64 n, n bytes: FULL sections, u8 0
    secondary  u32 VMSTATE_RECEIVED
    secondary  u32 VMSTATE_LOADED              loaded, and its guest runs again
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.colo.messages import (
    RETURN_PATH_HEADER,
    RETURN_PATH_SHUT,
    SIZE_MESSAGE,
    U32,
    Message,
    Step,
    name_of,
)
from harness.colo.symptom import Sign, Symptom
from harness.deadline import Clock, Deadline
from harness.stream.wire import CommandType
from harness.stream.writer import encode_command

Buffer = bytes | bytearray | memoryview

_REQUEST = U32.pack(Message.CHECKPOINT_REQUEST)
_SEND = U32.pack(Message.VMSTATE_SEND)
_REPLY = U32.pack(Message.CHECKPOINT_REPLY)
_DONE = U32.pack(Message.VMSTATE_RECEIVED) + U32.pack(Message.VMSTATE_LOADED)
_EOF = b"\0"

#: A secondary whose load failed says so on stderr and by an event, and then waits without hanging up: after so long a
#: silence it is asked.
SILENCE_S = 0.05
_IOV_MAX = 1024
#: What is copied in less time than the kernel takes for several pieces.
_SMALL_BYTES = 1 << 16
#: ``struct timeval``: seconds, microseconds.
_TIMEVAL = struct.Struct("ll")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a build wants to be spoken to.

    :param command: the migration command between head and RAM that makes it a secondary
    :param return_path: capability ``return-path`` has to be on, and the secondary sends a SHUT before READY
    """

    command: CommandType
    return_path: bool

    @property
    def name(self) -> str:
        """Short name for reports."""
        return "open-return-path" if self.return_path else "enable-colo"


ENABLE_COLO = Dialect(command=CommandType.ENABLE_COLO, return_path=False)
OPEN_RETURN_PATH = Dialect(command=CommandType.OPEN_RETURN_PATH, return_path=True)
#: Tried in this order by the probe; the first that reaches READY and loads one checkpoint is taken.
DIALECTS = (ENABLE_COLO, OPEN_RETURN_PATH)


class ChannelBroken(Exception):
    """The secondary did not answer as the protocol says. This is evidence, not an error of the harness.

    :param step: where in the exchange
    :param kind: ``closed`` (end of file or reset), ``late`` (deadline), ``refused`` (it left COLO and keeps the
        connection open, or its migration failed), ``died`` (it refused, and died by a signal while it cleaned up) or
        ``unexpected`` (another message)
    :param symptom: what was seen
    """

    def __init__(self, step: Step, kind: str, symptom: Symptom) -> None:
        self.step = step
        self.kind = kind
        self.symptom = symptom
        super().__init__(f"{step.name}: {kind}: {symptom}")


class Primary:
    """One COLO session.

    :param sock: connected to the secondary's incoming address; closed by :meth:`close`
    :param clocks: of the secondary: time in which it could not run counts for no deadline
    :param timeout_s: deadline for each answer and for each whole send, from the first moment of silence on
    :param watch: asked now and then while the secondary is silent; how it has given up, or None
    """

    def __init__(
        self,
        sock: socket.socket,
        *clocks: Clock,
        timeout_s: float,
        watch: Callable[[], Symptom | None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._clocks = clocks
        self._timeout_s = timeout_s
        self._watch = watch
        self._early = b""
        self.checkpoints = 0
        # the kernel ends a call after a slice of silence: Python's own timeouts ask it twice for each call
        sock.settimeout(None)
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, direction, _TIMEVAL.pack(0, int(SILENCE_S * 1_000_000)))

    def start(self, head: Buffer, body: Iterable[Buffer], dialect: Dialect) -> None:
        """Send a recorded stream with the dialect's command behind its head; wait for CHECKPOINT_READY.

        :param head: magic, version and configuration section
        :param body: the rest of the stream up to and with its vmdesc
        :raises ChannelBroken: at step INCOMING
        """
        self._send(Step.INCOMING, [head, encode_command(dialect.command), *body])
        first = self._receive(Step.INCOMING, 4)
        if dialect.return_path:
            kind, length = RETURN_PATH_HEADER.unpack(first)
            if kind != RETURN_PATH_SHUT:
                other = Symptom(sign=Sign.OTHER_MESSAGE, said=first.hex(), wanted="SHUT")
                raise ChannelBroken(Step.INCOMING, "unexpected", other)
            self._receive(Step.INCOMING, length)
            first = self._receive(Step.INCOMING, 4)
        self._expect(Step.INCOMING, first, Message.CHECKPOINT_READY)

    def checkpoint(self, devices: Buffer, ram: Sequence[Buffer] = ()) -> None:
        """One checkpoint: :meth:`request`, then :meth:`load`."""
        self.request()
        self.load(devices, ram)

    def request(self) -> None:
        """Ask for a checkpoint and do not wait: while the secondary stops its guest, the caller may prepare the load.

        :raises ChannelBroken: at step REQUEST
        """
        self._send(Step.REQUEST, [_REQUEST])

    def load(
        self,
        devices: Buffer,
        ram: Sequence[Buffer] = (),
        *,
        behind: Sequence[Buffer] = (),
        more_s: float = 0.0,
    ) -> None:
        """The rest of a requested checkpoint; on return the secondary has acknowledged the load with VMSTATE_LOADED.

        :param devices: FULL sections, without the EOF byte that this adds
        :param ram: RAM sections in pieces, or nothing
        :param behind: further sections that stand behind ``devices``; they are not copied
        :param more_s: added to the deadline of each answer, for a buffer with much in it
        :raises ChannelBroken: with the step at which the secondary stopped answering
        """
        size = len(devices) + sum(map(len, behind)) + 1
        header = SIZE_MESSAGE.pack(Message.VMSTATE_SIZE, size)
        buffers: list[Buffer] = [_SEND, *ram, _EOF, header, devices, *behind, _EOF]
        if not ram and size <= _SMALL_BYTES:
            buffers = [b"".join(buffers)]
        reply = self._receive(Step.REQUEST, 4)
        if reply != _REPLY:
            self._expect(Step.REQUEST, reply, Message.CHECKPOINT_REPLY)
        self._send(Step.SEND, buffers)
        self._acknowledged(more_s)
        self.checkpoints += 1

    def close(self) -> None:
        """Close the connection; the secondary sees its primary go."""
        self._sock.close()

    def _acknowledged(self, more_s: float) -> None:
        """RECEIVED, then LOADED; both at once where all is well, so that this process wakes up once."""
        answers = self._receive_some(Step.SEND, len(_DONE), socket.MSG_WAITALL)
        if answers == _DONE:
            return
        self._early = answers or b""
        answer = self._receive(Step.SEND, 4, more_s)
        if answer != _DONE[:4]:
            self._expect(Step.SEND, answer, Message.VMSTATE_RECEIVED)
        answer = self._receive(Step.LOAD, 4, more_s)
        if answer != _DONE[4:]:
            self._expect(Step.LOAD, answer, Message.VMSTATE_LOADED)

    def _expect(self, step: Step, answer: bytes, wanted: Message) -> None:
        (value,) = U32.unpack(answer)
        if value != wanted:
            other = Symptom(sign=Sign.OTHER_MESSAGE, said=name_of(value), wanted=wanted.name)
            raise ChannelBroken(step, "unexpected", other)

    def _send(self, step: Step, buffers: list[Buffer]) -> None:
        deadline: Deadline | None = None
        for start in range(0, len(buffers), _IOV_MAX):
            left = buffers[start : start + _IOV_MAX]
            while left:
                try:
                    sent = self._sock.sendmsg(left)
                except BlockingIOError:
                    deadline = deadline or self._deadline()
                    self._silence(step, deadline, Sign.NO_DATA_TAKEN)
                    continue
                except OSError as error:
                    raise _closed(step, said=error.strerror or str(error)) from error
                left = _behind(left, sent)
                if left:
                    deadline = deadline or self._deadline()
                    if deadline.over:
                        self._silence(step, deadline, Sign.LITTLE_DATA_TAKEN)

    def _receive(self, step: Step, count: int, more_s: float = 0.0) -> bytes:
        data, self._early = self._early[:count], self._early[count:]
        deadline: Deadline | None = None
        while len(data) < count:
            piece = self._receive_some(step, count - len(data))
            if piece is None:
                deadline = deadline or self._deadline(more_s)
                self._silence(step, deadline, Sign.NO_ANSWER)
            elif not piece:
                raise _closed(step, **({"got": len(data), "of": count} if data else {}))
            else:
                data += piece
        return data

    def _receive_some(self, step: Step, count: int, flags: int = 0) -> bytes | None:
        """What came within a slice of time: nothing at the end of the channel, None when it was silent."""
        try:
            return self._sock.recv(count, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _closed(step, said=error.strerror or str(error)) from error

    def _deadline(self, more_s: float = 0.0) -> Deadline:
        """Made when something is slow for the first time: most answers come at once, some thousand a second."""
        return Deadline(self._timeout_s + more_s, *self._clocks)

    def _silence(self, step: Step, deadline: Deadline, sign: Sign) -> None:
        """Nothing moved for a slice of time: it may have given up in silence, or be over its deadline."""
        why = self._watch()
        if why is not None:
            raise ChannelBroken(step, "refused", why)
        if deadline.over:
            raise ChannelBroken(step, "late", Symptom(sign=sign, seconds=self._timeout_s))


def _closed(step: Step, **how: Any) -> ChannelBroken:
    return ChannelBroken(step, "closed", Symptom(sign=Sign.CLOSED, **how))


def _behind(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """What is left of some buffers when the first ``sent`` bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
