# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts compared, and what a failed load has to do with the difference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from harness.errors import UsageError
from harness.facts import SCHEMA, FactChange, Weight, collect_facts, compare_facts, explaining
from harness.facts.model import HostFacts
from harness.qemu.binary import AccelSeen, AccelState, QemuBinary
from harness.report.facts import fact_change_text, matters_text, sides_text, subject_text

NO_PROC = {"why": "error", "said": "no /proc"}
NET = ["VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_F_VERSION_1"]
HOST: dict[str, Any] = {
    "schema": SCHEMA,
    "system": {"os": "Debian 11", "kernel": "5.10.0", "architecture": "x86_64"},
    "cpu": {
        "vendor": "GenuineIntel", "family": 6, "model": 85, "stepping": 7, "model_name": "Xeon", "microcode": "0x1",
        "flags": ["avx", "avx512f", "fpu", "rtm", "xsaves"], "cores": 8,
    },
    "modules": {"kvm_intel": {"nested": "Y"}, "tun": {}},
    "kvm": {
        "present": True, "openable": True, "usable": True, "seen": "booted", "said": "", "seconds": 0.1,
        "api_version": 12,
        "extensions": {"XSAVE": 1, "XCRS": 1, "NESTED_STATE": 4096, "NR_VCPUS": 8},
        "msrs": [{"index": "0x48", "name": "MSR_IA32_SPEC_CTRL"}, {"index": "0xda0", "name": "MSR_IA32_XSS"}],
        "feature_msrs": {"0x10a": "0xff", "0x480": None}, "cpuid": {"0x7.0.ebx": "0x00010801"},
    },
    "qemu": [{
        "version": "7.2.22", "build": "Debian", "path": "/usr/bin/q", "sha256": "aa",
        "machines": [{"name": "pc-i440fx-7.2", "alias": "pc", "deprecated": False}],
        "machine": "pc-i440fx-7.2", "accel": "kvm", "cpu_model": None,
        "virtio": [{"device": "virtio-net", "id": "n", "slot": "00:05.0", "backend": "user", "bits": "0x100008001",
                    "features": NET}],
    }],
    "unknown": {},
}  # fmt: skip


def host(change: Callable[[dict[str, Any]], object] = lambda facts: None) -> HostFacts:
    facts = copy.deepcopy(HOST)
    change(facts)
    return TypeAdapter(HostFacts).validate_python(facts, strict=True)


def changed(change: Callable[[dict[str, Any]], object], before: HostFacts | None = None) -> list[FactChange]:
    return compare_facts(before or host(), host(change))


def test_a_host_does_not_differ_from_itself() -> None:
    assert compare_facts(host(), host()) == []


def _virtio(facts: dict[str, Any]) -> dict[str, Any]:
    device: dict[str, Any] = facts["qemu"][0]["virtio"][0]
    return device


