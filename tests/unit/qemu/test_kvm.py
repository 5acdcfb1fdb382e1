# SPDX-License-Identifier: GPL-2.0-or-later
"""State that KVM refused: logs that real QEMUs printed, and logs that look like them and are something else."""

from __future__ import annotations

import pytest
from made_cells import symptom, words

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.oracles.load import judge
from harness.qemu.kvm import is_kvm_assertion, kvm_refusals
from harness.qemu.msr import MSR_NAMES, msr_label, msr_name
from harness.qemu.process import Exit
from harness.results.verdict import Verdict

ABORTED = Exit(status=-6, signal="SIGABRT")
FAILED = Exit(status=1)

# As printed under KVM by QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3, each loading a state with one value changed.
LSTAR_5_2 = """\
qemu-system-x86_64: warning: host doesn't support requested feature: CPUID.01H:ECX.pni [bit 0]
qemu-system-x86_64: error: failed to set MSR 0xc0000082 to 0x8000000000000000
qemu-system-x86_64: ../../target/i386/kvm.c:2701: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' \
failed."""
MTRR_7_2 = """\
qemu-system-x86_64: error: failed to set MSR 0x2ff to 0xffff
qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' \
failed."""
APICBASE_7_2 = "qemu-system-x86_64: ../../target/i386/kvm/kvm.c:2975: kvm_put_apicbase: Assertion `ret == 1' failed."
APICBASE_11_1 = "qemu-system-x86_64: target/i386/kvm/kvm.c:3899: kvm_put_apicbase: Assertion `ret == 1' failed."
XCRS_10_0 = "qemu-system-x86_64: Putting registers after init: Failed to set XCRs: Invalid argument"
SREGS_10_0 = "qemu-system-x86_64: Putting registers after init: Failed to set special registers: Invalid argument"
EVENTS_11_1 = "qemu-system-x86_64: Restoring resisters after init: Failed to set vCPU events: Invalid argument"
DEBUG_11_1 = "qemu-system-x86_64: Restoring resisters after init: Failed to set debug registers: Invalid argument"
# As QEMU's source has them.
PUT = "qemu-system-x86_64: Failed to put registers after init: Invalid argument"
PIT = "KVM_SET_PIT2 failed: Invalid argument"
CLOCK = "KVM_SET_CLOCK failed: Invalid argument"
NESTED = "qemu-system-x86_64: Received nested state when kernel cannot restore it"
GET = """\
qemu-system-x86_64: error: failed to get MSR 0x345
qemu-system-x86_64: ../target/i386/kvm/kvm.c:3464: kvm_get_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed."""
DEADLINE = "qemu-system-x86_64: Failed to set TSC deadline MSR: Invalid argument"

REFUSED = [
    # log, group, ioctl, value, error, how QEMU ended
    (LSTAR_5_2, "MSR 0xc0000082 (MSR_LSTAR)", "KVM_SET_MSRS", 0x8000000000000000, "", ABORTED),
    (MTRR_7_2, "MSR 0x2ff (MSR_MTRRdefType)", "KVM_SET_MSRS", 0xFFFF, "", ABORTED),
    (APICBASE_7_2, "MSR 0x1b (MSR_IA32_APICBASE)", "KVM_SET_MSRS", None, "", ABORTED),
    (APICBASE_11_1, "MSR 0x1b (MSR_IA32_APICBASE)", "KVM_SET_MSRS", None, "", ABORTED),
    (XCRS_10_0, "KVM_SET_XCRS", "KVM_SET_XCRS", None, "Invalid argument", FAILED),
    (SREGS_10_0, "KVM_SET_SREGS", "KVM_SET_SREGS", None, "Invalid argument", FAILED),
    (EVENTS_11_1, "KVM_SET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", None, "Invalid argument", FAILED),
    (DEBUG_11_1, "KVM_SET_DEBUGREGS", "KVM_SET_DEBUGREGS", None, "Invalid argument", FAILED),
    (PUT, "kvm_arch_put_registers", "kvm_arch_put_registers", None, "Invalid argument", FAILED),
    (PIT, "KVM_SET_PIT2", "KVM_SET_PIT2", None, "Invalid argument", ABORTED),
    (CLOCK, "KVM_SET_CLOCK", "KVM_SET_CLOCK", None, "Invalid argument", ABORTED),
    (NESTED, "KVM_SET_NESTED_STATE", "KVM_SET_NESTED_STATE", None, NESTED.partition(": ")[2], FAILED),
    (GET, "MSR 0x345 (MSR_IA32_PERF_CAPABILITIES)", "KVM_GET_MSRS", None, "", ABORTED),
    (DEADLINE, "MSR 0x6e0 (MSR_IA32_TSCDEADLINE)", "KVM_SET_MSRS", None, "Invalid argument", FAILED),
]

