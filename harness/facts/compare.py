# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two hosts, and how much of it can matter to a guest that goes from the one to the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from harness.facts.collect import check_facts
from harness.qemu.msr import msr_label

Facts = Mapping[str, Any]

#: ``what`` of the one change that says why no other is known.
HOST_FACTS = "host facts"

_TCG = "the guest was recorded under TCG, which emulates its CPU and uses none of this"
_CPU_KEYS = ("vendor", "family", "model", "stepping", "model_name")
_HOST_CPU_MODELS = ("host", "max")
_VMSTATE_DEVICE = "the stream has a section for it, and the new side has nobody to load it"


class Weight(StrEnum):
    """How much a change can do, most first."""

    EXPLAINS = "explains"
    MAY_MATTER = "may matter"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """One difference.

    :param what: in words, such as ``virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM``
    :param old: on the recording side, in words; empty when it was not there
    :param new: on the loading side
    :param weight: ``explains`` is enough by itself to break a load that uses it
    :param why: one sentence
    :param kind: what it is about: system, cpu, microcode, flag, cpuid, kvm, capability, msr, feature-msr, module,
        qemu, machine, device, backend, feature
    :param subject: the name alone: of a flag, a feature, a machine; an MSR's number in hex
    :param where: device and slot, for what belongs to a device
    """

    what: str
    old: str
    new: str
    weight: Weight
    why: str
    kind: str
    subject: str = ""
    where: str = ""

    def to_json(self) -> dict[str, str]:
        """For reports."""
        return {key: str(value) for key, value in asdict(self).items()}


def compare_facts(old: Facts, new: Facts) -> list[FactChange]:
    """Everything that differs, what can break a load first; what either side does not know is left out, and said.

    :param old: facts of the recording side; its first QEMU is the one that recorded. Empty for a pack without any
    :param new: facts of the loading side, with each QEMU that may load
    :raises UsageError: facts of a schema that this version does not know
    """
    if not old:
        return [incomparable("the pack holds no facts of the host that recorded it, so nothing can be compared")]
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


def incomparable(why: str) -> FactChange:
    """Stands for all changes where they cannot be known."""
    return FactChange(what=HOST_FACTS, old="", new="", weight=Weight.NOTE, why=why, kind="system")


def _recorded_under_kvm(old: Facts) -> bool | None:
    """None when nobody knows."""
    builds = old.get("qemu") or [{}]
    accel = builds[0].get("accel")
    return None if accel is None else accel == "kvm"


def _weigh(kvm: bool | None, weight: Weight, why: str) -> tuple[Weight, str]:
    """What is about the host's CPU or KVM only matters to a guest that runs on them."""
    if kvm is False:
        return Weight.NOTE, _TCG
    if kvm is None and weight is Weight.EXPLAINS:
        return Weight.MAY_MATTER, f"{why}, if the guest ran under KVM"
    return weight, why


def _system(old: Facts, new: Facts, kvm: bool | None) -> Iterator[FactChange]:
    before, after = old.get("system") or {}, new.get("system") or {}
    for key, weight, why in (
        ("os", Weight.NOTE, "another distribution release brings other builds of QEMU, firmware and kernel"),
        ("kernel", Weight.MAY_MATTER, "KVM, vhost and tap are the kernel's, and what they offer changes with it"),
    ):
        if _differ(before.get(key), after.get(key)):
            weight, why = _weigh(kvm, weight, why) if key == "kernel" else (weight, why)
            yield _change(key, before[key], after[key], weight, why, kind="system", subject=key)


def _cpu(old: Facts, new: Facts, kvm: bool | None) -> Iterator[FactChange]:
    before, after = old.get("cpu") or {}, new.get("cpu") or {}
    for key in _CPU_KEYS:
        if _differ(before.get(key), after.get(key)):
            words = "a guest under KVM runs on the host's own CPU, and its state may not fit another one"
            weight, why = _weigh(kvm, Weight.MAY_MATTER, words)
            yield _change(f"CPU {key.replace('_', ' ')}", before[key], after[key], weight, why, kind="cpu", subject=key)
    if _differ(before.get("microcode"), after.get("microcode")):
        words = "microcode can bring and take CPU flags and MSRs"
        weight, why = _weigh(kvm, Weight.MAY_MATTER, words)
        yield _change("microcode", before["microcode"], after["microcode"], weight, why, kind="microcode")
    yield from _flags(before.get("flags"), after.get("flags"), kvm, _cpu_model(old) in _HOST_CPU_MODELS)


