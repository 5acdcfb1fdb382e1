# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody's VMs before anything is loaded: who records each, what guest is made of it, what is foretold, and which of
them are one machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.adopt.alike import likeness
from harness.adopt.configuration import Configuration
from harness.adopt.files import FoundVm
from harness.adopt.plan import Adopted, Known, adopt_plan, check_adopted, known_to, plain_machine, said_machine
from harness.adopt.recorder import architecture_of_vm, has_machine, qemus_here, runs_under_kvm
from harness.adopt.recording import for_our_guest
from harness.arch import Architecture
from harness.errors import PostloadError, UsageError
from harness.guests.origin import LeftOut, VmOrigin, Without
from harness.guests.plan import GuestPlan
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary, find_binary, probe_binary
from harness.qualify.fleet import Obstacle, Unjudged, VmAnswer
from harness.qualify.foretold import BinaryWords, Foretold, Sides, foretell
from harness.qualify.model import Answer

#: Parts of a VM that are not in its guest, so that no answer is about them.
_NOT_THERE = frozenset(
    {Without.HOST, Without.TYPE, Without.CPU, Without.BUS, Without.PROGRAM}
    | {Without.START, Without.SAVE, Without.MIGRATION, Without.LOST}
)
#: A whole element of a libvirt domain; of a part of one the device is there.
_UNREAD_DEVICE = re.compile(r"devices/[^/@]+")
_ACCEL = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedVm:
    """A VM that a guest was made of.

    :param key: that VMs of the same devices share
    :param kvm: it runs under KVM, wherever it does
    """

    recorder: QemuBinary
    loader: QemuBinary
    known: Known
    adopted: Adopted
    key: str
    kvm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVm:
    """A VM and what is known of it before anything is loaded.

    :param guest: None where it is not to be tried; its ``obstacle`` says why
    """

    vm: VmAnswer
    foretold: tuple[Foretold, ...] = ()
    guest: AdoptedVm | None = None


class Builds:
    """The QEMUs that VMs run on, and the one that they are to run on.

    :param source: name of the QEMU that they run on; None: for each VM the host's own where that has its machine type,
        else the oldest installed one that has
    :param target: name of the new QEMU; for an architecture of its own, such as ``10.0`` of ``10.0-aarch64``
    :raises UsageError: there is no such QEMU
    """

    def __init__(self, source: str | None, target: str) -> None:
        self._source, self._target = source, target
        self._known: dict[str, QemuBinary] = {}
        self._here: dict[str, list[QemuBinary]] = {}
        self._words: dict[str, BinaryWords] = {}
        # what was typed wrong is told before anything else is done
        for name in filter(None, (source, target)):
            find_binary(name)

    @property
    def named(self) -> QemuBinary:
        """The new QEMU as it was named, whatever it runs guests of."""
        return self._probed(self._target)

    def loader(self, architecture: Architecture) -> QemuBinary:
        """The new QEMU.

        :raises UsageError: it is not here for this architecture; says what to install
        """
        return self._named(self._target, architecture)

    def recorders(self, architecture: Architecture) -> list[QemuBinary]:
        """QEMUs that VMs may run on, the first choice first.

        :raises UsageError: the one that was named is not here for this architecture
        """
        if self._source is not None:
            return [self._named(self._source, architecture)]
        if architecture.name not in self._here:
            self._here[architecture.name] = list(qemus_here(architecture))
        return self._here[architecture.name]

    def words(self, binary: QemuBinary) -> BinaryWords:
        """What a build says of itself, asked once."""
        return self._words.setdefault(binary.path, BinaryWords(binary))

    def _named(self, name: str, architecture: Architecture) -> QemuBinary:
        binary = self._probed(name)
        if binary.target == architecture.name:
            return binary
        other = f"{name}-{architecture.name}"
        try:
            binary = self._probed(other)
        except UsageError as error:
            raise UsageError(f"QEMU {name} runs no guests of {architecture.name}, and {error}") from error
        if binary.target != architecture.name:
            raise UsageError(f"QEMU {other} runs no guests of {architecture.name}")
        return binary

    def _probed(self, name: str) -> QemuBinary:
        if name not in self._known:
            self._known[name] = probe_binary(find_binary(name))
        return self._known[name]