TABLE: list[tuple[Callable[[dict[str, Any]], object], str, str, str, Weight]] = [
    # what is done to the new host, then: what, old, new, weight
    (lambda f: f["system"].update(kernel="6.1.0"), "kernel", "5.10.0", "6.1.0", Weight.MAY_MATTER),
    (lambda f: f["system"].update(os="Debian 12"), "os", "Debian 11", "Debian 12", Weight.NOTE),
    (lambda f: f["cpu"].update(microcode="0x2"), "microcode", "0x1", "0x2", Weight.MAY_MATTER),
    (lambda f: f["cpu"].update(model_name="Core"), "CPU model name", "Xeon", "Core", Weight.MAY_MATTER),
    (lambda f: f["cpu"]["flags"].remove("rtm"), "CPU flag rtm", "there", "gone", Weight.MAY_MATTER),
    (lambda f: f["cpu"]["flags"].append("amx_tile"), "CPU flags", "", "1 more: amx_tile", Weight.NOTE),
    (lambda f: f["kvm"].update(usable=False, seen="ended", said="SIGABRT"), "KVM", "usable", "not usable: SIGABRT",
     Weight.EXPLAINS),
    (lambda f: f["kvm"]["extensions"].update(NESTED_STATE=0), "KVM_CAP_NESTED_STATE", "4096", "0", Weight.MAY_MATTER),
    (lambda f: f["kvm"]["extensions"].update(NR_VCPUS=16), "KVM_CAP_NR_VCPUS", "8", "16", Weight.NOTE),
    (lambda f: f["kvm"]["msrs"].pop(), "MSR 0xda0 (MSR_IA32_XSS)", "listed by KVM", "not listed", Weight.EXPLAINS),
    (lambda f: f["kvm"]["feature_msrs"].update({"0x10a": "0x1"}),
     "offered value of MSR 0x10a (MSR_IA32_ARCH_CAPABILITIES)", "0xff", "0x1", Weight.MAY_MATTER),
    (lambda f: f["kvm"]["cpuid"].update({"0x7.0.ebx": "0x00000001"}), "CPUID 0x7.0.ebx bits 11, 16", "offered by KVM",
     "not offered", Weight.MAY_MATTER),
    (lambda f: f["modules"].pop("tun"), "module tun", "loaded", "not loaded", Weight.NOTE),
    (lambda f: f["modules"]["kvm_intel"].update(nested="N"), "parameter kvm_intel.nested", "Y", "N",
     Weight.MAY_MATTER),
    (lambda f: f["qemu"][0].update(sha256="bb", version="10.0.1"), "QEMU", "7.2.22 (Debian)", "10.0.1 (Debian)",
     Weight.NOTE),
    (lambda f: f["qemu"][0]["machines"].clear(), "machine type pc-i440fx-7.2", "there", "gone", Weight.EXPLAINS),
    (lambda f: f["qemu"][0]["machines"][0].update(deprecated=True), "machine type pc-i440fx-7.2", "supported",
     "deprecated", Weight.MAY_MATTER),
    (lambda f: _virtio(f)["features"].remove(NET[0]), "virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM", "offered",
     "not offered", Weight.EXPLAINS),
    (lambda f: _virtio(f)["features"].append("VIRTIO_NET_F_MQ"), "virtio-net 00:05.0: feature VIRTIO_NET_F_MQ",
     "not offered", "offered", Weight.NOTE),
    (lambda f: _virtio(f).update(backend="tap"), "virtio-net 00:05.0: backend", "user", "tap", Weight.MAY_MATTER),
    (lambda f: f["qemu"][0]["virtio"].clear(), "virtio-net 00:05.0", "there", "gone", Weight.EXPLAINS),
    (lambda f: (f["cpu"].update(flags=None), f["unknown"].update({"cpu.flags": NO_PROC})), "cpu.flags", "",
     "not known", Weight.NOTE),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what", "old", "new", "weight"), TABLE, ids=[row[1] for row in TABLE])
def test_a_change_is_named_and_weighed(
    change: Callable[[dict[str, Any]], object], what: str, old: str, new: str, weight: Weight
) -> None:
    (found,) = changed(change)
    assert (subject_text(found), *sides_text(found), found.weight) == (what, old, new, weight)
    assert matters_text(found)
    sides = f": {old} -> {new}"
    assert fact_change_text(found) == f"{what}{sides}: {matters_text(found)}"


@pytest.mark.parametrize("key", ["cpu", "kvm", "system"])
def test_the_hosts_cpu_is_no_matter_to_a_guest_under_tcg(key: str) -> None:
    before = host(lambda f: f["qemu"][0].update(accel="tcg"))
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "cpu": lambda f: (f["cpu"].update(microcode="0x9"), f["cpu"]["flags"].remove("rtm")),
        "kvm": lambda f: (f["kvm"].update(usable=False), f["kvm"]["msrs"].clear()),
        "system": lambda f: f["system"].update(kernel="6"),
    }
    found = changed(changes[key], before)
    assert found
    assert {c.weight for c in found} == {Weight.NOTE}
    assert "TCG" in matters_text(found[0])


def test_where_the_accelerator_is_not_known_nothing_of_kvm_explains_by_itself() -> None:
    before = host(lambda f: f["qemu"][0].update(accel=None))
    (found,) = changed(lambda f: f["kvm"]["msrs"].pop(), before)
    assert found.weight is Weight.MAY_MATTER
    assert found.if_kvm
    assert matters_text(found).endswith("if the guest ran under KVM")


def test_a_guest_that_has_the_hosts_cpu_loses_with_it() -> None:
    before = host(lambda f: f["qemu"][0].update(cpu_model="host,pmu=off"))
    (found,) = changed(lambda f: f["cpu"]["flags"].remove("avx512f"), before)
    assert found.weight is Weight.EXPLAINS


def test_what_can_break_a_load_comes_first() -> None:
    found = changed(
        lambda f: (f["system"].update(os="x", kernel="y"), f["qemu"][0]["machines"].clear(), f["kvm"]["msrs"].pop())
    )
    assert [c.weight for c in found] == sorted((c.weight for c in found), key=list(Weight).index)
    assert {c.kind for c in found if c.weight is Weight.EXPLAINS} == {"machine", "msr"}


def test_a_pack_without_facts_is_told_and_another_schema_refused() -> None:
    (found,) = compare_facts({}, host())
    assert "holds no facts" in fact_change_text(found)
    with pytest.raises(UsageError, match=r"recording side: expected schema postload\.host/1, got 'postload\.host/9'"):
        compare_facts(host(lambda f: f.update(schema="postload.host/9")), host())


def test_each_build_of_the_new_host_is_compared() -> None:
    second = copy.deepcopy(HOST["qemu"][0]) | {"sha256": "cc", "version": "11.1.3", "machines": []}
    found = changed(lambda f: f["qemu"].append(second))
    assert [(c.kind, "11.1.3" in fact_change_text(c)) for c in found] == [("machine", True), ("qemu", True)]


# what a log speaks of

