# SPDX-License-Identifier: GPL-2.0-or-later
"""Does COLO start with a machine at all? Some devices have QEMU refuse it, whatever their state is.

virtio-mem is one: a secondary mirrors all of its RAM and cannot let parts be discarded
(``migration_incoming_enable_colo``). It is found by what happens and not by its words: the machine's own saved state is
taken by an ordinary migration, and refused when the same stream enables COLO, before any checkpoint.

Others have a secondary die of the guest's memory alone, whatever sections are in the stream: a small memory backend
does under TCG. No section can be blamed for that, so it would be held against every device of the guest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from harness.cache import keep_answer, kept_answer
from harness.colo.primary import ChannelBroken, Dialect
from harness.engines.evidence import own_words
from harness.engines.incoming import send_all
from harness.engines.probe import ColoAbility
from harness.engines.secondary import Secondary, connect_incoming
from harness.guests.lack import Lack, Lacks
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import standing_on
from harness.guests.planner import PlannedGuest
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.disturbance import Hindrances, only_slow, undisturbed
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.monitor import CommandRefused, SessionClosed
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.stream.model import Stream
from harness.stream.reader import open_stream

TIMEOUT_S = 30.0
_END_WAIT_S = 1.0
#: Raise it when the same question gets another answer.
_ANSWERS = 3

#: The machine with some of its devices alone.
MachineWith = Callable[[Collection[str]], Machine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What COLO makes of the devices of a guest before any checkpoint.

    :param refused: devices that QEMU does not start COLO with, and why
    :param breaking: devices with which a secondary dies of a stream that has no section of any device
    """

    refused: Mapping[str, Lack] = field(default_factory=dict)
    breaking: frozenset[str] = frozenset()


class _Answer(TypedDict):
    """Of one machine.

    :param well: its secondary comes to the first checkpoint; where it does not, what keeps it from that may hide what
        another device does
    :param refused: QEMU's words where it refuses COLO
    :param dies: its secondary dies without any section
    """

    well: bool
    refused: str | None
    dies: bool


def guest_admission(
    binary: QemuBinary, ability: ColoAbility, guest: PlannedGuest, accel: str, scope: ProcessScope
) -> Admission:
    """Which devices of a guest COLO does not start with, or does not live with; both empty where all is well.

    :raises QemuError: a machine does not start, or is not saved
    """

    def machine_with(names: Collection[str]) -> Machine:
        return Machine(plan=guest.only(names).plan, accel=accel)

    return _admission(binary, ability.dialect, machine_with, guest.names, scope)


def pack_admission(binary: QemuBinary, ability: ColoAbility, pack: StatePack, scope: ProcessScope) -> Admission:
    """The same for the guest of a state pack, in which a device may be plugged into another one.

    :raises QemuError: a machine does not start, or is not saved
    """
    whole, plan = pack.machine, pack.manifest.plan

    def machine_with(names: Collection[str]) -> Machine:
        wanted = standing_on(plan, [each.id for each in plan.devices if not each.owner or each.owner in names])
        return replace(whole, plan=plan.with_devices(tuple(each for each in plan.devices if each.id in wanted)))

    names = [device.name for device in pack.manifest.devices if not device.recipe.rest]
    return _admission(binary, ability.dialect, machine_with, names, scope)


def _admission(
    binary: QemuBinary, dialect: Dialect, machine_with: MachineWith, names: Collection[str], scope: ProcessScope
) -> Admission:
    """Where the machine is not well with all of them, those are asked alone that are not well in its halves either."""

    def ask(some: Collection[str]) -> _Answer:
        return _answer(binary, dialect, machine_with(some), scope)

    found = _unwell(list(names), ask)
    # a machine that dies without any of them is nobody's fault
    dying = {name for name, answer in found.items() if answer["dies"]}
    machine = machine_with(()).name
    return Admission(
        refused={
            name: Lack(what=Lacks.COLO, machine=machine, qemu=binary.version, said=answer["refused"])
            for name, answer in found.items()
            if answer["refused"] is not None
        },
        breaking=frozenset(dying if dying and not ask(())["dies"] else ()),
    )


def _unwell(names: Sequence[str], ask: Callable[[Collection[str]], _Answer]) -> dict[str, _Answer]:
    """The devices with which alone a secondary is not well, each with its answer."""
    answer = ask(names) if names else None
    if answer is None or answer["well"]:
        return {}
    if len(names) == 1:
        return {names[0]: answer}
    half = len(names) // 2
    return _unwell(names[:half], ask) | _unwell(names[half:], ask)


