# SPDX-License-Identifier: GPL-2.0-or-later
"""Device state made ready to be sent: selection of sections, and the parked variant of a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum

from harness.arch import Architecture
from harness.devices.device import section_label
from harness.errors import HarnessError
from harness.names import ADOPTED
from harness.packs.pack import Recording
from harness.stream.fields import find, patch
from harness.stream.model import Section
from harness.stream.vmdesc import decode


class GuestMode(StrEnum):
    """What the guest does between loads."""

    RUNNING = "running"
    PARKED = "parked"


def label_of(section: Section) -> str:
    """How reports name it."""
    return section_label(section.idstr, section.instance_id)


def labels_of(sections: Iterable[Section]) -> list[str]:
    """How reports name them, in stream order. A name that two sections share stands there once: QEMU loads both into
    the first device of that name, so that nothing tells them apart."""
    return list(dict.fromkeys(map(label_of, sections)))


def sections_for(recording: Recording, mode: GuestMode) -> list[Section]:
    """The device state of a recording, all of its CPUs parked if asked, or if it is an adopted one.

    :raises HarnessError: the CPU's state has no field by the expected name
    """
    if mode is GuestMode.RUNNING and recording.name != ADOPTED:
        return list(recording.sections)
    return [park(section, recording.architecture) for section in recording.sections]


def awake(sections: Iterable[Section]) -> list[Section]:
    """The sections of an incoming stream: its guest has not suspended its machine yet.

    QEMU 10.0 aborts a secondary that is to go on with a machine that sleeps (``vm_start``): told so by the incoming
    stream, it would do that whatever is loaded behind.
    """
    return [_awake(section) if section.idstr == "globalstate" else section for section in sections]


def _awake(section: Section) -> Section:
    """``vmstate_globalstate`` (``migration/global_state.c``); before 9.0 it does not say that a machine sleeps."""
    fields = [] if section.desc is None else decode(section.payload, section.desc)
    sleeps = next((field for field in fields if field.path == "vm_was_suspended"), None)
    return section if sleeps is None else replace(section, payload=patch(section.payload, sleeps, 0))


def encode(sections: Iterable[Section]) -> bytes:
    """The sections as they go on the wire."""
    return b"".join(section.encode() for section in sections)


def without(sections: Iterable[Section], labels: frozenset[str]) -> list[Section]:
    """All but the named ones."""
    return [section for section in sections if label_of(section) not in labels]


def only(sections: Iterable[Section], labels: frozenset[str]) -> list[Section]:
    """The named ones, in stream order."""
    return [section for section in sections if label_of(section) in labels]


def cpu_labels(recording: Recording) -> frozenset[str]:
    """The sections that are its CPUs: the state that parks the guest."""
    of_a_cpu = recording.architecture.cpu_sections
    return frozenset(label_of(section) for section in recording.sections if section.idstr in of_a_cpu)


def park(section: Section, architecture: Architecture) -> Section:
    """A CPU that is halted and takes no interrupt: no guest code runs, however often the machine is resumed.

    :raises HarnessError: the CPU's state has no field by the expected name
    """
    wanted = architecture.parking.get(section.idstr)
    if wanted is None:
        return section
    if section.desc is None:
        raise HarnessError(f"cannot park: section {section.idstr} is not described")
    fields = decode(section.payload, section.desc)
    payload = section.payload
    for path, change in wanted.items():
        try:
            field = find(fields, path)
        except KeyError as error:
            raise HarnessError(f"cannot park: section {section.idstr} has no field {path}") from error
        payload = patch(payload, field, change(int(field.value or 0)))
    return replace(section, payload=payload)
