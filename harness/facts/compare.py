# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two hosts, and how much of it can matter to a guest that goes from the one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from harness.facts.collect import check_facts
from harness.facts.kvm import kvm_came
from harness.facts.model import BuildFacts, HostFacts, KvmFacts, MachineEntry, MsrEntry, NotKnown, VirtioEntry
from harness.qemu.binary import AccelState

_CPU_KEYS = ("vendor", "family", "model", "stepping", "model_name")
_HOST_CPU_MODELS = ("host", "max")


class Weight(StrEnum):
    """How much a change can do, most first."""

    EXPLAINS = "explains"
    MAY_MATTER = "may matter"
    NOTE = "note"


class FactKind(StrEnum):
    """What a change is about. ``host-facts`` stands for all of them, where none can be known; ``unknown`` for a fact
    that one side alone could not tell."""

    SYSTEM = "system"
    CPU = "cpu"
    MICROCODE = "microcode"
    FLAG = "flag"
    MORE_FLAGS = "more-flags"
    CPUID = "cpuid"
    KVM = "kvm"
    CAPABILITY = "capability"
    MSR = "msr"
    FEATURE_MSR = "feature-msr"
    MODULE = "module"
    PARAMETER = "parameter"
    QEMU = "qemu"
    MACHINE = "machine"
    DEVICE = "device"
    BACKEND = "backend"
    FEATURE = "feature"
    HOST_FACTS = "host-facts"
    UNKNOWN = "unknown"


class Matters(StrEnum):
    """Why a change can matter to a guest, where its kind alone does not say so."""

    EMULATED = "emulated"
    FLAG_PASSED_ON = "flag-passed-on"
    NO_FACTS = "no-facts"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """One difference between two hosts.

    :param subject: the name alone: of a flag, a feature, a machine, a module; a number in hexadecimal of an MSR
    :param where: device and slot, for what belongs to a device
    :param old: value on the recording side, "" for what is simply there, None for what is not
    :param new: value on the loading side, in the same way
    :param weight: ``explains`` is enough by itself to break a load that uses it
    :param matters: why it matters, where its kind does not say so: ``emulated`` for a guest under TCG
    :param if_kvm: it matters only if the guest ran under KVM, which nobody knows
    :param said: an error, or the version of QEMU that has no such machine
    :param state: what came of running guest code under KVM on the loading side
    :param not_known: why one side could not tell
    """

    kind: FactKind
    subject: str = ""
    where: str = ""
    old: str | None = None
    new: str | None = None
    weight: Weight
    matters: Matters | None = None
    if_kvm: bool = False
    said: str = ""
    state: AccelState | None = None
    not_known: NotKnown | None = None


def compare_facts(old: HostFacts, new: HostFacts) -> list[FactChange]:
    """Everything that differs, what can break a load first; what either side does not know is left out, and said.

    :param old: facts of the recording side; its first QEMU is the one that recorded. Empty for a pack without any
    :param new: facts of the loading side, with each QEMU that may load
    :raises UsageError: facts of a schema that this version does not know
    """
    if not old:
        return [incomparable(Matters.NO_FACTS)]
    check_facts(old, "the recording side")
    check_facts(new, "this host")
    kvm = _recorded_under_kvm(old)
    changes = [
        *_system(old, new, kvm),
        *_cpu(old, new, kvm),
        *_kvm(old.get("kvm") or {}, new.get("kvm") or {}, kvm),
        *_modules(old.get("modules") or {}, new.get("modules") or {}, kvm),
        *_qemus(old, new),
        *_unknown(old, new),
    ]
    order = list(Weight)
    return sorted(changes, key=lambda change: order.index(change.weight))


def incomparable(matters: Matters, said: str = "") -> FactChange:
    """Stands for all changes where they cannot be known."""
    return FactChange(kind=FactKind.HOST_FACTS, weight=Weight.NOTE, matters=matters, said=said)


def _recorded_under_kvm(old: HostFacts) -> bool | None:
    """None when nobody knows."""
    builds = old.get("qemu") or [{}]
    accel = builds[0].get("accel")
    return None if accel is None else accel == "kvm"


def _weighed(kvm: bool | None, change: FactChange) -> FactChange:
    """What is about the host's CPU or KVM only matters to a guest that runs on them.

    :param kvm: the guest does; None when nobody knows
    """
    if kvm is False:
        return replace(change, weight=Weight.NOTE, matters=Matters.EMULATED)
    if kvm is None and change.weight is Weight.EXPLAINS:
        return replace(change, weight=Weight.MAY_MATTER, if_kvm=True)
    return change