REFUSED_CSUM = """\
qemu-system-x86_64: Features 0x130af8025 unsupported. Allowed features: 0x179bf8064
qemu-system-x86_64: Failed to load virtio-net:virtio
qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'"""
REFUSED_CSUM_11_1 = """\
qemu-system-x86_64: Features 0x00000000000000000000000130af8024 unsupported. Allowed features: \
0x00000000000000000000000179bf8064
qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'"""
XCRS = "qemu-system-x86_64: Putting registers after init: Failed to set XCRs: Invalid argument"
XSS = "qemu-system-x86_64: error: failed to set MSR 0xda0 to 0x100"


def _everything(facts: dict[str, Any]) -> None:
    facts["system"].update(kernel="6.1.0", os="Debian 12")
    facts["cpu"].update(microcode="0x2")
    facts["cpu"]["flags"] = ["avx", "fpu"]
    facts["modules"]["kvm_intel"]["nested"] = "N"
    facts["kvm"]["msrs"].pop()
    facts["kvm"]["extensions"].update(XCRS=0, NESTED_STATE=0)
    facts["qemu"][0].update(sha256="bb", machines=[])
    _virtio(facts).update(backend="tap", features=["VIRTIO_F_VERSION_1", "VIRTIO_NET_F_MQ"])


EXPLAINED = [
    # log, section, what explains it
    (REFUSED_CSUM, None, ["virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM", "virtio-net 00:05.0: backend"]),
    (REFUSED_CSUM_11_1, "0000:00:05.0/virtio-net",
     ["virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM", "virtio-net 00:05.0: backend"]),
    (REFUSED_CSUM.replace("00:05.0", "00:06.0"), None, []),
    ("qemu: virtio-net: saved image requires vnet_hdr=on", None, ["virtio-net 00:05.0: backend"]),
    (XSS, "cpu", ["MSR 0xda0 (MSR_IA32_XSS)", "CPU flag xsaves", "kernel", "microcode"]),
    (XCRS, None, ["KVM_CAP_XCRS", "CPU flag avx512f", "CPU flag xsaves", "kernel", "microcode"]),
    ("qemu: Received nested state when kernel cannot restore it", None,
     ["KVM_CAP_NESTED_STATE", "parameter kvm_intel.nested", "kernel", "microcode"]),
    ("QEMU 11.1.3 has no machine type pc-i440fx-7.2", None, ["machine type pc-i440fx-7.2"]),
    ('qemu: unsupported machine type: "pc-i440fx-7.2"', None, ["machine type pc-i440fx-7.2"]),
    # the log speaks of something that did not change
    ("qemu: savevm: unsupported version 99 for 'i8259' v1", "i8259", []),
    ("qemu: Features 0x179bf8065 unsupported. Allowed features: 0x179bf8025", "0000:00:05.0/virtio-net",
     ["virtio-net 00:05.0: backend"]),
    ("", None, []),
]  # fmt: skip


@pytest.mark.parametrize(("log", "section", "expected"), EXPLAINED)
def test_the_changes_that_a_failed_load_speaks_of(log: str, section: str | None, expected: list[str]) -> None:
    changes = changed(_everything)
    assert {subject_text(c) for c in changes} > set(expected)
    assert [subject_text(c) for c in explaining(changes, log=log, section=section)] == expected


def test_a_device_that_is_gone_explains_a_section_without_an_owner() -> None:
    changes = changed(lambda f: f["qemu"][0]["virtio"].clear())
    log = "qemu: Unknown savevm section or instance '0000:00:05.0/virtio-net' 0. Make sure that your current VM"
    assert [subject_text(c) for c in explaining(changes, log=log, section=None)] == ["virtio-net 00:05.0"]
    assert explaining(changes, log=log.replace("05.0", "09.0"), section=None) == []


def test_facts_of_this_host_are_json_and_every_gap_has_a_reason(binary: QemuBinary) -> None:
    accel = AccelState(name="kvm", usable=False, seen=AccelSeen.LATE, seconds=10)
    facts = collect_facts([binary], accel=accel)
    assert facts["schema"] == SCHEMA
    assert facts["system"]["kernel"]
    assert facts["qemu"][0]["sha256"] == binary.sha256
    assert {"name": "pc-q35-6.0", "alias": None, "deprecated": False} in facts["qemu"][0]["machines"]
    assert facts["unknown"]["qemu.0.virtio"] == {"why": "not-asked", "said": ""}
    for area in ("system", "cpu", "kvm"):
        for name, value in facts[area].items():
            assert value is not None or facts["unknown"][f"{area}.{name}"], (area, name)
    assert compare_facts(facts, copy.deepcopy(facts)) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x7fELF...Failed to set XCRs\0", True),
        (b"\x7fELF...Failed to put registers after init: %s\0", True),
        (b"\x7fELF...error: failed to set MSR 0x%x to 0x%lx\0", False),
        (b"#!/bin/sh\n# Failed to set XCRs\n", None),
    ],
)
def test_whether_a_build_says_what_kvm_refused(
    tmp_path: Path, binary: QemuBinary, content: bytes, says: bool | None
) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(content)
    facts = collect_facts([replace(binary, path=str(program))])
    assert facts["qemu"][0]["says_refused_state"] is says
    assert ("qemu.0.says_refused_state" in facts["unknown"]) == (says is None)
