# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a cell is what it is, as data. Signatures, known issues, the minimiser and the answers read these, never a text.

Each cause has a ``kind``, by which JSON tells them apart. What QEMU or a guest printed is evidence and stands in
them as it was said (``line``, ``said``) or without what differs from run to run (``words``, ``reason``); sentences
about a cause are made in :mod:`harness.report.sentences` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from harness.colo.messages import Step
from harness.colo.symptom import Symptom
from harness.devices.phases import Unreached
from harness.engines.postcopy import PostcopyLack
from harness.experiments.interview import After
from harness.guests.lack import Lack, Lacks
from harness.qemu.disturbance import Hindered


class During(StrEnum):
    """The experiment that a break came in, where a lane makes more than one."""

    HEALTHY_DISK = "healthy-disk"
    FAILING_DISK = "failing-disk"
    LEAKS = "leaks"


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Where it happened.

    :param load: 1 is the first; 0 the incoming stream, before any checkpoint; None where no load was going on
    """

    step: Step
    load: int | None = None
    phase: str | None = None
    during: During | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Broke(At):
    """An answer that did not come, or came wrong, from a QEMU that is still there.

    :param how: ``late``: none within the deadline; ``closed`` the channel; ``unexpected``: another message
    :param symptom: what the engine saw
    """

    how: str
    symptom: Symptom | None = None
    kind: Literal["broke"] = "broke"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """An assertion that failed; ``file`` is the source file's name without its folder."""

    function: str
    expression: str
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizerReport:
    """The first report of a sanitizer: its ``tool`` and what it complains of."""

    tool: str
    complaint: str
    function: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(At):
    """QEMU ended by itself, or a sanitizer says that it should have.

    :param signal: name of the signal; None where it ended by a status, or not at all
    :param status: exit status
    :param words: what was said last before it aborted, without numbers and paths
    :param line: the line that tells most, as it was printed
    """

    signal: str | None = None
    status: int | None = None
    assertion: Assertion | None = None
    sanitizer: SanitizerReport | None = None
    words: str = ""
    line: str = ""
    kind: Literal["ended"] = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(At):
    """The load returned an error.

    :param section: the section that QEMU names
    :param field: the field or element that it did not take, the innermost
    :param function: of QEMU, that complained, where it says so
    :param reason: what it complained of, without what is the guest's or the run's
    :param errno: such as ``EINVAL``, where QEMU says no more
    :param how: of :class:`Broke`, where QEMU is still there
    :param symptom: what the engine saw
    :param line: the line that tells most, as it was printed
    """

    section: str = ""
    field: str = ""
    function: str = ""
    reason: str = ""
    errno: str = ""
    status: int | None = None
    signal: str | None = None
    how: str = ""
    symptom: Symptom | None = None
    line: str = ""
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftedField:
    """One field through the saved states of a run.

    :param values: after the first load, half-way, after the last; None where it was not there
    :param per_load: how much a number moves with each load between first and last
    :param creeps: it moves on and on in one direction
    :param without_loads: it moved as well when time passed and nothing was loaded; None when that was not tried
    """

    field: str
    type: str
    values: tuple[int | str | None, ...]
    per_load: float | None = None
    creeps: bool = False
    without_loads: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """State of a section after ``loads`` loads is not what it was after one.

    :param fields: those that drifted, the first of ``count``
    """

    section: str
    fields: tuple[DriftedField, ...]
    count: int
    loads: int
    phase: str | None = None
    kind: Literal["drifted"] = "drifted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A loaded machine shows something beside its saved state that the recorded one did not: a load forgets it.

    :param about: of :data:`harness.qemu.look.ABOUT`
    :param gone: lines that only the recorded machine shows, the first of them
    :param new: lines that only the loaded one shows
    :param count: of both in all
    :param load: after which it was seen first
    """

    about: str
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    count: int
    load: int
    phase: str | None = None
    kind: Literal["derived"] = "derived"


class Resource(StrEnum):
    """What leaks, the most telling first: what leaks a descriptor leaks memory too."""

    DESCRIPTORS = "descriptors"
    THREADS = "threads"
    STATE = "state"
    MEMORY = "memory"
    PAGES = "pages"


class LoadedBy(StrEnum):
    """How a section was loaded while it was looked for leaks."""

    CHECKPOINT = "one-per-checkpoint"
    BACK_TO_BACK = "back-to-back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A growth for each load with its 99 % interval."""

    per_load: float
    low: float
    high: float
    loads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaked:
    """What a section leaves behind with each load, confirmed in a second process.

    :param section: empty where only the whole state shows it
    :param low: with ``high``, the 99 % interval of ``per_load``; both are ``per_load`` where it was counted
    :param unit: ``bytes``, ``descriptors`` or ``threads``
    :param loads: that were measured
    :param way: how they were loaded
    :param other: the same resource, loaded in the other way, where that was measured too
    :param chunks: heap chunks left behind: size in bytes, and how many for each load
    """

    section: str
    resource: Resource
    per_load: float
    low: float
    high: float
    unit: str
    loads: int
    way: LoadedBy = LoadedBy.CHECKPOINT
    other: Figure | None = None
    chunks: tuple[tuple[int, float], ...] = ()
    phase: str | None = None
    kind: Literal["leaked"] = "leaked"

    @property
    def is_colos(self) -> bool:
        """A checkpoint loads a section once: what is lost only when it stands many times in one buffer is not COLO's.
        Where one load a checkpoint could not be measured, it may be."""
        return self.way is LoadedBy.CHECKPOINT or self.other is None