def _system(old: HostFacts, new: HostFacts, kvm: bool | None) -> Iterator[FactChange]:
    before: Mapping[str, object] = old.get("system") or {}
    after: Mapping[str, object] = new.get("system") or {}
    for key, weight in (("os", Weight.NOTE), ("kernel", Weight.MAY_MATTER)):
        if _differ(before.get(key), after.get(key)):
            change = _change(FactKind.SYSTEM, before[key], after[key], weight, subject=key)
            yield _weighed(kvm, change) if key == "kernel" else change


def _cpu(old: HostFacts, new: HostFacts, kvm: bool | None) -> Iterator[FactChange]:
    before, after = old.get("cpu") or {}, new.get("cpu") or {}
    for key in _CPU_KEYS:
        was, is_ = before.get(key), after.get(key)
        if _differ(was, is_):
            yield _weighed(kvm, _change(FactKind.CPU, was, is_, Weight.MAY_MATTER, subject=key))
    if _differ(before.get("microcode"), after.get("microcode")):
        change = _change(FactKind.MICROCODE, before["microcode"], after["microcode"], Weight.MAY_MATTER)
        yield _weighed(kvm, change)
    yield from _flags(before.get("flags"), after.get("flags"), kvm, _cpu_model(old) in _HOST_CPU_MODELS)


def _flags(before: list[str] | None, after: list[str] | None, kvm: bool | None, passed: bool) -> Iterator[FactChange]:
    if before is None or after is None:
        return
    weight = Weight.EXPLAINS if passed else Weight.MAY_MATTER
    matters = Matters.FLAG_PASSED_ON if passed else None
    for flag in sorted(set(before) - set(after)):
        yield _weighed(kvm, _change(FactKind.FLAG, "", None, weight, subject=flag, matters=matters))
    gained = sorted(set(after) - set(before))
    if gained:
        yield _change(FactKind.MORE_FLAGS, None, " ".join(gained), Weight.NOTE)


def _kvm(before: KvmFacts, after: KvmFacts, kvm: bool | None) -> Iterator[FactChange]:
    if before.get("usable") and after.get("usable") is False:
        change = _change(FactKind.KVM, "", None, Weight.EXPLAINS, state=kvm_came(after))
        yield _weighed(kvm, change)
    yield from _capabilities(before.get("extensions") or {}, after.get("extensions") or {}, kvm)
    yield from _msrs(before.get("msrs"), after.get("msrs"), kvm)
    yield from _feature_msrs(before.get("feature_msrs") or {}, after.get("feature_msrs") or {}, kvm)
    yield from _cpuid(before.get("cpuid") or {}, after.get("cpuid") or {}, kvm)


def _capabilities(before: Mapping[str, int], after: Mapping[str, int], kvm: bool | None) -> Iterator[FactChange]:
    for name in before:
        if name in after and before[name] != after[name]:
            weight = Weight.MAY_MATTER if after[name] < before[name] else Weight.NOTE
            change = _change(FactKind.CAPABILITY, before[name], after[name], weight, subject=name)
            yield _weighed(kvm, change)


def _msrs(before: list[MsrEntry] | None, after: list[MsrEntry] | None, kvm: bool | None) -> Iterator[FactChange]:
    if before is None or after is None:
        return
    for index in sorted({e["index"] for e in before} - {e["index"] for e in after}):
        yield _weighed(kvm, _change(FactKind.MSR, "", None, Weight.EXPLAINS, subject=index))


def _feature_msrs(
    before: Mapping[str, str | None], after: Mapping[str, str | None], kvm: bool | None
) -> Iterator[FactChange]:
    for index in before:
        if index in after and _differ(before[index], after[index]):
            change = _change(FactKind.FEATURE_MSR, before[index], after[index], Weight.MAY_MATTER, subject=index)
            yield _weighed(kvm, change)


def _cpuid(before: Mapping[str, str], after: Mapping[str, str], kvm: bool | None) -> Iterator[FactChange]:
    for register, value in before.items():
        other = after.get(register, "0x0")
        if int(value, 16) & ~int(other, 16):
            yield _weighed(kvm, _change(FactKind.CPUID, value, other, Weight.MAY_MATTER, subject=register))


