# SPDX-License-Identifier: GPL-2.0-or-later
"""Does COLO start with a machine at all? Some devices have QEMU refuse it, whatever their state is.

virtio-mem is one: a secondary mirrors all of its RAM and cannot let parts be discarded
(``migration_incoming_enable_colo``). It is found by what happens and not by its words: the machine's own saved state is
taken by an ordinary migration, and refused when the same stream enables COLO, before any checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.cache import keep_answer, kept_answer
from harness.colo.primary import ChannelBroken, Dialect
from harness.engines.evidence import own_words
from harness.engines.incoming import send_all
from harness.engines.probe import ColoAbility
from harness.engines.secondary import Secondary, connect_incoming
from harness.guests.lack import Lack, Lacks
from harness.guests.machine import Machine, firmware_sink
from harness.guests.planner import PlannedGuest
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.disturbance import undisturbed
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.stream.reader import open_stream

TIMEOUT_S = 30.0
_END_WAIT_S = 1.0
#: Raise it when the same question gets another answer.
_ANSWERS = 1

#: The machine with some of its devices alone.
MachineWith = Callable[[Collection[str]], Machine]


def guest_refusals(
    binary: QemuBinary, ability: ColoAbility, guest: PlannedGuest, accel: str, scope: ProcessScope
) -> Mapping[str, Lack]:
    """The devices of a guest that a QEMU does not start COLO with; empty where it starts with all of them.

    :raises QemuError: a machine does not start, or is not saved
    """

    def machine_with(names: Collection[str]) -> Machine:
        return Machine(plan=guest.only(names).plan, accel=accel)

    return _refusals(binary, ability.dialect, machine_with, guest.names, scope)


def pack_refusals(binary: QemuBinary, ability: ColoAbility, pack: StatePack, scope: ProcessScope) -> Mapping[str, Lack]:
    """The same of the guest of a state pack.

    :raises QemuError: a machine does not start, or is not saved
    """
    whole = pack.machine

    def machine_with(names: Collection[str]) -> Machine:
        return replace(whole, plan=whole.plan.only(names))

    names = [device.name for device in pack.manifest.devices if not device.recipe.rest]
    return _refusals(binary, ability.dialect, machine_with, names, scope)


def _refusals(
    binary: QemuBinary, dialect: Dialect, machine_with: MachineWith, names: Collection[str], scope: ProcessScope
) -> Mapping[str, Lack]:
    """Each device is asked alone, where the machine with all of them is refused."""
    if not names or _refusal(binary, dialect, machine_with(names), scope) is None:
        return {}
    said = {name: _refusal(binary, dialect, machine_with((name,)), scope) for name in names}
    machine = machine_with(()).name
    return {
        name: Lack(what=Lacks.COLO, machine=machine, qemu=binary.version, said=words)
        for name, words in said.items()
        if words is not None
    }


def _refusal(binary: QemuBinary, dialect: Dialect, machine: Machine, scope: ProcessScope) -> str | None:
    """QEMU's words where it does not start COLO with a machine; None where it does, or where the machine's own state
    is not taken by an ordinary migration either. Kept by all that it depends on."""
    bare = replace(machine, boot=None, plan=machine.plan.unbooted())
    asked = [_ANSWERS, binary.sha256, binary.path, dialect.name, bare.accel, bare.plan.model_dump(mode="json")]
    key = f"colo/{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]}.json"
    kept: dict[str, str | None] | None = kept_answer(key)
    if kept is None:
        kept = {"refused": undisturbed(partial(_ask, binary, dialect, bare, scope), lambda said, _: said is not None)}
        keep_answer(key, kept)
    return kept["refused"]


def _ask(binary: QemuBinary, dialect: Dialect, machine: Machine, scope: ProcessScope) -> str | None:
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir, scope=scope) as vm:
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        sink = workdir / "own.stream"
        migrate_to_socket(vm, workdir / "migrate.sock", sink, timeout_s=TIMEOUT_S)
        said = _under_colo(binary, dialect, machine, sink, scope)
        return said if said is not None and _is_taken(binary, machine, sink, scope) else None


def _under_colo(binary: QemuBinary, dialect: Dialect, machine: Machine, sink: Path, scope: ProcessScope) -> str | None:
    """What a secondary says that does not come to its first checkpoint; None for one that does, and for one that
    crashes or hangs, which is for the loads to find."""
    try:
        secondary = Secondary(binary, machine, dialect, timeout_s=TIMEOUT_S, scope=scope)
    except CommandRefused as error:
        return str(error)
    with secondary, open_stream(sink) as stream:
        try:
            secondary.start(stream.head, (bytes(stream.buffer[len(stream.head) :]),))
        except ChannelBroken as error:
            ended = secondary.vm.ended(_END_WAIT_S)
            if error.kind == "late" or (ended is not None and ended.crashed):
                return None
            lines = own_words(secondary.vm.process.stderr()).splitlines()
            told = next((line for line in lines if "COLO" in line), lines[0] if lines else "")
            return re.sub(r"^\S*qemu\S*: ", "", told)
        return None


def _is_taken(binary: QemuBinary, machine: Machine, sink: Path, scope: ProcessScope) -> bool:
    """Whether an ordinary migration takes it."""
    workdir = new_workdir()
    machine.make_files(workdir)
    incoming = Option(name="incoming", first="defer")
    command = machine.command(binary.path, workdir, firmware_sink(), incoming)
    with Vm(command, workdir=workdir, scope=scope) as vm:
        with connect_incoming(vm, TIMEOUT_S) as sock:
            send_all(sock, [sink.read_bytes()], vm.deadline(TIMEOUT_S))
        if vm.ended():
            return False
        info = vm.monitor.poll_until("query-migrate", lambda info: stage_of(info).over, timeout_s=TIMEOUT_S)
        return stage_of(info) is Stage.COMPLETED
