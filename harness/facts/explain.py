# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the changes between two hosts a failed load speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.facts.compare import FactChange, FactKind, Weight
from harness.qemu.kvm import kvm_refusals
from harness.stream.virtio import feature_names

#: ``virtio_load``; 11.1 prints twice as many digits, and in the first number only what was not refused.
_FEATURES = re.compile(r"Features 0x([0-9a-f]+) unsupported\. Allowed features: 0x([0-9a-f]+)")
_HEADERS = re.compile(r"virtio-net: saved image requires (vnet_hdr=on|TUN_F_UFO support)")
_MACHINE = re.compile(r"unsupported machine type|Machine type received is|has no machine type")
_NO_SECTION = re.compile(r"Unknown savevm section or instance '([^']+)'")
_FAILED_DEVICE = re.compile(r"error while loading state for instance 0x[0-9a-f]+ of device '([^']+)'")

#: What an MSR needs of the CPU, as ``/proc/cpuinfo`` names it.
_MSR_FLAGS: dict[int, tuple[str, ...]] = {
    0x3B: ("tsc_adjust",), 0x48: ("ibrs", "ssbd", "stibp", "spec_ctrl", "amd_ssbd"), 0xE1: ("waitpkg",),
    0x10A: ("arch_capabilities",), 0x122: ("rtm", "hle"), 0x1C4: ("xfd", "amx_tile"), 0x1C5: ("xfd", "amx_tile"),
    0x345: ("pdcm", "arch_perfmon"), 0x38D: ("arch_perfmon",), 0x38F: ("arch_perfmon",), 0x570: ("intel_pt",),
    0x6E0: ("tsc_deadline_timer",), 0x6E1: ("pks",), 0xD90: ("mpx",), 0xDA0: ("xsaves",), 0x14CE: ("arch_lbr",),
    0xC0000080: ("nx", "lm", "svm"), 0xC0000103: ("rdtscp", "rdpid"), 0xC0000104: ("tsc_scale",),
    0xC0010117: ("svm",), 0xC001011F: ("virt_ssbd",),
}  # fmt: skip
#: What an ioctl's state needs: prefixes of CPU flags, and capabilities.
_IOCTL_FLAGS = {"XSAVE": ("avx", "amx", "mpx", "pku", "xsave"), "XCRS": ("avx", "amx", "mpx", "pku", "xsave")}
_IOCTL_CAPABILITIES = {
    "XSAVE": ("XSAVE", "XSAVE2"), "XCRS": ("XCRS",), "SREGS": ("SREGS2",), "VCPU_EVENTS": ("VCPU_EVENTS", "X86_SMM"),
    "DEBUGREGS": ("DEBUGREGS",), "NESTED_STATE": ("NESTED_STATE",), "PIT2": ("PIT2", "PIT_STATE2"),
    "IRQCHIP": ("IRQCHIP",), "CLOCK": ("ADJUST_CLOCK",), "MP_STATE": ("MP_STATE",),
}  # fmt: skip
_NESTED_PARAMETERS = ("kvm_intel.nested", "kvm_amd.nested", "kvm.nested")
_KVM_AT_LARGE = (FactKind.MICROCODE, FactKind.KVM, FactKind.CPU)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clues:
    """What a log says."""

    refused: tuple[tuple[int, int], ...]
    headers: bool
    machine: bool
    msrs: frozenset[int]
    ioctls: frozenset[str]
    devices: frozenset[str]
    text: str


def explaining(changes: Iterable[FactChange], *, log: str, section: str | None) -> list[FactChange]:
    """Those that the failure of a load speaks of, the closest first; mere notes only when the log names them.

    :param log: what QEMU printed, or why it did not start
    :param section: label of the section that failed, None when nobody knows
    """
    clues = _read(log, section)
    ranked = [(rank, change) for change in changes if (rank := _rank(change, clues)) is not None]
    return [change for _, change in sorted(ranked, key=lambda pair: pair[0])]


def _read(log: str, section: str | None) -> _Clues:
    refusals = kvm_refusals(log)
    devices = {match[1] for pattern in (_NO_SECTION, _FAILED_DEVICE) for match in pattern.finditer(log)}
    return _Clues(
        refused=tuple((int(match[1], 16), int(match[2], 16)) for match in _FEATURES.finditer(log)),
        headers=_HEADERS.search(log) is not None,
        machine=_MACHINE.search(log) is not None,
        msrs=frozenset(refusal.msr for refusal in refusals if refusal.msr is not None),
        ioctls=frozenset(re.sub(r"^KVM_[SG]ET_", "", refusal.ioctl) for refusal in refusals),
        devices=frozenset(devices | ({section} if section else set())),
        text=log,
    )


def _rank(change: FactChange, clues: _Clues) -> int | None:
    """0 for what the log names, 1 for what belongs to it, 2 for what may be behind it; None for the rest."""
    if change.kind in (FactKind.FEATURE, FactKind.BACKEND, FactKind.DEVICE):
        return _rank_device(change, clues)
    if change.kind is FactKind.MACHINE:
        named = clues.machine and change.weight is Weight.EXPLAINS
        return 0 if named else None
    return _rank_kvm(change, clues) if clues.msrs or clues.ioctls else None


def _rank_device(change: FactChange, clues: _Clues) -> int | None:
    if clues.devices and not any(_is_of(change.where, label) for label in clues.devices):
        return None
    if change.kind is FactKind.FEATURE:
        named = any(_is_refused(change, seen, allowed) for seen, allowed in clues.refused)
        return 0 if named and change.new is None else None
    if change.kind is FactKind.BACKEND:
        return 1 if clues.refused or clues.headers else None
    return 0 if clues.devices and _NO_SECTION.search(clues.text) else None


def _is_refused(change: FactChange, seen: int, allowed: int) -> bool:
    kind = change.where.partition(" ")[0]
    if change.subject in feature_names(kind, allowed):
        return False
    # 11.1 has taken the refused bits out of the first number
    return not seen & ~allowed or change.subject in feature_names(kind, seen)


def _is_of(where: str, label: str) -> bool:
    """Whether ``virtio-net 00:05.0`` is the device of section ``0000:00:05.0/virtio-net``."""
    kind, _, slot = where.partition(" ")
    path, _, name = label.partition("#")[0].rpartition("/")
    return name == kind and (not path or path.endswith(slot))


def _rank_kvm(change: FactChange, clues: _Clues) -> int | None:
    if change.kind in (FactKind.MSR, FactKind.FEATURE_MSR):
        return 0 if int(change.subject, 16) in clues.msrs else None
    if change.kind is FactKind.FLAG:
        return 1 if _needs(change.subject, clues) else None
    if change.kind is FactKind.CAPABILITY:
        wanted = {name for ioctl in clues.ioctls for name in _IOCTL_CAPABILITIES.get(ioctl, ())}
        return 0 if change.subject in wanted else None
    if change.kind is FactKind.PARAMETER:
        return 1 if "NESTED_STATE" in clues.ioctls and change.subject in _NESTED_PARAMETERS else None
    at_large = change.kind in _KVM_AT_LARGE or (change.kind, change.subject) == (FactKind.SYSTEM, "kernel")
    return 2 if at_large and change.weight is not Weight.NOTE else None


def _needs(flag: str, clues: _Clues) -> bool:
    if any(flag in _MSR_FLAGS.get(msr, ()) for msr in clues.msrs):
        return True
    prefixes: Sequence[str] = [prefix for ioctl in clues.ioctls for prefix in _IOCTL_FLAGS.get(ioctl, ())]
    return any(flag.startswith(prefix) for prefix in prefixes)
