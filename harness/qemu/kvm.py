# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest state that KVM refused, read from QEMU's log: which register or ioctl, which value, in which words.

What QEMU prints (``target/i386/kvm/kvm.c``, ``kvm_arch_put_registers``; ``accel/kvm/kvm-all.c``,
``kvm_cpu_synchronize_post_init``; ``hw/i386/kvm``)::

    error: failed to set MSR 0x48 to 0x4                         all versions, then an assertion and SIGABRT
    kvm_put_apicbase: Assertion `ret == 1' failed                all versions: registers that are written alone
    KVM_SET_PIT2 failed: Invalid argument                        all versions, then SIGABRT: irqchip, PIT, LAPIC, clock
    Putting registers after init: Failed to set XCRs: ...        10.0, then exit status 1
    Restoring resisters after init: Failed to set XCRs: ...      11.1 (its spelling), the same
    Failed to put registers after init: Invalid argument         where the ioctl is not said

5.2 and 7.2 do not look at the result of any ioctl of that function but those of the first three rows: the vCPU
goes on without what was refused, and nothing is printed. An acknowledged load under KVM says that much less there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.qemu.msr import msr_label

_MSR = re.compile(r"error: failed to (?P<way>set|get) MSR 0x(?P<index>[0-9a-f]+)(?: to 0x(?P<value>[0-9a-f]+))?")
#: ``errp`` texts of ``kvm_arch_put_registers`` and ``kvm_arch_get_registers``, and what they stand for.
_PARTS: dict[str, str] = {
    "special registers": "SREGS", "general purpose registers": "REGS", "XSAVE": "XSAVE", "XCRs": "XCRS",
    "MSRs": "MSRS", "vCPU events": "VCPU_EVENTS", "MP state": "MP_STATE", "debug registers": "DEBUGREGS",
    "nested state": "NESTED_STATE",
}  # fmt: skip
#: The same, of registers that are written one by one.
_SINGLE_PARTS = {"TSC deadline MSR": 0x6E0, "feature control MSR": 0x3A}
_PART = re.compile(
    rf"Failed to (?P<way>set|get) (?P<part>{'|'.join(map(re.escape, (*_PARTS, *_SINGLE_PARTS)))})(?:: (?P<error>.+))?$"
)
_PUT = re.compile(r"Failed to put registers after \w+: (?P<error>.+)$")
_IOCTL = re.compile(r"\b(?P<ioctl>KVM_[SG]ET_(?:PIT2?|IRQCHIP|LAPIC|CLOCK)) failed: (?P<error>.+)$")
#: Functions whose assertion is about what an ioctl returned; the number is the one register that they write.
_SINGLE_FUNCTIONS = {"kvm_put_apicbase": 0x1B, "kvm_put_tscdeadline_msr": 0x6E0, "kvm_put_msr_feature_control": 0x3A}
_MSR_FUNCTIONS = {
    "kvm_buf_set_msrs": "KVM_SET_MSRS", "kvm_put_msrs": "KVM_SET_MSRS", "kvm_init_msrs": "KVM_SET_MSRS",
    "kvm_get_msrs": "KVM_GET_MSRS",
}  # fmt: skip
_ASSERTION = re.compile(r"\b(?P<function>kvm_\w+): Assertion [`'\"].*failed")
#: ``nested_state_post_load`` (``target/i386/machine.c``): this kernel cannot take it, whatever is in it.
_NESTED = re.compile(
    r"Received nested state when kernel cannot restore it|Received unsupported nested state size: .*max=\d+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One thing that KVM did not take, or did not give.

    :param ioctl: such as ``KVM_SET_MSRS``; ``kvm_arch_put_registers`` where QEMU does not say which
    :param msr: the register's number, None when it is not one
    :param value: what it was to be set to, None when the log does not say
    :param error: the system's text, such as ``Invalid argument``, or empty
    :param line: the line of the log
    """

    ioctl: str
    msr: int | None = None
    value: int | None = None
    error: str = ""
    line: str = ""

    @property
    def group(self) -> str:
        """What failures are counted by: the register, else the ioctl."""
        return self.ioctl if self.msr is None else msr_label(self.msr)


def kvm_refusals(log: str) -> tuple[Refusal, ...]:
    """Everything in a log that KVM refused, in order, each thing once."""
    seen: dict[tuple[str, int | None], Refusal] = {}
    for line in log.splitlines():
        refusal = _refusal(line.strip())
        if refusal is not None:
            seen.setdefault((refusal.group, refusal.value), refusal)
    found = list(seen.values())
    # the assertion that follows a named register is about that one
    if any(refusal.msr is not None for refusal in found):
        found = [r for r in found if r.msr is not None or r.ioctl not in _MSR_FUNCTIONS.values()]
    return tuple(found)


def is_kvm_assertion(line: str) -> bool:
    """Whether an assertion is QEMU's way to say that KVM refused a register."""
    match = _ASSERTION.search(line)
    return match is not None and (match["function"] in _SINGLE_FUNCTIONS or match["function"] in _MSR_FUNCTIONS)


def _refusal(line: str) -> Refusal | None:
    return _by_register(line) or _by_ioctl(line) or _by_assertion(line)


def _by_register(line: str) -> Refusal | None:
    match = _MSR.search(line)
    if match is None:
        return None
    value = None if match["value"] is None else int(match["value"], 16)
    ioctl = f"KVM_{match['way'].upper()}_MSRS"
    return Refusal(ioctl=ioctl, msr=int(match["index"], 16), value=value, line=line)


def _by_ioctl(line: str) -> Refusal | None:
    part = _PART.search(line)
    if part is not None:
        way, error = part["way"].upper(), part["error"] or ""
        single = _SINGLE_PARTS.get(part["part"])
        ioctl = f"KVM_{way}_{'MSRS' if single else _PARTS[part['part']]}"
        return Refusal(ioctl=ioctl, msr=single, error=error, line=line)
    named = _IOCTL.search(line)
    if named is not None:
        return Refusal(ioctl=named["ioctl"], error=named["error"], line=line)
    put = _PUT.search(line)
    if put is not None:
        return Refusal(ioctl="kvm_arch_put_registers", error=put["error"], line=line)
    nested = _NESTED.search(line)
    if nested is not None:
        return Refusal(ioctl="KVM_SET_NESTED_STATE", error=nested[0], line=line)
    return None


def _by_assertion(line: str) -> Refusal | None:
    match = _ASSERTION.search(line)
    if match is None:
        return None
    if match["function"] in _SINGLE_FUNCTIONS:
        return Refusal(ioctl="KVM_SET_MSRS", msr=_SINGLE_FUNCTIONS[match["function"]], line=line)
    if match["function"] in _MSR_FUNCTIONS:
        return Refusal(ioctl=_MSR_FUNCTIONS[match["function"]], line=line)
    return None
