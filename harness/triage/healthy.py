# SPDX-License-Identifier: GPL-2.0-or-later
"""States of a section with which nothing is expected to fail, to compare a failing one with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.guests.machine import Machine, firmware_sink
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm, migrate_to_socket
from harness.state.transforms import label_of
from harness.stream.fields import Field
from harness.stream.model import Section
from harness.stream.reader import open_stream
from harness.stream.vmdesc import decode

SAVE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyState:
    """One section."""

    payload: bytes
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """Sections by their label, and the phase that they come from; empty for a machine that never ran."""

    phase: str
    state: Mapping[str, HealthyState]


def recorded_donors(pack: StatePack, phase: str, labels: Sequence[str]) -> Iterator[Donor]:
    """The same sections in other phases, each different state once, the latest first."""
    seen = {_payloads(pack, phase, labels)}
    for other in reversed(pack.phases):
        payloads = _payloads(pack, other, labels)
        if len(payloads) == len(labels) and payloads not in seen:
            seen.add(payloads)
            recording = pack.recordings[other]
            yield Donor(phase=other, state=_states(recording.sections, labels))


def never_run(binary: QemuBinary, machine: Machine) -> Donor:
    """The state of a machine that has not executed one instruction.

    :raises QemuError: it does not start, or cannot be saved
    :raises DeadlineError: it takes too long
    """
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        sink = workdir / "never-run.stream"
        migrate_to_socket(vm, workdir / "migrate.sock", sink, timeout_s=SAVE_TIMEOUT_S)
        with open_stream(sink) as stream:
            sections = tuple(stream.devices)
            state = _states(sections, [label_of(section) for section in sections])
    return Donor(phase="", state=state)


def _payloads(pack: StatePack, phase: str, labels: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(s.payload for s in pack.recordings[phase].sections if label_of(s) in labels)


def _states(sections: Sequence[Section], labels: Sequence[str]) -> dict[str, HealthyState]:
    found = {}
    for section in sections:
        if label_of(section) in labels and section.desc is not None:
            fields = decode(section.payload, section.desc)
            found[label_of(section)] = HealthyState(payload=section.payload, fields=fields)
    return found
