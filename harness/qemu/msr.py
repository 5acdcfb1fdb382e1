# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the model specific registers that QEMU hands to KVM, as its headers have them.

From ``target/i386/cpu.h``, ``target/i386/kvm/hyperv-proto.h`` and the kernel's ``asm/kvm_para.h``; which of them
are part of a vCPU's state is decided by ``kvm_put_msrs`` and ``kvm_init_msrs`` (``target/i386/kvm/kvm.c``).
"""

from __future__ import annotations

from dataclasses import dataclass

MSR_NAMES: dict[int, str] = {
    0x10: "MSR_IA32_TSC", 0x11: "MSR_KVM_WALL_CLOCK", 0x12: "MSR_KVM_SYSTEM_TIME", 0x1B: "MSR_IA32_APICBASE",
    0x34: "MSR_SMI_COUNT", 0x35: "MSR_CORE_THREAD_COUNT", 0x3A: "MSR_IA32_FEATURE_CONTROL", 0x3B: "MSR_TSC_ADJUST",
    0x48: "MSR_IA32_SPEC_CTRL", 0x49: "MSR_IA32_PRED_CMD", 0x8B: "MSR_IA32_UCODE_REV", 0x9E: "MSR_IA32_SMBASE",
    0xCE: "MSR_PLATFORM_INFO", 0xCF: "MSR_IA32_CORE_CAPABILITY", 0xE1: "MSR_IA32_UMWAIT_CONTROL", 0xFE: "MSR_MTRRcap",
    0x10A: "MSR_IA32_ARCH_CAPABILITIES", 0x122: "MSR_IA32_TSX_CTRL", 0x140: "MSR_MISC_FEATURES_ENABLES",
    0x174: "MSR_IA32_SYSENTER_CS", 0x175: "MSR_IA32_SYSENTER_ESP", 0x176: "MSR_IA32_SYSENTER_EIP",
    0x179: "MSR_MCG_CAP", 0x17A: "MSR_MCG_STATUS", 0x17B: "MSR_MCG_CTL", 0x198: "MSR_IA32_PERF_STATUS",
    0x1A0: "MSR_IA32_MISC_ENABLE", 0x1C4: "MSR_IA32_XFD", 0x1C5: "MSR_IA32_XFD_ERR", 0x1D9: "MSR_IA32_DEBUGCTL",
    0x1DB: "MSR_IA32_LASTBRANCHFROMIP", 0x1DC: "MSR_IA32_LASTBRANCHTOIP", 0x1DD: "MSR_IA32_LASTINTFROMIP",
    0x1DE: "MSR_IA32_LASTINTTOIP", 0x1FC: "MSR_IA32_POWER_CTL", 0x250: "MSR_MTRRfix64K_00000",
    0x258: "MSR_MTRRfix16K_80000", 0x259: "MSR_MTRRfix16K_A0000", 0x268: "MSR_MTRRfix4K_C0000",
    0x269: "MSR_MTRRfix4K_C8000", 0x26A: "MSR_MTRRfix4K_D0000", 0x26B: "MSR_MTRRfix4K_D8000",
    0x26C: "MSR_MTRRfix4K_E0000", 0x26D: "MSR_MTRRfix4K_E8000", 0x26E: "MSR_MTRRfix4K_F0000",
    0x26F: "MSR_MTRRfix4K_F8000", 0x277: "MSR_PAT", 0x2FF: "MSR_MTRRdefType", 0x345: "MSR_IA32_PERF_CAPABILITIES",
    0x38D: "MSR_CORE_PERF_FIXED_CTR_CTRL", 0x38E: "MSR_CORE_PERF_GLOBAL_STATUS", 0x38F: "MSR_CORE_PERF_GLOBAL_CTRL",
    0x390: "MSR_CORE_PERF_GLOBAL_OVF_CTRL", 0x480: "MSR_IA32_VMX_BASIC", 0x481: "MSR_IA32_VMX_PINBASED_CTLS",
    0x482: "MSR_IA32_VMX_PROCBASED_CTLS", 0x483: "MSR_IA32_VMX_EXIT_CTLS", 0x484: "MSR_IA32_VMX_ENTRY_CTLS",
    0x485: "MSR_IA32_VMX_MISC", 0x486: "MSR_IA32_VMX_CR0_FIXED0", 0x487: "MSR_IA32_VMX_CR0_FIXED1",
    0x488: "MSR_IA32_VMX_CR4_FIXED0", 0x489: "MSR_IA32_VMX_CR4_FIXED1", 0x48A: "MSR_IA32_VMX_VMCS_ENUM",
    0x48B: "MSR_IA32_VMX_PROCBASED_CTLS2", 0x48C: "MSR_IA32_VMX_EPT_VPID_CAP",
    0x48D: "MSR_IA32_VMX_TRUE_PINBASED_CTLS", 0x48E: "MSR_IA32_VMX_TRUE_PROCBASED_CTLS",
    0x48F: "MSR_IA32_VMX_TRUE_EXIT_CTLS", 0x490: "MSR_IA32_VMX_TRUE_ENTRY_CTLS", 0x491: "MSR_IA32_VMX_VMFUNC",
    0x4D0: "MSR_MCG_EXT_CTL", 0x560: "MSR_IA32_RTIT_OUTPUT_BASE", 0x561: "MSR_IA32_RTIT_OUTPUT_MASK",
    0x570: "MSR_IA32_RTIT_CTL", 0x571: "MSR_IA32_RTIT_STATUS", 0x572: "MSR_IA32_RTIT_CR3_MATCH",
    0x6E0: "MSR_IA32_TSCDEADLINE", 0x6E1: "MSR_IA32_PKRS", 0xD90: "MSR_IA32_BNDCFGS", 0xDA0: "MSR_IA32_XSS",
    0x1D4: "MSR_IA32_FRED_CONFIG", 0x1D0: "MSR_IA32_FRED_STKLVLS",
    0x14CE: "MSR_ARCH_LBR_CTL", 0x14CF: "MSR_ARCH_LBR_DEPTH",
    0x40000000: "HV_X64_MSR_GUEST_OS_ID", 0x40000001: "HV_X64_MSR_HYPERCALL", 0x40000002: "HV_X64_MSR_VP_INDEX",
    0x40000010: "HV_X64_MSR_VP_RUNTIME", 0x40000020: "HV_X64_MSR_TIME_REF_COUNT",
    0x40000021: "HV_X64_MSR_REFERENCE_TSC", 0x40000022: "HV_X64_MSR_TSC_FREQUENCY",
    0x40000023: "HV_X64_MSR_APIC_FREQUENCY", 0x40000073: "HV_X64_MSR_APIC_ASSIST_PAGE",
    0x40000080: "HV_X64_MSR_SCONTROL", 0x40000081: "HV_X64_MSR_SVERSION", 0x40000082: "HV_X64_MSR_SIEFP",
    0x40000083: "HV_X64_MSR_SIMP", 0x40000084: "HV_X64_MSR_EOM", 0x40000105: "HV_X64_MSR_CRASH_CTL",
    0x40000106: "HV_X64_MSR_REENLIGHTENMENT_CONTROL", 0x40000107: "HV_X64_MSR_TSC_EMULATION_CONTROL",
    0x40000108: "HV_X64_MSR_TSC_EMULATION_STATUS",
    0x4B564D00: "MSR_KVM_WALL_CLOCK_NEW", 0x4B564D01: "MSR_KVM_SYSTEM_TIME_NEW", 0x4B564D02: "MSR_KVM_ASYNC_PF_EN",
    0x4B564D03: "MSR_KVM_STEAL_TIME", 0x4B564D04: "MSR_KVM_PV_EOI_EN", 0x4B564D05: "MSR_KVM_POLL_CONTROL",
    0x4B564D06: "MSR_KVM_ASYNC_PF_INT", 0x4B564D07: "MSR_KVM_ASYNC_PF_ACK", 0x4B564D08: "MSR_KVM_MIGRATION_CONTROL",
    0xC0000080: "MSR_EFER", 0xC0000081: "MSR_STAR", 0xC0000082: "MSR_LSTAR", 0xC0000083: "MSR_CSTAR",
    0xC0000084: "MSR_FMASK", 0xC0000100: "MSR_FSBASE", 0xC0000101: "MSR_GSBASE", 0xC0000102: "MSR_KERNELGSBASE",
    0xC0000103: "MSR_TSC_AUX", 0xC0000104: "MSR_AMD64_TSC_RATIO", 0xC0010015: "MSR_K7_HWCR",
    0xC0010117: "MSR_VM_HSAVE_PA", 0xC001011F: "MSR_VIRT_SSBD",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bank:
    """Registers in a row: ``count`` of them from ``first``, named by turns."""

    first: int
    count: int
    names: tuple[str, ...]


_BANKS = (
    _Bank(first=0x8C, count=4, names=("MSR_IA32_SGXLEPUBKEYHASH{n}",)),
    _Bank(first=0xC1, count=8, names=("MSR_P6_PERFCTR{n}",)),
    _Bank(first=0x186, count=8, names=("MSR_P6_EVNTSEL{n}",)),
    _Bank(first=0x1CC, count=4, names=("MSR_IA32_FRED_RSP{n}",)),
    _Bank(first=0x1D1, count=3, names=("MSR_IA32_FRED_SSP{n1}",)),
    _Bank(first=0x200, count=32, names=("MSR_MTRRphysBase({n})", "MSR_MTRRphysMask({n})")),
    _Bank(first=0x280, count=32, names=("MSR_MC{n}_CTL2",)),
    _Bank(first=0x309, count=4, names=("MSR_CORE_PERF_FIXED_CTR{n}",)),
    _Bank(first=0x400, count=128, names=("MSR_MC{n}_CTL", "MSR_MC{n}_STATUS", "MSR_MC{n}_ADDR", "MSR_MC{n}_MISC")),
    _Bank(first=0x580, count=8, names=("MSR_IA32_RTIT_ADDR{n}_A", "MSR_IA32_RTIT_ADDR{n}_B")),
    _Bank(first=0x1200, count=32, names=("MSR_ARCH_LBR_INFO_{n}",)),
    _Bank(first=0x1500, count=32, names=("MSR_ARCH_LBR_FROM_{n}",)),
    _Bank(first=0x1600, count=32, names=("MSR_ARCH_LBR_TO_{n}",)),
    _Bank(first=0x40000090, count=16, names=("HV_X64_MSR_SINT{n}",)),
    _Bank(first=0x400000B0, count=8, names=("HV_X64_MSR_STIMER{n}_CONFIG", "HV_X64_MSR_STIMER{n}_COUNT")),
    _Bank(first=0x40000100, count=5, names=("HV_X64_MSR_CRASH_P{n}",)),
)


def msr_name(index: int) -> str | None:
    """QEMU's name of a register, None for one that it does not name."""
    if index in MSR_NAMES:
        return MSR_NAMES[index]
    for bank in _BANKS:
        at = index - bank.first
        if 0 <= at < bank.count:
            number = at // len(bank.names)
            return bank.names[at % len(bank.names)].format(n=number, n1=number + 1)
    return None


def msr_label(index: int) -> str:
    """Number and name: ``MSR 0x48 (MSR_IA32_SPEC_CTRL)``."""
    name = msr_name(index)
    return f"MSR {index:#x} ({name})" if name else f"MSR {index:#x}"
