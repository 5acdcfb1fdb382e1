# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sentence about what differs between two hosts: what, on which side how, and why it can matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.arch.accel import FAST_ACCEL_S
from harness.facts.compare import FactChange, FactKind, Matters, Weight
from harness.facts.kvm import KvmTried
from harness.facts.model import NotKnown, WhyNotKnown
from harness.qemu.binary import AccelSeen, AccelState
from harness.qemu.msr import msr_label


def fact_change_text(change: FactChange) -> str:
    """All of it in one line."""
    old, new = sides_text(change)
    sides = f": {old} -> {new}" if old or new else ""
    return f"{subject_text(change)}{sides}: {matters_text(change)}"


def subject_text(change: FactChange) -> str:
    """What differs, such as ``virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM``."""
    return _SUBJECTS[change.kind](change)


def _lost_bits(change: FactChange) -> str:
    lost = int(change.old or "0", 16) & ~int(change.new or "0", 16)
    return ", ".join(str(bit) for bit in range(32) if lost >> bit & 1)


_SUBJECTS: Mapping[FactKind, Callable[[FactChange], str]] = {
    FactKind.SYSTEM: lambda change: change.subject,
    FactKind.CPU: lambda change: f"CPU {change.subject.replace('_', ' ')}",
    FactKind.MICROCODE: lambda _: "microcode",
    FactKind.FLAG: lambda change: f"CPU flag {change.subject}",
    FactKind.MORE_FLAGS: lambda _: "CPU flags",
    FactKind.CPUID: lambda change: f"CPUID {change.subject} bits {_lost_bits(change)}",
    FactKind.KVM: lambda _: "KVM",
    FactKind.CAPABILITY: lambda change: f"KVM_CAP_{change.subject}",
    FactKind.MSR: lambda change: msr_label(int(change.subject, 16)),
    FactKind.FEATURE_MSR: lambda change: f"offered value of {msr_label(int(change.subject, 16))}",
    FactKind.MODULE: lambda change: f"module {change.subject}",
    FactKind.PARAMETER: lambda change: f"parameter {change.subject}",
    FactKind.QEMU: lambda _: "QEMU",
    FactKind.MACHINE: lambda change: f"machine type {change.subject}",
    FactKind.DEVICE: lambda change: change.where,
    FactKind.BACKEND: lambda change: f"{change.where}: backend",
    FactKind.FEATURE: lambda change: f"{change.where}: feature {change.subject}",
    FactKind.HOST_FACTS: lambda _: "host facts",
    FactKind.UNKNOWN: lambda change: change.subject,
}
#: What is simply there, and what is not.
_PRESENCE = {
    FactKind.FLAG: ("there", "gone"),
    FactKind.KVM: ("usable", "not usable"),
    FactKind.MSR: ("listed by KVM", "not listed"),
    FactKind.MODULE: ("loaded", "not loaded"),
    FactKind.MACHINE: ("there", "gone"),
    FactKind.DEVICE: ("there", "gone"),
    FactKind.FEATURE: ("offered", "not offered"),
    FactKind.UNKNOWN: ("", "not known"),
}


def sides_text(change: FactChange) -> tuple[str, str]:
    """On the recording side, and on the loading side."""
    if change.kind is FactKind.CPUID:
        return "offered by KVM", "not offered"
    if change.kind is FactKind.MORE_FLAGS:
        names = (change.new or "").split()
        return "", f"{len(names)} more: {' '.join(names)}"
    there, gone = _PRESENCE.get(change.kind, ("", ""))
    old, new = (gone if value is None else value or there for value in (change.old, change.new))
    return old, f"{new}: {accel_text(change.state)}" if change.state else new


def matters_text(change: FactChange) -> str:
    """Why it can matter to a guest."""
    why = _MATTERS[change.matters](change) if change.matters else _WHY[change.kind](change)
    return f"{why}, if the guest ran under KVM" if change.if_kvm else why


_MATTERS: Mapping[Matters, Callable[[FactChange], str]] = {
    Matters.EMULATED: lambda _: "the guest was recorded under TCG, which emulates its CPU and uses none of this",
    Matters.FLAG_PASSED_ON: lambda _: "the guest's CPU model passes the host's flags on",
    Matters.NO_FACTS: lambda _: "the pack holds no facts of the host that recorded it, so nothing can be compared",
    Matters.ERROR: lambda change: change.said,
}


def _system(change: FactChange) -> str:
    if change.subject == "os":
        return "another distribution release brings other builds of QEMU, firmware and kernel"
    return "KVM, vhost and tap are the kernel's, and what they offer changes with it"


def _capability(change: FactChange) -> str:
    lost = ", and KVM lost it" if change.new == "0" else ""
    return f"QEMU sets the guest up by it{lost}"


def _machine(change: FactChange) -> str:
    if change.new is None:
        return f"QEMU {change.said} does not have it, and a state only loads into its own machine type"
    return f"QEMU {change.said} still has it and will lose it: move the guest to a newer one"