class Check(StrEnum):
    """What a guest was asked, or was seen to do."""

    ENDED = "ended"
    EXITED = "exited"
    CONSOLE = "console"
    HEARTBEAT = "heartbeat"
    CLOCK = "clock"
    CALENDAR = "calendar"
    DEVICE = "device"
    SILENT = "silent"
    KERNEL_LOG = "kernel-log"
    REQUESTS = "requests"
    RESENT = "resent"
    STATE = "state"


class KernelComplaint(StrEnum):
    """What a line of the guest's kernel log complains of; part of signatures, so a value stays as it is."""

    IO_ERROR = "io-error"
    ATA_COMMAND = "ata-command-failed"
    ATA_RESET = "ata-link-reset"
    ATA_EXCEPTION = "ata-exception"
    ATA_NO_DISK = "ata-no-disk"
    SCSI_OFFLINE = "scsi-disk-given-up"
    VIRTQUEUE = "virtqueue-broken"
    VIRTIO_REQUEST = "virtio-request-failed"
    NET_STUCK = "net-queue-stuck"
    LOCKUP = "cpu-lockup"
    HUNG_TASK = "hung-task"
    RCU_STALL = "rcu-stall"
    STRAY_INTERRUPT = "stray-interrupt"
    KERNEL_BUG = "kernel-bug"
    KERNEL_TRACE = "kernel-trace"
    PLATFORM_ERROR = "platform-error"
    CLOCKS_PARTED = "clocks-parted"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCheck:
    """One thing that is wrong with a guest.

    :param said: by the guest, its kernel or QEMU
    :param complaint: that a line of the kernel's log is
    :param wanted: the state that the machine should be in
    :param symptom: what was seen of the console
    :param status: exit status of the check, None where it did not end
    :param device: another device that was asked, where the platform answers for it
    :param figures: what was measured, by name with its unit
    """

    check: Check
    said: str = ""
    complaint: KernelComplaint | None = None
    wanted: str = ""
    symptom: Symptom | None = None
    status: int | None = None
    device: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFaulted(At):
    """It loaded, and the guest is not well.

    :param checks: the first is what it is known by
    :param after: what had brought the guest to run, None for the loads themselves
    """

    checks: tuple[FailedCheck, ...]
    after: After | None = None
    kind: Literal["guest-faulted"] = "guest-faulted"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmRefused(At):
    """This host's KVM did not take guest state, or did not give it.

    :param group: the register, else the ioctl: what such failures are counted by
    :param msr: number of the register, None when it is none
    :param value: what it was to be set to
    :param error: the system's text
    """

    group: str
    ioctl: str
    msr: int | None = None
    value: int | None = None
    error: str = ""
    kind: Literal["kvm-refused"] = "kvm-refused"


class Side(StrEnum):
    """Of a route."""

    RECORDER = "recorder"
    LOADER = "loader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A QEMU of the route has no such machine or device.

    :param side: whose lack it is; where the recorder has it not, no such guest exists
    :param lack: what is not to be had
    """

    side: Side
    lack: Lack
    kind: Literal["unsupported"] = "unsupported"

    @property
    def keeps_from_colo(self) -> bool:
        """It is there, and QEMU starts no COLO with a machine that has it, or does not migrate one at all."""
        return self.lack.what in (Lacks.MIGRATION, Lacks.COLO)


class Why(StrEnum):
    """Why nothing was decided."""

    STOPPED = "stopped"
    NOT_JUDGED = "not-judged"
    ERROR = "error"
    ANSWER = "answer-out-of-order"
    LOADS = "loads-missing"
    LEFT_OUT = "left-out"
    NO_SECTION = "no-section"
    NOT_ASKED = "not-asked"
    TOO_MANY = "too-many-refused"
    OTHERS = "for-others"
    UNAVAILABLE = "unavailable"
    TOO_EARLY = "too-early"
    NOT_MET = "not-met"
    BUDGET = "budget-spent"
    CANARY = "canary-not-red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """Nothing can be said of the device.

    :param said: the words of an error, the disks whose failing sector was not met, or the verdict of the canary
    :param symptom: what was seen, where that is why
    :param lack: what this host or QEMU has not, where that is why
    :param sections: left out, or refused, where that is why
    :param acked: loads acknowledged, of ``asked``, where that is why
    :param seconds: that were not enough
    """

    why: Why
    said: str = ""
    symptom: Symptom | None = None
    lack: PostcopyLack | None = None
    sections: tuple[str, ...] = ()
    phase: str | None = None
    load: int | None = None
    acked: int | None = None
    asked: int | None = None
    seconds: float | None = None
    during: During | None = None
    kind: Literal["undecided"] = "undecided"


Cause = Annotated[
    Broke
    | Ended
    | Refused
    | Drifted
    | Derived
    | Leaked
    | GuestFaulted
    | KvmRefused
    | Hindered
    | Unsupported
    | Unreached
    | Undecided,
    Field(discriminator="kind"),
]


def exit_of(cause: Cause) -> str | None:
    """How QEMU ended by itself: the signal's name, or its status."""
    signal = getattr(cause, "signal", None)
    status = getattr(cause, "status", None)
    return signal or (None if status is None else f"exit status {status}")


def load_of(cause: Cause) -> int | None:
    """The load in which it happened; None for what was no load's doing."""
    return getattr(cause, "load", None)


def phase_of(cause: Cause) -> str | None:
    """The phase in which it happened, where it is known."""
    return getattr(cause, "phase", None)


def located(cause: Cause, *, phase: str | None = None, during: During | None = None) -> Cause:
    """The cause with where it happened, as far as it has a place for that and does not know better."""
    given = {"phase": phase, "during": during}
    unknown = {name: value for name, value in given.items() if value and getattr(cause, name, value) is None}
    found: Cause = replace(cause, **unknown) if unknown else cause  # type: ignore[arg-type]
    return found