def _answer(binary: QemuBinary, dialect: Dialect, machine: Machine, scope: ProcessScope) -> _Answer:
    """What comes of starting COLO with a machine. It is no refusal where the machine's own state is not taken by an
    ordinary migration either. Kept by all that it depends on, but where it did not come in time."""
    bare = replace(machine, boot=None, plan=machine.plan.unbooted())
    asked = [_ANSWERS, binary.sha256, binary.path, dialect.name, bare.accel, bare.plan.model_dump(mode="json")]
    key = f"colo/{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]}.json"
    kept: _Answer | None = kept_answer(key)
    if kept is not None:
        return kept
    answer = undisturbed(partial(_ask, binary, dialect, bare, scope), _may_be_false)
    if answer is None:
        return _Answer(well=False, refused=None, dies=False)
    keep_answer(key, answer)
    return answer


def _may_be_false(answer: _Answer | None, hindered: Hindrances) -> bool:
    return (answer is None or not answer["well"]) and not only_slow(hindered)


def _ask(binary: QemuBinary, dialect: Dialect, machine: Machine, scope: ProcessScope) -> _Answer | None:
    """None where the secondary did not come to the first checkpoint in time."""
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir, scope=scope) as vm:
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        sink = workdir / "own.stream"
        migrate_to_socket(vm, workdir / "migrate.sock", sink, timeout_s=TIMEOUT_S)
        with open_stream(sink) as stream:
            end = _under_colo(binary, dialect, machine, stream, scope)
            if end.late:
                return None
            if end.crashed:
                bare = _under_colo(binary, dialect, machine, stream, scope, sections=False)
                return _Answer(well=False, refused=None, dies=bare.crashed)
        taken = end.said is not None and _is_taken(binary, machine, sink, scope)
        return _Answer(well=end.said is None, refused=end.said if taken else None, dies=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a secondary fared up to its first checkpoint.

    :param said: its words where it refused; None where it comes there, and where it crashes or hangs
    """

    said: str | None = None
    crashed: bool = False
    late: bool = False


def _under_colo(
    binary: QemuBinary,
    dialect: Dialect,
    machine: Machine,
    stream: Stream,
    scope: ProcessScope,
    *,
    sections: bool = True,
) -> _End:
    """Bring a secondary up to its first checkpoint.

    :param sections: with those of the devices; else with memory alone
    """
    body = bytes(stream.buffer[len(stream.head) :]) if sections else _memory_alone(stream)
    try:
        secondary = Secondary(binary, machine, dialect, timeout_s=TIMEOUT_S, scope=scope)
    except CommandRefused as error:
        return _End(said=str(error))
    with secondary:
        try:
            secondary.start(stream.head, (body,))
        except ChannelBroken as error:
            ended = secondary.vm.ended(_END_WAIT_S)
            if ended is not None and ended.crashed:
                return _End(crashed=True)
            if error.kind == "late":
                return _End(late=True)
            lines = own_words(secondary.vm.process.stderr()).splitlines()
            told = next((line for line in lines if "COLO" in line), lines[0] if lines else "")
            return _End(said=re.sub(r"^\S*qemu\S*: ", "", told))
        return _End()


def _memory_alone(stream: Stream) -> bytes:
    """What follows the head of a stream, without any section of a device."""
    ram = b"".join(piece for section in stream.ram for piece in section.encode(stream.buffer))
    return ram + b"\0" + (b"" if stream.vmdesc is None else stream.vmdesc.raw)


def _is_taken(binary: QemuBinary, machine: Machine, sink: Path, scope: ProcessScope) -> bool:
    """Whether an ordinary migration takes it."""
    workdir = new_workdir()
    machine.make_files(workdir)
    incoming = Option(name="incoming", first="defer")
    command = machine.command(binary.path, workdir, firmware_sink(), incoming)
    with Vm(command, workdir=workdir, scope=scope) as vm:
        with connect_incoming(vm, TIMEOUT_S) as sock:
            send_all(sock, [sink.read_bytes()], vm.deadline(TIMEOUT_S))
        try:
            info = vm.monitor.poll_until("query-migrate", lambda info: stage_of(info).over, timeout_s=TIMEOUT_S)
        except SessionClosed:  # it leaves when it is done with a stream that it does not take
            return False
        return stage_of(info) is Stage.COMPLETED
