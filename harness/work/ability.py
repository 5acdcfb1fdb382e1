# SPDX-License-Identifier: GPL-2.0-or-later
"""What a task needs of a host, and what a host has: the queues of jobs are named by it.

A QEMU is named by the hash of its program, which settles its architecture and machine types. A guest that was recorded
under KVM goes to hosts with the same kernel, since part of its state is that kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter, ValidationError

#: A queue's name has at most 128 characters.
_HASH_CHARS, _KERNEL_CHARS, _HOST_CHARS = 24, 30, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """What a task needs.

    :param qemu: hash of the program that loads, in hex
    :param version: as people name that QEMU
    :param accel: ``kvm`` or ``tcg``
    :param kernel: release of the host's kernel, empty where any will do
    :param host: name of the only host that will do, empty where any will
    :param waits: most of the time is waited, so that it is carried out beside what takes a core
    """

    qemu: str
    version: str = ""
    accel: str
    kernel: str = ""
    host: str = ""
    waits: bool = False

    @property
    def queue(self) -> str:
        """The name of its queue: the same for all that the same hosts can do."""
        where = (self.kernel[:_KERNEL_CHARS], self.host[:_HOST_CHARS])
        return "/".join((self.qemu[:_HASH_CHARS], self.accel, *where, "waits" if self.waits else ""))

    @classmethod
    def from_plain(cls, value: object) -> Ability:
        """What a job says that it needs, as plain data: its queue decides, and this is for people."""
        try:
            return _abilities().validate_python(value)
        except ValidationError:
            return cls(qemu="", accel="")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedQemu:
    """A QEMU that a host has.

    :param path: on that host
    """

    qemu: str
    version: str
    path: str
    machines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOffer:
    """What a host can do, as its worker announces it.

    :param arch: of the host, as ``uname -m`` says it
    :param kvm: runs code at full speed
    """

    host: str
    pid: int
    jobs: int
    arch: str
    kernel: str
    kvm: bool
    qemus: tuple[OfferedQemu, ...]

    def queues(self, *, waits: bool) -> list[str]:
        """The queues that its jobs come from."""
        kinds = [("tcg", ""), *([("kvm", self.kernel), ("kvm", "")] if self.kvm else [])]
        return [
            Ability(qemu=each.qemu, accel=accel, kernel=kernel, host=host, waits=waits).queue
            for each in self.qemus
            for accel, kernel in kinds
            for host in ("", self.host)
            if host or accel == "tcg" or kernel
        ]

    def has(self, queue: str) -> bool:
        """Whether a job of this queue comes to it."""
        return queue in self.queues(waits=False) or queue in self.queues(waits=True)

    def to_json(self) -> str:
        """For the store."""
        return _offers().dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> HostOffer | None:
        """What :meth:`to_json` gave; None for that of another version of this program."""
        try:
            return _offers().validate_json(text)
        except ValidationError:
            return None


@cache
def _abilities() -> TypeAdapter[Ability]:
    return TypeAdapter(Ability)


@cache
def _offers() -> TypeAdapter[HostOffer]:
    return TypeAdapter(HostOffer)