def _flags(before: list[str] | None, after: list[str] | None, kvm: bool | None, passed: bool) -> Iterator[FactChange]:
    if before is None or after is None:
        return
    lost = Weight.EXPLAINS if passed else Weight.MAY_MATTER
    words = "the guest's CPU model passes the host's flags on" if passed else "the guest's CPU model may ask for it"
    for flag in sorted(set(before) - set(after)):
        weight, why = _weigh(kvm, lost, words)
        yield _change(f"CPU flag {flag}", "there", "gone", weight, why, kind="flag", subject=flag)
    gained = sorted(set(after) - set(before))
    if gained:
        why = "more than before; it matters on the way back"
        yield _change("CPU flags", "", f"{len(gained)} more: {' '.join(gained)}", Weight.NOTE, why, kind="flag")


def _kvm(before: Facts, after: Facts, kvm: bool | None) -> Iterator[FactChange]:
    if before.get("usable") and after.get("usable") is False:
        weight, why = _weigh(kvm, Weight.EXPLAINS, "a guest that ran under KVM cannot run here as it did")
        yield _change("KVM", "usable", f"not usable: {after.get('reason')}", weight, why, kind="kvm")
    yield from _capabilities(before.get("extensions") or {}, after.get("extensions") or {}, kvm)
    yield from _msrs(before.get("msrs"), after.get("msrs"), kvm)
    yield from _feature_msrs(before.get("feature_msrs") or {}, after.get("feature_msrs") or {}, kvm)
    yield from _cpuid(before.get("cpuid") or {}, after.get("cpuid") or {}, kvm)


def _capabilities(before: Mapping[str, int], after: Mapping[str, int], kvm: bool | None) -> Iterator[FactChange]:
    for name in before:
        if name not in after or before[name] == after[name]:
            continue
        words = "QEMU sets the guest up by it" if after[name] else "QEMU sets the guest up by it, and KVM lost it"
        weight, why = _weigh(kvm, Weight.MAY_MATTER if after[name] < before[name] else Weight.NOTE, words)
        old, new = str(before[name]), str(after[name])
        yield _change(f"KVM_CAP_{name}", old, new, weight, why, kind="capability", subject=name)


def _msrs(
    before: list[dict[str, str]] | None, after: list[dict[str, str]] | None, kvm: bool | None
) -> Iterator[FactChange]:
    if before is None or after is None:
        return
    for index in sorted({e["index"] for e in before} - {e["index"] for e in after}):
        words = "QEMU ends when KVM does not take a register that the state brings"
        weight, why = _weigh(kvm, Weight.EXPLAINS, words)
        label = msr_label(int(index, 16))
        yield _change(label, "listed by KVM", "not listed", weight, why, kind="msr", subject=index)


def _feature_msrs(before: Facts, after: Facts, kvm: bool | None) -> Iterator[FactChange]:
    for index in before:
        if index in after and _differ(before[index], after[index]):
            words = "KVM checks what a guest sets against it"
            weight, why = _weigh(kvm, Weight.MAY_MATTER, words)
            label = f"offered value of {msr_label(int(index, 16))}"
            yield _change(label, before[index], after[index], weight, why, kind="feature-msr", subject=index)


def _cpuid(before: Mapping[str, str], after: Mapping[str, str], kvm: bool | None) -> Iterator[FactChange]:
    for register, value in before.items():
        lost = int(value, 16) & ~int(after.get(register, "0x0"), 16)
        if lost:
            bits = ", ".join(str(bit) for bit in range(32) if lost >> bit & 1)
            weight, why = _weigh(kvm, Weight.MAY_MATTER, "the guest's CPU model may ask for these bits")
            what = f"CPUID {register} bits {bits}"
            yield _change(what, "offered by KVM", "not offered", weight, why, kind="cpuid", subject=register)


def _modules(before: Facts, after: Facts, kvm: bool | None) -> Iterator[FactChange]:
    for name in sorted(set(before) - set(after)):
        why = "not loaded on this host; it may come when something asks for it"
        yield _change(f"module {name}", "loaded", "not loaded", Weight.NOTE, why, kind="module", subject=name)
    for name in sorted(set(before) & set(after)):
        for key in sorted(set(before[name]) & set(after[name])):
            if _differ(before[name][key], after[name][key]):
                words = "it decides what a guest gets"
                weight, why = _weigh(kvm if name.startswith("kvm") else True, Weight.MAY_MATTER, words)
                subject = f"{name}.{key}"
                old, new = before[name][key], after[name][key]
                yield _change(f"parameter {subject}", old, new, weight, why, kind="module", subject=subject)