def _modules(
    before: Mapping[str, Mapping[str, str | None]], after: Mapping[str, Mapping[str, str | None]], kvm: bool | None
) -> Iterator[FactChange]:
    for name in sorted(set(before) - set(after)):
        yield _change(FactKind.MODULE, "", None, Weight.NOTE, subject=name)
    for name in sorted(set(before) & set(after)):
        for key in sorted(set(before[name]) & set(after[name])):
            old, new = before[name][key], after[name][key]
            if _differ(old, new):
                change = _change(FactKind.PARAMETER, old, new, Weight.MAY_MATTER, subject=f"{name}.{key}")
                yield _weighed(kvm if name.startswith("kvm") else True, change)


def _qemus(old: HostFacts, new: HostFacts) -> Iterator[FactChange]:
    builds = old.get("qemu") or []
    if not builds:
        return
    for build in new.get("qemu") or []:
        if _differ(builds[0].get("sha256"), build.get("sha256")):
            yield _change(FactKind.QEMU, _build(builds[0]), _build(build), Weight.NOTE)
        yield from _machine(builds[0], build)
        yield from _devices(builds[0], build)


def _machine(before: BuildFacts, after: BuildFacts) -> Iterator[FactChange]:
    name = before.get("machine")
    if name is None:
        return
    was, is_ = _entry(before, name), _entry(after, name)
    version = str(after.get("version"))
    if is_ is None:
        yield _change(FactKind.MACHINE, "", None, Weight.EXPLAINS, subject=name, said=version)
    elif is_["deprecated"] and not (was and was["deprecated"]):
        yield _change(FactKind.MACHINE, "supported", "deprecated", Weight.MAY_MATTER, subject=name, said=version)


def _devices(before: BuildFacts, after: BuildFacts) -> Iterator[FactChange]:
    was, is_ = before.get("virtio"), after.get("virtio")
    if was is None or is_ is None:
        return
    new = {_device_key(device): device for device in is_}
    for device in was:
        where = f"{device['device']} {device['slot']}"
        other = new.get(_device_key(device))
        if other is None:
            yield _change(FactKind.DEVICE, "", None, Weight.EXPLAINS, where=where)
            continue
        if _differ(device.get("backend"), other.get("backend")):
            old, now = device["backend"], other["backend"]
            yield _change(FactKind.BACKEND, old, now, Weight.MAY_MATTER, where=where)
        yield from _features(where, device["features"], other["features"])


def _features(where: str, before: list[str], after: list[str]) -> Iterator[FactChange]:
    for name in (name for name in before if name not in after):
        yield _change(FactKind.FEATURE, "", None, Weight.EXPLAINS, subject=name, where=where)
    for name in (name for name in after if name not in before):
        yield _change(FactKind.FEATURE, None, "", Weight.NOTE, subject=name, where=where)


def _unknown(old: HostFacts, new: HostFacts) -> Iterator[FactChange]:
    """What could not be compared because one side alone could not be asked."""
    before, after = old.get("unknown") or {}, new.get("unknown") or {}
    for name in sorted(set(before) ^ set(after)):
        if not name.startswith("qemu."):
            was, now = (None, "") if name in before else ("", None)
            why = before.get(name) or after.get(name)
            yield _change(FactKind.UNKNOWN, was, now, Weight.NOTE, subject=name, not_known=why)


def _change(kind: FactKind, old: object, new: object, weight: Weight, **more: Any) -> FactChange:
    before, after = None if old is None else str(old), None if new is None else str(new)
    return FactChange(kind=kind, old=before, new=after, weight=weight, **more)


def _differ(old: object, new: object) -> bool:
    """Different, and both known."""
    return old is not None and new is not None and old != new


def _entry(build: BuildFacts, name: str) -> MachineEntry | None:
    machines = build.get("machines") or []
    return next((entry for entry in machines if name in (entry["name"], entry.get("alias"))), None)


def _device_key(device: VirtioEntry) -> tuple[str, str]:
    return device["device"], device["slot"]


def _build(build: BuildFacts) -> str:
    return f"{build.get('version')} ({build.get('build')})" if build.get("build") else str(build.get("version"))


def _cpu_model(old: HostFacts) -> str | None:
    builds = old.get("qemu") or [{}]
    model = builds[0].get("cpu_model")
    return model.partition(",")[0] if model else None
