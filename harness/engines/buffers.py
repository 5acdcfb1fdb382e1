# SPDX-License-Identifier: GPL-2.0-or-later
"""What engines send: recorded states, selected and encoded, made once and shared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar, cast

from harness.errors import HarnessError
from harness.guests.machine import Machine
from harness.packs.pack import StatePack
from harness.state.transforms import GuestMode, awake, encode, only, sections_for, without
from harness.stream.model import Section

#: What is kept of one pack at most, as :func:`_size` counts it: several packs are in work at a time.
_KEPT_BYTES = 48 << 20
#: A place in a list: what stands there is the pack's.
_PLACE_BYTES = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which sections go into a buffer.

    :param own: labels of the row's sections: those repeated back to back, and those the verdict speaks of
    :param excluded: labels left out of every buffer, because they were blamed before
    :param whole: every other section is sent as well; without it, ``own`` alone, which wants a parked guest
    :param again: ``own`` stands once more in the buffer, for a build that resets the machine before each load:
        only this second time meets a used device
    """

    own: frozenset[str]
    excluded: frozenset[str] = frozenset()
    whole: bool = True
    again: bool = False


class Buffers:
    """Encoded buffers of one pack, made once and shared by sessions.

    RAM is kept as lists of the pack's own records, half a MB for 100 MB of pages; device buffers are bytes.
    The least recently used go first when all take too much; what is larger than that by itself is made each time.

    :param machine: what the loading side shall be, when it is not just what was recorded
    """

    def __init__(self, pack: StatePack, machine: Machine | None = None) -> None:
        self.pack = pack
        self.machine = machine or pack.machine
        self._lock = Lock()
        self._kept: OrderedDict[object, Any] = OrderedDict()
        self._size = 0
        self._latest: tuple[object, Any] = None, None

    def looked_at(self, binary: str) -> Buffers:
        """The same for a program that stands in for a QEMU; see :meth:`Machine.looked_at`."""
        same = copy(self)
        same.machine = self.machine.looked_at(binary)
        return same

    def ram_whole(self, phase: str) -> list[bytes | memoryview]:
        """See :meth:`StatePack.ram_whole`."""
        return self._get(("whole", phase), lambda: self.pack.ram_whole(phase))

    def ram_difference(self, phase: str, base: str) -> list[bytes | memoryview]:
        """See :meth:`StatePack.ram_difference`."""
        if phase == base:
            return []
        return self._get(("difference", phase, base), lambda: self.pack.ram_difference(phase, base))

    def devices(self, phase: str, mode: GuestMode, selection: Selection, repeat: int) -> bytes:
        """One device buffer: everything once, the row's own sections as often as asked."""
        first, own = self.parts(phase, mode, selection)
        return first + own * (repeat - 1 + selection.again)

    def parts(self, phase: str, mode: GuestMode, selection: Selection) -> tuple[bytes, bytes]:
        """What a device buffer begins with, and the row's own sections, which may stand behind that again and again:
        a framebuffer of 4 MB a hundred times is no memory to be held.

        :raises HarnessError: the row has none in this phase
        """
        return self._get(("parts", phase, mode, selection), lambda: self._parts(phase, mode, selection))

    def whole_state(self, phase: str, mode: GuestMode, absent: frozenset[str] = frozenset()) -> bytes:
        """Every section once but the absent ones: what an incoming stream brings, of a machine that does not sleep."""
        recording = self.pack.recordings[phase]
        return self._get(
            ("state", phase, mode, absent), lambda: encode(awake(without(sections_for(recording, mode), absent)))
        )

    def _parts(self, phase: str, mode: GuestMode, selection: Selection) -> tuple[bytes, bytes]:
        sections = without(self._checkpoint_sections(phase, mode), selection.excluded)
        own = encode(only(sections, selection.own))
        if not own:
            raise HarnessError(f"phase {phase}: none of the sections {sorted(selection.own)} is there to load")
        return encode(sections) if selection.whole else own, own

    def _checkpoint_sections(self, phase: str, mode: GuestMode) -> list[Section]:
        """What device buffers are made of."""
        return sections_for(self.pack.recordings[phase], mode)

    def _get(self, key: object, make: Callable[[], T]) -> T:
        asked, made = self._latest
        if asked == key:  # a session asks for the same some thousand times a second: no hash, no lock
            return cast(T, made)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                self._latest = key, kept
                return cast(T, kept)
        made = make()
        size = _size(made)
        with self._lock:
            if key not in self._kept and size <= _KEPT_BYTES:
                self._kept[key] = made
                self._size += size
            while self._size > _KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._size -= _size(oldest)
        return made


def _size(made: object) -> int:
    """Bytes that something takes, roughly."""
    if isinstance(made, bytes):
        return len(made)
    if isinstance(made, tuple):
        return sum(map(len, made))
    return _PLACE_BYTES * len(cast("list[object]", made))
