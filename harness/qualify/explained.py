# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a load was refused, as far as it could be looked into: data alone.

What explains a failure is one of :data:`Explained`, and its ``kind`` tells them apart in JSON. What to do about it
follows from the same data; both are made into sentences by :mod:`harness.report.reasons`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from harness.facts.compare import FactChange

RAM = "ram"
CONFIGURATION = "configuration"
#: In place of a section's label: the stream as a whole.
STREAM = "stream"


class SetBy(StrEnum):
    """Who gave a property its value."""

    DEVICE = "device"
    GLOBAL = "global"
    MACHINE_TYPE = "machine-type"
    NOT_DEFAULT = "not-default"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the value of a property comes from.

    :param by: ``not-default`` where it is not the default, and the build does not say more
    :param driver: type that a ``-global`` or a machine type names
    :param property: as it is spelled there
    :param value: what was given; of ``default`` and ``not-default`` the default
    :param machine: machine type, where that set it
    """

    by: SetBy
    driver: str = ""
    property: str = ""
    value: str = ""
    machine: str = ""


class LostBy(StrEnum):
    """Who took a feature away.

    ``property``: a property that is off; ``backend``: what is behind the device; ``build``: a QEMU without the
    property; ``other``: the property is on, so something else; ``no-device``: it is not there; ``unknown``: nothing is
    known of the feature.
    """

    PROPERTY = "property"
    BACKEND = "backend"
    BUILD = "build"
    OTHER = "other"
    NO_DEVICE = "no-device"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostFeature:
    """A virtio feature that the guest uses and the loading side does not offer.

    :param section: label of the device's section
    :param device: its ``id`` on the loading side, or ""
    :param driver: its type, or what it usually is
    :param bit: number of the feature bit, or None for something that is no bit (headers of a network backend)
    :param lost_by: who took it away
    :param property: that decides on it, or "" where none does
    :param value: what the property is
    :param wanted: what it has to be; "" for the value that it has on the old host
    :param origin: of the value, None when nothing tells
    :param backend: what the backend lacks, by its name in ``virtio-features.yaml``
    :param backend_id: the backend's ``id``, and ``backend_kind`` its type
    """

    section: str
    device: str
    driver: str
    bit: int | None
    name: str
    lost_by: LostBy
    property: str = ""
    value: str = ""
    wanted: str = "on"
    origin: Origin | None = None
    backend: str = ""
    backend_id: str = ""
    backend_kind: str = ""
    kind: Literal["lost-feature"] = "lost-feature"


class Differs(StrEnum):
    """How two descriptions differ: ``missing`` on the loading side, or ``new`` there."""

    SECTION = "section"
    VERSION = "version"
    MISSING = "missing"
    NEW = "new"
    SIZE = "size"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureDifference:
    """The recorded section and the loading side's own are not described alike.

    :param path: of the field or the subsection, "" for the section itself
    :param recorded: bytes in the recording, or the version; 0 where it has no size; None where it is not there
    :param loading: the same on the loading side
    """

    section: str
    path: str
    differs: Differs
    recorded: int | None
    loading: int | None


class SetAlike(StrEnum):
    """What has to be set alike, where that is known."""

    QUEUE_SIZE = "queue-size"
    MEMORY_SIZE = "memory-size"
    BLOCK_OWNER = "block-owner"
    MACHINE_TYPE = "machine-type"
    REGISTERS = "registers"  # of an ARM CPU: one that the recording has is not on the loading side


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldEvidence:
    """What one load fell over.

    :param section: label, None where QEMU does not name it
    :param field: as QEMU names it, or a path into the decoded section; None where nothing names one
    :param said: QEMU's own words
    :param recorded: value in the recording, None when not known
    :param loading: value in the loading side's own state, None when not known
    :param differences: how the section is described on both sides, where that differs
    :param setting: what has to be set alike
    :param not_compared: why the loading side's own state could not be had
    """

    section: str | None
    said: str
    field: str | None = None
    recorded: int | str | None = None
    loading: int | str | None = None
    differences: tuple[StructureDifference, ...] = ()
    setting: SetAlike | None = None
    not_compared: str = ""
    kind: Literal["field"] = "field"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLookedFor:
    """The cause could not be looked for: ``said`` is the error."""

    said: str
    kind: Literal["not-looked-for"] = "not-looked-for"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTypes:
    """The loading QEMU has not this machine type, and has ``oldest`` to ``newest`` of its family."""

    version: str
    oldest: str
    newest: str
    kind: Literal["other-types"] = "other-types"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsDiffer:
    """Nothing closer is known than what differs between the two hosts."""

    changes: tuple[FactChange, ...]
    kind: Literal["hosts-differ"] = "hosts-differ"


Explained = Annotated[
    LostFeature | FieldEvidence | NotLookedFor | OtherTypes | HostsDiffer, Field(discriminator="kind")
]
