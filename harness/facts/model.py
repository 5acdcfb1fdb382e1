# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts of a host as JSON: each key, and what may stand there.

They travel in state packs, so that the model is held against what comes from elsewhere. None stands for what could not
be had; ``unknown`` says why. A key that a later program adds is left alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, StringConstraints

# that of typing tells pydantic too little before Python 3.12
from typing_extensions import TypedDict

from harness.qemu.binary import AccelSeen

Hex = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{1,16}$")]
_MORE = ConfigDict(extra="allow")


class WhyNotKnown(StrEnum):
    """Why a fact could not be had."""

    ERROR = "error"
    NOT_SAID = "not-said"  # the file ``said`` does not say
    NOT_TRIED = "not-tried"
    NOT_ASKED = "not-asked"  # nobody asked a machine
    NO_MACHINE = "no-machine"  # the build has no machine type ``said``
    NO_DEVICE = "no-device"  # ``said`` is missing
    NOT_OPENED = "not-opened"  # ``said`` cannot be opened
    BEHIND_BRIDGE = "behind-bridge"  # slot ``said``: nobody has set up the bridge before firmware ran
    NO_INTERFACE = "no-interface"  # slot ``said`` shows neither a modern nor a legacy interface


# Functions, not the enumerations themselves: pydantic reads the signature, and that is another one in each Python.
def _why(value: str) -> WhyNotKnown:
    return WhyNotKnown(value)


def _seen(value: str) -> AccelSeen:
    return AccelSeen(value)


class NotKnown(TypedDict):
    """Why a fact could not be had; ``said`` is the system's or QEMU's, or what it is about."""

    why: Annotated[WhyNotKnown, BeforeValidator(_why)]
    said: str


class SystemFacts(TypedDict, total=False):
    """Distribution, kernel and architecture."""

    __pydantic_config__ = _MORE  # type: ignore[misc]
    os: str | None
    kernel: str | None
    kernel_version: str | None
    architecture: str | None


class CpuFacts(TypedDict, total=False):
    """The first CPU, and how many there are; ``flags`` are sorted."""

    __pydantic_config__ = _MORE  # type: ignore[misc]
    vendor: str | None
    family: int | None
    model: int | None
    stepping: int | None
    model_name: str | None
    microcode: str | None
    flags: list[str] | None
    cores: int


class MsrEntry(TypedDict):
    """An MSR that KVM lists."""

    index: Hex
    name: str | None


class KvmFacts(TypedDict, total=False):
    """What this host's KVM offers.

    ``usable``, ``seen``, ``said`` and ``seconds`` are what came of running guest code under it. ``feature_msrs`` has
    index to value, ``cpuid`` has ``function.index.register`` to the bits that are offered.
    """

    __pydantic_config__ = _MORE  # type: ignore[misc]
    present: bool | None
    openable: bool | None
    usable: bool | None
    seen: Annotated[AccelSeen, BeforeValidator(_seen)]
    said: str
    seconds: float
    api_version: int | None
    extensions: dict[str, int] | None
    msrs: list[MsrEntry] | None
    feature_msrs: dict[Hex, Hex | None] | None
    cpuid: dict[str, Hex] | None


class MachineEntry(TypedDict):
    """A machine type of a build."""

    name: str
    alias: str | None
    deprecated: bool


class VirtioEntry(TypedDict):
    """A virtio device and what it offers; ``backend`` is what it stands on, such as ``user``."""

    device: str
    id: str
    slot: str
    backend: str | None
    bits: Hex
    features: list[str]


class BuildFacts(TypedDict, total=False):
    """A QEMU.

    ``machine``, ``accel``, ``cpu_model`` and ``virtio`` are of the machine that was asked. ``says_refused_state`` is
    False for a build that goes on without a word when KVM refuses a part of the CPU's state other than an MSR.
    """

    __pydantic_config__ = _MORE  # type: ignore[misc]
    version: str
    build: str
    path: str
    sha256: str
    machines: list[MachineEntry]
    says_refused_state: bool | None
    machine: str | None
    accel: str | None
    cpu_model: str | None
    virtio: list[VirtioEntry] | None


class HostFacts(TypedDict, total=False):
    """All of it; without any key where nobody asked.

    ``modules`` has name to parameters, ``unknown`` the dotted name of what is missing to why, ``vmstate`` the
    recording QEMU's own dump of its vmstates (:mod:`harness.qemu.vmstate`), in a pack.
    """

    __pydantic_config__ = _MORE  # type: ignore[misc]
    schema: str
    collected: str
    system: SystemFacts
    cpu: CpuFacts
    modules: dict[str, dict[str, str | None]]
    kvm: KvmFacts
    qemu: list[BuildFacts]
    unknown: dict[str, NotKnown]
    vmstate: dict[str, Any]
