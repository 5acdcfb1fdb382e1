# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sections are a device's own: those that a stopped machine saves with it and not without it.

The devices of a guest are added one after the other, in the order of its command line, so that a section which is
there once more (``slirp#1``) falls to the device that brought it. A QEMU that does not start with a device, or does
not save it, costs that device alone. One start takes a fifth of a second, and its answer is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.cache import keep_answer, kept_answer
from harness.errors import DeadlineError, QemuError, Unmigratable, UnsavedError
from harness.guests.lack import Lack, Lacks
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Hindrances, only_slow, undisturbed
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.state.transforms import labels_of
from harness.stream.model import Stream
from harness.stream.reader import open_stream

SAVE_TIMEOUT_S = 60.0
#: ``warn_report`` (``util/error-report.c``).
_WARNING = re.compile(r"qemu-system-[^\n]*?warning: [^\n]*(\n|$)")
#: Raise it when the same question gets another answer.
_ANSWERS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """What the devices of a guest own.

    :param sections: device to the labels of its sections; what is in none is the platform's
    :param refused: device to why it cannot be judged in this guest
    """

    sections: Mapping[str, Sequence[str]]
    refused: Mapping[str, Lack] = field(default_factory=dict)

    def split(self, labels: Iterable[str], devices: Sequence[str], rest: str | None) -> dict[str, list[str]]:
        """Who owns which of some sections: what a device shows later, below its own bus path, is its own too.

        :param rest: the device that owns what is in none, None where nobody does
        """
        owned: dict[str, list[str]] = {name: [] for name in devices}
        for label in labels:
            owner = self._owner(label) or rest
            if owner in owned:
                owned[owner].append(label)
        return owned

    def _owner(self, label: str) -> str | None:
        for name, sections in self.sections.items():
            if label in sections:
                return name
        folder = label.rpartition("/")[0]
        for name, sections in self.sections.items():
            if folder and any(section.rpartition("/")[0] == folder for section in sections):
                return name
        return None


def find_owners(
    binary: QemuBinary,
    guest: PlannedGuest,
    accel: str,
    scope: ProcessScope | None = None,
    foreign: Path | None = None,
) -> Owners:
    """Ask a QEMU which sections each device of a guest adds.

    :param scope: of the run, for the QEMUs that are asked
    :param foreign: where the guest's plan came from, when that is not this program
    :raises QemuError: the machine does not start, or cannot be saved, with none of them
    :raises Disturbed: the host disturbed each try
    """
    return undisturbed(partial(_find_owners, binary, guest, accel, scope, foreign), _may_be_false)


def _may_be_false(found: Owners, hindered: Hindrances) -> bool:
    """A QEMU that was stopped or ended looks like one that does not start with a device."""
    return bool(found.refused) and not only_slow(hindered)


def _find_owners(
    binary: QemuBinary, guest: PlannedGuest, accel: str, scope: ProcessScope | None, foreign: Path | None
) -> Owners:
    names = [device.name for device in guest.devices if not device.rest]
    found: dict[str, list[str]] = {}
    refused: dict[str, Lack] = {}

    def ask(plan: GuestPlan) -> list[str]:
        return saved_labels(binary, plan, accel, scope, foreign)

    before = set(ask(guest.without(frozenset(names)).plan))
    for number, name in enumerate(names):
        # what saves nothing may be what others are plugged into
        lost = {each for each, lack in refused.items() if lack.what is not Lacks.SECTION}
        try:
            after = ask(guest.without(frozenset({*names[number + 1 :], *lost})).plan)
        except (QemuError, DeadlineError) as error:
            refused[name] = lack_of(error, binary, guest.plan.machine)
            continue
        own = [label for label in after if label not in before]
        if own:
            found[name], before = own, set(after)
        else:
            refused[name] = Lack(what=Lacks.SECTION, machine=guest.plan.machine, qemu=binary.version)
    return Owners(sections=found, refused=refused)


def settled(
    binary: QemuBinary, guest: PlannedGuest, accel: str, scope: ProcessScope | None = None
) -> tuple[PlannedGuest, Owners]:
    """The guest without the devices that cannot be judged in it, and who owns what.

    :raises QemuError: the machine does not start with none of them
    :raises Disturbed: the host disturbed each try
    """
    owners = find_owners(binary, guest, accel, scope)
    return guest.without(frozenset(owners.refused)), owners


def saved_labels(
    binary: QemuBinary, plan: GuestPlan, accel: str, scope: ProcessScope | None, foreign: Path | None = None
) -> list[str]:
    """Labels of the sections that a machine saves before it has run; kept by all that they depend on.

    :raises Unmigratable: a device blocks it
    :raises UnsavedError: QEMU dies while it saves it
    :raises QemuError: the machine does not start
    """
    bare = plan.unbooted()
    text = json.dumps([_ANSWERS, binary.sha256, binary.path, accel, bare.model_dump(mode="json")], sort_keys=True)
    key = f"owners/{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    labels: list[str] | None = kept_answer(key)
    if labels is None:
        labels = _ask(binary, Machine(plan=bare, accel=accel, foreign=foreign), scope)
        keep_answer(key, labels)
    return labels


def _ask(binary: QemuBinary, machine: Machine, scope: ProcessScope | None) -> list[str]:
    with saved_stopped(binary, machine, scope) as stream:
        return labels_of(stream.devices)


@contextlib.contextmanager
def saved_stopped(binary: QemuBinary, machine: Machine, scope: ProcessScope | None) -> Iterator[Stream]:
    """A machine that has never run, saved; good as long as the block lasts.

    :raises Unmigratable: a device blocks it
    :raises UnsavedError: QEMU dies while it saves it
    :raises QemuError: the machine does not start
    """
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir, scope=scope) as vm:
        sink = workdir / "owners.stream"
        _save(vm, sink)
        with open_stream(sink) as stream:
            yield stream


def _save(vm: Vm, sink: Path) -> None:
    vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
    try:
        migrate_to_socket(vm, vm.workdir / "migrate.sock", sink, timeout_s=SAVE_TIMEOUT_S)
    except Unmigratable:
        raise
    except CommandRefused as error:
        # 5.2 refuses a machine with such a device and does not call it blocked
        raise Unmigratable(str(error)) from error
    except QemuError as error:
        ended = vm.ended(1.0)
        said = f"QEMU ended with {ended}: {vm.process.stderr().strip()}" if ended else error
        raise UnsavedError(f"while the machine was saved: {said}") from error


def lack_of(error: QemuError | DeadlineError, binary: QemuBinary, machine: str) -> Lack:
    """Why a device is not to be had, by what :func:`saved_labels` raised with it."""
    what = Lacks.START
    if isinstance(error, Unmigratable):
        what = Lacks.MIGRATION
    elif isinstance(error, UnsavedError):
        what = Lacks.SAVE
    return Lack(what=what, machine=machine, qemu=binary.version, said=short(error))


def short(error: Exception) -> str:
    """The end of what an error says, in one line and without warnings."""
    return " ".join(_WARNING.sub("", str(error)).split())[-400:]