def look(found: FoundVm, builds: Builds) -> KnownVm:
    """What is known of a VM without a load."""
    vm = VmAnswer(name=found.name, source=found.source, answer=Answer.NONE)
    if found.configuration is None:
        return KnownVm(vm=replace(vm, obstacle=Obstacle.UNREADABLE, said=found.error))
    said = said_machine(found.configuration)
    try:
        return _looked(replace(vm, machine=said), found.configuration, builds)
    except PostloadError as error:
        why = str(error).removeprefix(f"{found.configuration.source}: ")
        return KnownVm(vm=replace(vm, machine=said, obstacle=Obstacle.NOT_ADOPTED, said=why))


def _looked(vm: VmAnswer, configuration: Configuration, builds: Builds) -> KnownVm:
    architecture = architecture_of_vm(configuration)
    loader, recorders = builds.loader(architecture), builds.recorders(architecture)
    machine = plain_machine(vm.machine)
    able = [binary for binary in recorders if has_machine(binary, machine)]
    if not recorders:
        raise UsageError(f"no QEMU here runs guests of {architecture.name}: expected --from QEMU")
    recorder = next((b for b in able if b.sha256 != loader.sha256), (able or recorders)[0])
    sides = Sides(
        recorder=recorder,
        loader=loader,
        recorder_words=builds.words(recorder),
        loader_words=builds.words(loader),
    )
    found = recorder.machine(machine) if machine else None
    name = found.name if found is not None else machine
    vm = replace(vm, machine=name or vm.machine)
    if not able or recorder.sha256 == loader.sha256:
        obstacle = Obstacle.SAME_QEMU if able else Obstacle.NO_RECORDER
        return KnownVm(vm=replace(vm, obstacle=obstacle), foretold=foretell(configuration, name, sides))
    known = known_to(recorder, configuration, machine)
    vm = replace(vm, machine=known.machine, recorder=recorder.version)
    foretold = foretell(configuration, known.machine, sides)
    adopted = adopt_plan(configuration, known)
    check_adopted(adopted, known, recorder.path, _ACCEL)
    vm = replace(vm, replaced=len(adopted.origin.replaced), unjudged=unjudged_of(adopted.origin))
    kvm = runs_under_kvm(configuration)
    key = f"{recorder.sha256}-{loader.sha256}-{kvm}-{likeness(_recorded(adopted))}"
    guest = AdoptedVm(recorder=recorder, loader=loader, known=known, adopted=adopted, key=key, kvm=kvm)
    return KnownVm(vm=vm, foretold=foretold, guest=guest)


def _recorded(adopted: Adopted) -> GuestPlan:
    """As much of a guest's memory and CPUs as it is recorded with: VMs that differ in the rest are one machine."""
    bare = PlannedGuest(devices=(), plan=adopted.plan)
    return for_our_guest(bare, adopted.origin, 1)[0].plan


def unjudged_of(origin: VmOrigin) -> tuple[Unjudged, ...]:
    """Devices that are not in the guest."""
    return tuple(_unjudged(left) for left in origin.left_out if _is_missing(left))


def _is_missing(left: LeftOut) -> bool:
    return left.why in _NOT_THERE or (left.why is Without.UNREAD and _UNREAD_DEVICE.fullmatch(left.type) is not None)


def _unjudged(left: LeftOut) -> Unjudged:
    return Unjudged(device=left.id or left.type, type=left.type, why=left.why)


def alike(known: Iterable[KnownVm]) -> dict[str, list[KnownVm]]:
    """VMs that are tried together, the first of each to be loaded."""
    groups: dict[str, list[KnownVm]] = {}
    for each in known:
        if each.guest is not None:
            groups.setdefault(each.guest.key, []).append(each)
    return groups


def any_loader(builds: Builds, known: Sequence[KnownVm]) -> QemuBinary:
    """The new QEMU as the fleet's document names it: that of the first VM which has one, else as it was named."""
    for each in known:
        if each.guest is not None:
            return each.guest.loader
    return builds.named