NEAR_MISSES = [
    "",
    "qemu-system-x86_64: warning: host doesn't support requested feature: CPUID.01H:ECX.pni [bit 0]",
    "qemu-system-x86_64: warning: TSC frequency mismatch between VM (2300000 kHz) and host (2400000 kHz), and TSC "
    "scaling unavailable",
    "KVM internal error. Suberror: 1",
    "KVM: entry failed, hardware error 0x80000021",
    "error: kvm run failed Bad address",
    "Could not access KVM kernel module: No such file or directory",
    "qemu-system-x86_64: failed to initialize kvm: No such file or directory",
    # what a device does wrong with its memory regions, not guest state
    "kvm_mem_ioeventfd_add: error adding ioeventfd: File exists (17)",
    "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=1, start=0x0, size=0x0: Invalid argument",
    "qemu-system-x86_64: ../accel/kvm/kvm-all.c:1864: kvm_irqchip_commit_routes: Assertion `ret == 0' failed.",
    # another accelerator's words
    "qemu-system-x86_64: failed to put msrs",
    "qemu-system-x86_64: Failed to set registers",
    "qemu-system-x86_64: Failed to set breakpoint: Invalid argument",
    # the state is damaged, whatever the host
    "qemu-system-x86_64: Received invalid nested state format: 7",
]


def evidence(log: str, ended: Exit | None) -> Evidence:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("closed"), load=2, phase="bound") if ended else None
    return Evidence(
        loads_asked=2, loads_acked=1 if ended else 2, checkpoints_acked=1, broken=broken, exit=ended, log=log
    )


@pytest.mark.parametrize(("log", "group", "ioctl", "value", "error", "ended"), REFUSED)
def test_a_refusal_is_named_and_is_the_hosts_matter(
    log: str, group: str, ioctl: str, value: int | None, error: str, ended: Exit
) -> None:
    (refusal,) = kvm_refusals(log)
    assert (refusal.group, refusal.ioctl, refusal.value, refusal.error) == (group, ioctl, value, error)
    judgement = judge(evidence(log, ended))
    assert judgement.verdict is Verdict.HOST
    assert words(judgement).startswith("load 2: this host's KVM did not ")
    assert group in words(judgement)


@pytest.mark.parametrize("log", NEAR_MISSES)
def test_what_only_looks_like_a_refusal(log: str) -> None:
    assert kvm_refusals(log) == ()
    assert judge(evidence(log, ABORTED)).verdict is Verdict.CRASH
    assert judge(evidence(log, None)).verdict is Verdict.OK


def test_a_register_is_told_with_its_value() -> None:
    assert words(judge(evidence(LSTAR_5_2, ABORTED))) == (
        "load 2: this host's KVM did not take MSR 0xc0000082 (MSR_LSTAR) = 0x8000000000000000 by KVM_SET_MSRS"
    )
    assert "did not give MSR 0x345" in words(judge(evidence(GET, ABORTED)))


def test_a_refusal_counts_though_qemu_acknowledged_the_load() -> None:
    # after a reset QEMU stops the machine, and lives
    log = "qemu-system-x86_64: Restoring resisters after reset: Failed to set XCRs: Invalid argument"
    assert judge(evidence(log, None)).verdict is Verdict.HOST


@pytest.mark.parametrize(
    ("log", "ended"),
    [
        (XCRS_10_0, Exit(status=-11, signal="SIGSEGV")),
        (XCRS_10_0 + "\nqemu: ../hw/ide/ahci.c:1: ahci_reset: Assertion `s' failed.", ABORTED),
        (LSTAR_5_2 + "\n==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x602", ABORTED),
    ],
)
def test_a_fault_of_qemu_beside_a_refusal_stays_a_crash(log: str, ended: Exit) -> None:
    assert judge(evidence(log, ended)).verdict is Verdict.CRASH


def test_an_assertion_without_the_line_before_it_names_the_ioctl() -> None:
    line = LSTAR_5_2.splitlines()[-1]
    assert [refusal.group for refusal in kvm_refusals(line)] == ["KVM_SET_MSRS"]
    assert is_kvm_assertion(line)
    assert not is_kvm_assertion(NEAR_MISSES[10])


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x48, "MSR_IA32_SPEC_CTRL"),
        (0x200, "MSR_MTRRphysBase(0)"),
        (0x20F, "MSR_MTRRphysMask(7)"),
        (0x401, "MSR_MC0_STATUS"),
        (0x427, "MSR_MC9_MISC"),
        (0x186, "MSR_P6_EVNTSEL0"),
        (0x400000B7, "HV_X64_MSR_STIMER3_COUNT"),
        (0x1D1, "MSR_IA32_FRED_SSP1"),
        (0xDEAD, None),
    ],
)
def test_registers_have_qemus_names(index: int, name: str | None) -> None:
    assert msr_name(index) == name
    assert msr_label(index) == (f"MSR {index:#x} ({name})" if name else f"MSR {index:#x}")


def test_every_register_that_qemu_puts_has_a_name() -> None:
    assert len(set(MSR_NAMES.values())) == len(MSR_NAMES) > 60
