# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a postcopy migration once its guest has moved: a thread that sends the pages that are asked for.

A destination may ask at any moment from LISTEN on, also while it loads its devices: virtio looks into its rings.
Whoever waits for a page holds locks, its main loop's among them, so nobody who speaks QMP may be the one to answer.
As QEMU's source does, a page is sent once: a destination fails when one is placed a second time.
"""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Condition, Event, Thread

from harness.deadline import Clock, Deadline, send_in_time
from harness.engines.postcopywire import PageRequest, Ping, ReturnMessage, ReturnPath
from harness.errors import HinderedError, StreamError
from harness.stream import wire
from harness.stream.ram import ram_section_buffers

Page = tuple[str, int, memoryview | None]

_SLICE_S = 0.02
_RECEIVE_BYTES = 1 << 16
#: Pages pushed between two looks at the return path.
_PUSH_PAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCount:
    """Pages of one postcopy load.

    :param early: sent before the package
    :param late: left out of that
    :param requested: requests for pages that came back, each for the page of a fault
    :param by_fault: late pages that were sent because they were asked for, and not because it was their turn
    :param while_loading: of those, the ones asked for while the devices were loaded
    :param unknown: requests for pages that had been sent already, and are not sent again
    """

    early: int = 0
    late: int = 0
    requested: int = 0
    by_fault: int = 0
    while_loading: int = 0
    unknown: int = 0


class PageSource:
    """Reads the return path and answers it, in a thread of its own. :meth:`close` ends that thread, not the socket.

    :param sock: connected to the destination's incoming address; from :meth:`start` on nobody else reads from it,
        and nobody else writes to it behind the package
    :param late: the pages that are sent when asked for, or at the end
    :param section_id: of the RAM section
    :param clocks: of the destination
    :param timeout_s: deadline for each send
    """

    def __init__(
        self, sock: socket.socket, late: Iterable[Page], section_id: int, *clocks: Clock, timeout_s: float
    ) -> None:
        self._clocks = clocks
        self._sock = sock
        self._left = {(block, at): page for block, at, page in late}
        self._section_id = section_id
        self._timeout_s = timeout_s
        self._changed = Condition()
        self._ending = Event()
        self._ended = False
        self._stopped = Event()
        self._pongs: set[int] = set()
        self._path = ReturnPath()
        self._late = len(self._left)
        self._requested = self._by_fault = self._while_loading = self._unknown = 0
        self._thread = Thread(target=self._run, name="postcopy-source", daemon=True)
        #: Status of the destination's SHUT, None before it came.
        self.shut: int | None = None
        #: The words of an error that ended the return path, empty when one side closed it, None while it is open.
        self.gone: str | None = None

    def start(self) -> None:
        """Begin to listen to the return path."""
        self._thread.start()

    def push_rest(self) -> None:
        """Send all pages that nobody asked for, and the end of the stream."""
        self._ending.set()

    def wait(self, done: Callable[[], bool], within_s: float) -> bool:
        """Wait until ``done()`` holds, or until the return path ends; whether it holds."""
        with self._changed:
            self._changed.wait_for(lambda: done() or self.gone is not None, within_s)
        return done()

    def has_pong(self, value: int) -> bool:
        """Whether a PING came back."""
        return value in self._pongs

    def count(self, early: int) -> PageCount:
        """What was asked for and sent so far.

        :param early: pages that were sent before the package
        """
        return PageCount(
            early=early,
            late=self._late,
            requested=self._requested,
            by_fault=self._by_fault,
            while_loading=self._while_loading,
            unknown=self._unknown,
        )

    def close(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s + 1.0)

    def _run(self) -> None:
        why = ""
        try:
            while not self._stopped.is_set() and self._turn():
                pass
        except (OSError, StreamError, HinderedError) as error:
            why = str(error)
        with self._changed:
            self.gone = why
            self._changed.notify_all()

    def _turn(self) -> bool:
        """One look at the return path, else some pages of the rest; False when the destination hung up."""
        pushing = self._ending.is_set() and not self._ended
        readable, _, _ = select.select([self._sock], [], [], 0.0 if pushing else _SLICE_S)
        if readable:
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                return False
            for kind, value in self._path.feed(data):
                self._take(kind, value)
        elif pushing:
            self._push()
        return True

    def _take(self, kind: int, value: int | PageRequest) -> None:
        if isinstance(value, PageRequest):
            self._answer(value)
            return
        with self._changed:
            if kind == ReturnMessage.PONG:
                self._pongs.add(value)
            else:
                self.shut = value
            self._changed.notify_all()

    def _answer(self, request: PageRequest) -> None:
        self._requested += 1
        asked = ((request.block, request.start + at) for at in range(0, request.length_bytes, wire.PAGE_SIZE))
        wanted = [key for key in asked if key in self._left]
        if not wanted:
            self._unknown += 1
            return
        self._by_fault += len(wanted)
        if not self.has_pong(Ping.DEVICES_LOADED):
            self._while_loading += len(wanted)
        self._send(self._section(wire.SectionType.PART, wanted))

    def _push(self) -> None:
        some = list(itertools.islice(self._left, _PUSH_PAGES))
        if some:
            self._send(self._section(wire.SectionType.PART, some))
            return
        self._ended = True
        self._send([*self._section(wire.SectionType.END, []), wire.U8.pack(wire.SectionType.EOF)])

    def _section(self, kind: wire.SectionType, keys: Iterable[tuple[str, int]]) -> list[bytes | memoryview]:
        pages = [(block, at, self._left.pop((block, at))) for block, at in keys]
        return ram_section_buffers(kind, self._section_id, pages)

    def _send(self, buffers: Iterable[bytes | memoryview]) -> None:
        send_in_time(self._sock, b"".join(buffers), Deadline(self._timeout_s, *self._clocks))