def _feature(change: FactChange) -> str:
    if change.weight is Weight.NOTE:
        return "new; a driver that begins to use it cannot go back"
    return "a driver that uses it cannot be loaded where it is not offered"


_WHY: Mapping[FactKind, Callable[[FactChange], str]] = {
    FactKind.SYSTEM: _system,
    FactKind.CPU: lambda _: "a guest under KVM runs on the host's own CPU, and its state may not fit another one",
    FactKind.MICROCODE: lambda _: "microcode can bring and take CPU flags and MSRs",
    FactKind.FLAG: lambda _: "the guest's CPU model may ask for it",
    FactKind.MORE_FLAGS: lambda _: "more than before; it matters on the way back",
    FactKind.CPUID: lambda _: "the guest's CPU model may ask for these bits",
    FactKind.KVM: lambda _: "a guest that ran under KVM cannot run here as it did",
    FactKind.CAPABILITY: _capability,
    FactKind.MSR: lambda _: "QEMU ends when KVM does not take a register that the state brings",
    FactKind.FEATURE_MSR: lambda _: "KVM checks what a guest sets against it",
    FactKind.MODULE: lambda _: "not loaded on this host; it may come when something asks for it",
    FactKind.PARAMETER: lambda _: "it decides what a guest gets",
    FactKind.QEMU: lambda _: "another build of QEMU",
    FactKind.MACHINE: _machine,
    FactKind.DEVICE: lambda _: "the stream has a section for it, and the new side has nobody to load it",
    FactKind.BACKEND: lambda _: "a device offers what its backend can do",
    FactKind.FEATURE: _feature,
    FactKind.HOST_FACTS: lambda change: change.said,
    FactKind.UNKNOWN: lambda change: (
        f"not compared: {not_known_text(change.not_known) if change.not_known else change.said}"
    ),
}


_SEEN: Mapping[AccelSeen, Callable[[AccelState], str]] = {
    AccelSeen.BOOTED: lambda state: f"booted in {state.seconds:.1f} s",
    AccelSeen.LATE: lambda state: f"guest code did not run within {state.seconds:g} s",
    AccelSeen.ENDED: lambda state: state.said,
    AccelSeen.NO_DEVICE: lambda state: f"{state.said} is missing",
    AccelSeen.NOT_OPENED: lambda state: f"{state.said.partition(': ')[0]} cannot be opened{_behind(state.said)}",
    AccelSeen.ERROR: lambda state: state.said,
    AccelSeen.NOT_TRIED: lambda _: "nobody tried to run guest code under it",
    AccelSeen.NOTHING_KNOWN: lambda _: "nothing is known of this host's KVM",
}
_NOT_KNOWN: Mapping[WhyNotKnown, Callable[[str], str]] = {
    WhyNotKnown.ERROR: lambda said: said,
    WhyNotKnown.NOT_SAID: lambda said: f"{said} does not say",
    WhyNotKnown.NOT_TRIED: lambda _: "nobody tried to run guest code under it",
    WhyNotKnown.NOT_ASKED: lambda _: "no machine was asked about",
    WhyNotKnown.NO_MACHINE: lambda said: f"this QEMU has no machine type {said}",
    WhyNotKnown.NO_DEVICE: lambda said: f"{said} is missing",
    WhyNotKnown.NOT_OPENED: lambda said: f"{said.partition(': ')[0]} cannot be opened{_behind(said)}",
    WhyNotKnown.BEHIND_BRIDGE: lambda said: (
        f"slot {said} is behind a bridge, which nobody has set up before firmware ran"
    ),
    WhyNotKnown.NO_INTERFACE: lambda said: f"slot {said} shows neither a modern nor a legacy interface",
}


def _behind(said: str) -> str:
    _, colon, words = said.partition(": ")
    return f"{colon}{words}"


def accel_text(state: AccelState) -> str:
    """What came of running guest code under an accelerator."""
    text = _SEEN[state.seen](state)
    slow = state.seen is AccelSeen.BOOTED and state.seconds > FAST_ACCEL_S
    return f"{text}, more than {FAST_ACCEL_S:g} s: --accel auto takes TCG, which is faster" if slow else text


def not_known_text(why: NotKnown) -> str:
    """Why a fact could not be had."""
    return _NOT_KNOWN[WhyNotKnown(why["why"])](why["said"])


def kvm_text(tried: KvmTried) -> str:
    """Whether state that KVM refuses could be seen, and if not, why."""
    if not tried.state.usable:
        return f"KVM state: could not be tried: {accel_text(tried.state)}"
    silent = ", ".join(tried.silent)
    but = f"; QEMU {silent} goes on without a word when KVM refuses anything but an MSR" if silent else ""
    return f"KVM state: could be tried: {accel_text(tried.state)}{but}"