def _qemus(old: Facts, new: Facts) -> Iterator[FactChange]:
    builds = old.get("qemu") or []
    if not builds:
        return
    for build in new.get("qemu") or []:
        if _differ(builds[0].get("sha256"), build.get("sha256")):
            why = "another build of QEMU"
            yield _change("QEMU", _build(builds[0]), _build(build), Weight.NOTE, why, kind="qemu")
        yield from _machine(builds[0], build)
        yield from _devices(builds[0], build)


def _machine(before: Facts, after: Facts) -> Iterator[FactChange]:
    name = before.get("machine")
    if name is None:
        return
    was, is_ = _entry(before, name), _entry(after, name)
    what = f"machine type {name}"
    if is_ is None:
        why = f"QEMU {after.get('version')} does not have it, and a state only loads into its own machine type"
        yield _change(what, "there", "gone", Weight.EXPLAINS, why, kind="machine", subject=name)
    elif is_.get("deprecated") and not (was or {}).get("deprecated"):
        why = f"QEMU {after.get('version')} still has it and will lose it: move the guest to a newer one"
        yield _change(what, "supported", "deprecated", Weight.MAY_MATTER, why, kind="machine", subject=name)


def _devices(before: Facts, after: Facts) -> Iterator[FactChange]:
    if before.get("virtio") is None or after.get("virtio") is None:
        return
    new = {_device_key(device): device for device in after["virtio"]}
    for device in before["virtio"]:
        where = f"{device['device']} {device['slot']}"
        other = new.get(_device_key(device))
        if other is None:
            yield _change(where, "there", "gone", Weight.EXPLAINS, _VMSTATE_DEVICE, kind="device", where=where)
            continue
        if _differ(device.get("backend"), other.get("backend")):
            why = "a device offers what its backend can do"
            old, now = device["backend"], other["backend"]
            yield _change(f"{where}: backend", old, now, Weight.MAY_MATTER, why, kind="backend", where=where)
        yield from _features(where, device["features"], other["features"])


def _features(where: str, before: list[str], after: list[str]) -> Iterator[FactChange]:
    for name in (name for name in before if name not in after):
        why = "a driver that uses it cannot be loaded where it is not offered"
        what = f"{where}: feature {name}"
        yield _change(what, "offered", "not offered", Weight.EXPLAINS, why, kind="feature", subject=name, where=where)
    for name in (name for name in after if name not in before):
        why = "new; a driver that begins to use it cannot go back"
        what = f"{where}: feature {name}"
        yield _change(what, "not offered", "offered", Weight.NOTE, why, kind="feature", subject=name, where=where)


def _unknown(old: Facts, new: Facts) -> Iterator[FactChange]:
    """What could not be compared because one side alone could not be asked."""
    before, after = old.get("unknown") or {}, new.get("unknown") or {}
    for name in sorted(set(before) ^ set(after)):
        if name.startswith("qemu."):
            continue
        why = f"not compared: {before.get(name) or after.get(name)}"
        sides = ("not known", "") if name in before else ("", "not known")
        yield _change(name, *sides, Weight.NOTE, why, kind=name.partition(".")[0])


def _change(
    what: str, old: object, new: object, weight: Weight, why: str, *, kind: str, subject: str = "", where: str = ""
) -> FactChange:
    return FactChange(
        what=what, old=str(old), new=str(new), weight=weight, why=why, kind=kind, subject=subject, where=where
    )


def _differ(old: object, new: object) -> bool:
    """Different, and both known."""
    return old is not None and new is not None and old != new


def _entry(build: Facts, name: str) -> dict[str, Any] | None:
    machines: Iterable[dict[str, Any]] = build.get("machines") or []
    return next((entry for entry in machines if name in (entry["name"], entry.get("alias"))), None)


def _device_key(device: Facts) -> tuple[str, str]:
    return device["device"], device["slot"]


def _build(build: Facts) -> str:
    return f"{build.get('version')} ({build.get('build')})" if build.get("build") else str(build.get("version"))


def _cpu_model(old: Facts) -> str | None:
    builds = old.get("qemu") or [{}]
    model: str | None = builds[0].get("cpu_model")
    return model.partition(",")[0] if model else None
