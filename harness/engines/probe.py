# SPDX-License-Identifier: GPL-2.0-or-later
"""Find out how a build wants its COLO primary to speak, and whether it resets before a load: by trying it.

A small machine that never runs a guest instruction records itself, and is then loaded in each dialect in turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.arch import Architecture, Witness, architecture_named
from harness.cache import cache_root
from harness.colo.primary import DIALECTS, ChannelBroken, Dialect
from harness.engines.secondary import Secondary
from harness.errors import PostloadError, QemuError, Stopped
from harness.files import write_atomically
from harness.guests.machine import Machine, firmware_sink, small_machine
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import undisturbed
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.state.transforms import encode, label_of, park, without
from harness.stream.fields import find, patch
from harness.stream.model import Section, Stream
from harness.stream.reader import open_stream, read_stream
from harness.stream.vmdesc import VmDesc, decode

PROBE_TIMEOUT_S = 10.0
_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ColoAbility:
    """How a build does COLO.

    :param resets_before_load: the machine is reset before each device load, so that only loads within one
        buffer are loads into a used device; None when it could not be told
    """

    dialect: Dialect
    resets_before_load: bool | None


def probe_colo(binary: QemuBinary, scope: ProcessScope | None = None) -> ColoAbility:
    """Try the dialects on a small machine; the answer is kept by the binary's hash.

    :param scope: of the run that asks
    :raises QemuError: the build cannot be a COLO secondary, or speaks a dialect that is not known; the message
        says what each attempt gave
    """
    if "x-colo" not in binary.capabilities:
        raise QemuError(
            f"{binary.path} has no migration capability x-colo: it was built without replication (COLO) support"
        )
    kept = cache_root() / "probe" / f"{binary.sha256}-colo-{_SCHEMA}.json"
    try:
        answer = json.loads(kept.read_text())
        return ColoAbility(
            dialect={dialect.name: dialect for dialect in DIALECTS}[answer["dialect"]],
            resets_before_load=answer["resets_before_load"],
        )
    except (OSError, ValueError, KeyError):
        ability = undisturbed(
            lambda: _try_all(binary, scope or ProcessScope()), lambda found, _: found.resets_before_load is None
        )
    text = json.dumps({"dialect": ability.dialect.name, "resets_before_load": ability.resets_before_load})
    write_atomically(kept, text.encode())
    return ability


def _try_all(binary: QemuBinary, scope: ProcessScope) -> ColoAbility:
    architecture = architecture_named(binary.target)
    machine = _small_machine(binary, architecture)
    workdir = new_workdir()
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir, scope=scope) as vm:
        sink = workdir / "probe.stream"
        migrate_to_socket(vm, workdir / "migrate.sock", sink, timeout_s=PROBE_TIMEOUT_S)
        with open_stream(sink) as stream:
            return _first_that_works(binary, machine, stream, scope)


def _small_machine(binary: QemuBinary, architecture: Architecture) -> Machine:
    found = next(filter(None, map(binary.machine, architecture.probe_machines)), None)
    if found is None:
        wanted = " nor ".join(architecture.probe_machines)
        raise QemuError(f"{binary.path} has no machine {wanted}: nothing to probe COLO with")
    return small_machine(found.name, memory_mib=architecture.probe_memory_mib)


def _first_that_works(binary: QemuBinary, machine: Machine, stream: Stream, scope: ProcessScope) -> ColoAbility:
    failures = []
    for dialect in DIALECTS:
        try:
            resets = _attempt(binary, machine, stream, dialect, scope)
        except Stopped:
            raise
        except (PostloadError, ChannelBroken) as error:
            failures.append(f"{dialect.name}: {error}")
        else:
            return ColoAbility(dialect=dialect, resets_before_load=resets)
    raise QemuError(f"{binary.path} speaks no COLO dialect that is known: {'; '.join(failures)}")


def _attempt(
    binary: QemuBinary, machine: Machine, stream: Stream, dialect: Dialect, scope: ProcessScope
) -> bool | None:
    """One session with two checkpoints; raises when it breaks."""
    assert stream.vmdesc is not None  # a plain migration always ends with one
    architecture = architecture_named(binary.target)
    witness = architecture.witness
    sections = [park(section, architecture) for section in stream.devices]
    with Secondary(binary, machine, dialect, timeout_s=PROBE_TIMEOUT_S, scope=scope) as secondary:
        body = bytes(stream.buffer[len(stream.head) : stream.devices[0].offset])
        secondary.start(stream.head, (body, encode(sections) + b"\0", stream.vmdesc.raw))
        secondary.primary.checkpoint(encode(_marked(sections, witness)))
        secondary.primary.checkpoint(encode(without(sections, frozenset({witness.section}))))
        return _was_reset(secondary.vm, stream.vmdesc, witness)


def _marked(sections: Sequence[Section], witness: Witness) -> list[Section]:
    return [_with_mark(s, witness) if label_of(s) == witness.section else s for s in sections]


def _with_mark(section: Section, witness: Witness) -> Section:
    assert section.desc is not None  # the section came out of a stream with this description
    field = find(decode(section.payload, section.desc), witness.field)
    return replace(section, payload=patch(section.payload, field, witness.value))


def _was_reset(vm: Vm, vmdesc: VmDesc, witness: Witness) -> bool | None:
    saved: Path = vm.workdir / "after.state"
    vm.qmp("stop")
    vm.qmp("xen-save-devices-state", filename=str(saved))
    for section in read_stream(saved.read_bytes(), vmdesc=vmdesc).devices:
        if label_of(section) == witness.section and section.desc is not None:
            return find(decode(section.payload, section.desc), witness.field).value != witness.value
    return None
