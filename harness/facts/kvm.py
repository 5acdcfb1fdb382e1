# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host's KVM offers, asked of ``/dev/kvm`` itself.

System ioctls (``linux/kvm.h``; native-endian)::

    KVM_GET_API_VERSION              0xae00        12 since Linux 2.6.22
    KVM_CHECK_EXTENSION              0xae03        argument: number; 0 is no, more is yes or a limit
    KVM_GET_MSR_INDEX_LIST           0xc004ae02    u32 count, count times u32 index
    KVM_GET_MSR_FEATURE_INDEX_LIST   0xc004ae0a    the same
    KVM_GET_MSRS                     0xc008ae88    u32 count, u32 0, count times (u32 index, u32 0, u64 value)
    KVM_GET_SUPPORTED_CPUID          0xc008ae05    u32 count, u32 0, count times 40 bytes: u32 function, index,
                                                   flags, eax, ebx, ecx, edx, 12 bytes 0

That the device answers does not mean that a guest runs: only running code shows that (:func:`prove_accel`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.facts.model import NotKnown, WhyNotKnown
from harness.facts.part import Part, within
from harness.qemu.binary import AccelSeen, AccelState
from harness.qemu.msr import msr_name

DEVICE = Path("/dev/kvm")
_TIMEOUT_S = 3.0
_MAX_MSRS, _MAX_CPUID = 4096, 256
_GET_API_VERSION, _CHECK_EXTENSION = 0xAE00, 0xAE03
_MSR_INDEX_LIST, _MSR_FEATURE_INDEX_LIST = 0xC004AE02, 0xC004AE0A
_GET_MSRS, _GET_SUPPORTED_CPUID = 0xC008AE88, 0xC008AE05

#: Capabilities of x86 that decide what state can be put into a guest, or what QEMU sets up for it.
CAPABILITIES = {
    0: "IRQCHIP", 7: "EXT_CPUID", 8: "CLOCKSOURCE", 9: "NR_VCPUS", 10: "NR_MEMSLOTS", 14: "MP_STATE",
    15: "COALESCED_MMIO", 24: "REINJECT_CONTROL", 25: "IRQ_ROUTING", 31: "MCE", 32: "IRQFD", 33: "PIT2",
    35: "PIT_STATE2", 36: "IOEVENTFD", 38: "XEN_HVM", 39: "ADJUST_CLOCK", 41: "VCPU_EVENTS", 44: "HYPERV",
    45: "HYPERV_VAPIC", 49: "INTR_SHADOW", 50: "DEBUGREGS", 51: "X86_ROBUST_SINGLESTEP", 55: "XSAVE", 56: "XCRS",
    59: "ASYNC_PF", 60: "TSC_CONTROL", 61: "GET_TSC_KHZ", 66: "MAX_VCPUS", 72: "TSC_DEADLINE_TIMER",
    76: "KVMCLOCK_CTRL", 77: "SIGNAL_MSI", 81: "READONLY_MEM", 96: "HYPERV_TIME", 116: "DISABLE_QUIRKS",
    117: "X86_SMM", 118: "MULTI_ADDRESS_SPACE", 121: "SPLIT_IRQCHIP", 123: "HYPERV_SYNIC", 128: "MAX_VCPU_ID",
    129: "X2APIC_API", 136: "IMMEDIATE_EXIT", 143: "X86_DISABLE_EXITS", 148: "HYPERV_SYNIC2",
    149: "HYPERV_VP_INDEX", 153: "GET_MSR_FEATURES", 155: "HYPERV_TLBFLUSH", 157: "NESTED_STATE",
    159: "MSR_PLATFORM_INFO", 161: "HYPERV_SEND_IPI", 163: "HYPERV_ENLIGHTENED_VMCS", 164: "EXCEPTION_PAYLOAD",
    168: "MANUAL_DIRTY_LOG_PROTECT2", 173: "PMU_EVENT_FILTER", 182: "HALT_POLL", 183: "ASYNC_PF_INT",
    185: "SMALLER_MAXPHYADDR", 187: "STEAL_TIME", 188: "X86_USER_SPACE_MSR", 189: "X86_MSR_FILTER",
    192: "DIRTY_LOG_RING", 193: "X86_BUS_LOCK_EXIT", 196: "SGX_ATTRIBUTE", 200: "SREGS2", 208: "XSAVE2",
    209: "SYS_ATTRIBUTES", 212: "PMU_CAPABILITY", 213: "DISABLE_QUIRKS2", 214: "VM_TSC_CONTROL",
    218: "X86_TRIPLE_FAULT_EVENT", 219: "X86_NOTIFY_VMEXIT", 223: "DIRTY_LOG_RING_ACQ_REL", 234: "GUEST_MEMFD",
    235: "VM_TYPES",
}  # fmt: skip

#: CPUID registers whose bits are features: function, index, register.
_CPUID_REGISTERS = (
    (0x1, 0, "ecx"), (0x1, 0, "edx"), (0x7, 0, "ebx"), (0x7, 0, "ecx"), (0x7, 0, "edx"), (0x7, 1, "eax"),
    (0x7, 1, "edx"), (0xD, 0, "eax"), (0xD, 1, "eax"), (0xD, 1, "ecx"), (0x40000001, 0, "eax"),
    (0x80000001, 0, "ecx"), (0x80000001, 0, "edx"), (0x80000007, 0, "edx"), (0x80000008, 0, "ebx"),
    (0x8000000A, 0, "edx"), (0x80000021, 0, "eax"),
)  # fmt: skip
_REGISTERS = ("eax", "ebx", "ecx", "edx")

#: An ioctl on the open device: request, then a number or a buffer that is changed in place.
Ask = Callable[[int, int | bytearray], int]


def kvm_facts(accel: AccelState | None = None, *, device: Path = DEVICE) -> Part:
    """Everything that ``/dev/kvm`` says of itself.

    :param accel: what came of running code under KVM, None when nobody tried
    """
    part = Part()
    part.values["present"] = device.exists()
    part.values["usable"] = None if accel is None else accel.usable
    if accel is None:
        part.unknown["usable"] = {"why": WhyNotKnown.NOT_TRIED, "said": ""}
    try:
        handle = within(_TIMEOUT_S, f"open {device}", lambda: os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except Exception as error:
        why = _why_not_open(error, device)
        seen = AccelSeen.NO_DEVICE if why["why"] is WhyNotKnown.NO_DEVICE else AccelSeen.NOT_OPENED
        part.values |= {"openable": False, "usable": False, "seen": seen, "said": why["said"], "seconds": 0.0}
        part.unknown.pop("usable", None)
        for name in ("api_version", "extensions", "msrs", "feature_msrs", "cpuid"):
            part.miss(name, why)
        return part
    tried = accel or AccelState(name="kvm", usable=False, seen=AccelSeen.NOT_TRIED)
    part.values |= {"openable": True, "seen": tried.seen, "said": tried.said, "seconds": tried.seconds}

    def ask(request: int, argument: int | bytearray) -> int:
        # the flag makes the kernel write into the buffer itself; over 1024 bytes it does so anyway
        return within(_TIMEOUT_S, f"ioctl {request:#x}", lambda: fcntl.ioctl(handle, request, argument, True))

    try:
        answers = ask_kvm(ask)
    finally:
        os.close(handle)
    part.values |= answers.values
    part.unknown |= answers.unknown
    return part


def ask_kvm(ask: Ask) -> Part:
    """API version, extensions, MSR lists and offered CPUID bits, by these ioctls."""
    part = Part()
    part.put("api_version", lambda: ask(_GET_API_VERSION, 0))
    part.put("extensions", lambda: {name: ask(_CHECK_EXTENSION, number) for number, name in CAPABILITIES.items()})
    part.put("msrs", lambda: [_named(index) for index in _msr_list(ask, _MSR_INDEX_LIST)])
    part.put("feature_msrs", lambda: _feature_msrs(ask))
    part.put("cpuid", lambda: _cpuid(ask))
    return part


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmTried:
    """Whether state that KVM refuses could be seen on a host.

    :param state: what came of running code under KVM
    :param silent: versions of QEMU that go on without a word when KVM refuses anything but an MSR
    """

    state: AccelState
    silent: tuple[str, ...] = ()


def kvm_tried(known: Mapping[str, Any] | AccelState | None) -> KvmTried:
    """Whether KVM state can be tried.

    :param known: host facts, or what came of running code under KVM, or None
    """
    if isinstance(known, AccelState):
        return KvmTried(state=known)
    kvm = (known or {}).get("kvm") or {}
    builds: Sequence[Mapping[str, Any]] = (known or {}).get("qemu") or ()
    return KvmTried(
        state=kvm_came(kvm),
        silent=tuple(str(build["version"]) for build in builds if build.get("says_refused_state") is False),
    )


def kvm_came(kvm: Mapping[str, Any]) -> AccelState:
    """What came of running code under KVM, as the facts of a host say."""
    return AccelState(
        name="kvm",
        usable=bool(kvm.get("usable")),
        seen=AccelSeen(kvm.get("seen") or AccelSeen.NOTHING_KNOWN),
        said=str(kvm.get("said") or ""),
        seconds=float(kvm.get("seconds") or 0.0),
    )


def _why_not_open(error: Exception, device: Path) -> NotKnown:
    if isinstance(error, FileNotFoundError):
        return {"why": WhyNotKnown.NO_DEVICE, "said": str(device)}
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return {"why": WhyNotKnown.NOT_OPENED, "said": f"{device}: {words}"}


def _named(index: int) -> dict[str, str | None]:
    return {"index": f"{index:#x}", "name": msr_name(index)}


def _msr_list(ask: Ask, request: int) -> list[int]:
    """The list of an ioctl that wants room for it; with too little it says E2BIG and how much it wants."""
    room = _MAX_MSRS
    for _ in range(2):
        buffer = bytearray(4 + 4 * room)
        struct.pack_into("=I", buffer, 0, room)
        try:
            ask(request, buffer)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            (room,) = struct.unpack_from("=I", buffer)
            continue
        (count,) = struct.unpack_from("=I", buffer)
        return sorted(struct.unpack_from(f"={count}I", buffer, 4))
    raise OSError(errno.E2BIG, "the list does not fit")


def _feature_msrs(ask: Ask) -> dict[str, str | None]:
    """Index to value. They are asked for one by one: a list stops at the first that cannot be read."""
    return {f"{index:#x}": _feature_msr(ask, index) for index in _msr_list(ask, _MSR_FEATURE_INDEX_LIST)}


def _feature_msr(ask: Ask, index: int) -> str | None:
    buffer = bytearray(struct.pack("=IIIIQ", 1, 0, index, 0, 0))
    try:
        if ask(_GET_MSRS, buffer) != 1:
            return None
    except OSError:
        return None
    return f"{struct.unpack_from('=Q', buffer, 16)[0]:#x}"


def _cpuid(ask: Ask) -> dict[str, str]:
    buffer = bytearray(8 + 40 * _MAX_CPUID)
    struct.pack_into("=II", buffer, 0, _MAX_CPUID, 0)
    ask(_GET_SUPPORTED_CPUID, buffer)
    (count,) = struct.unpack_from("=I", buffer)
    entries = {}
    for number in range(count):
        function, index, _, *registers = struct.unpack_from("=7I", buffer, 8 + 40 * number)
        entries[function, index] = dict(zip(_REGISTERS, registers, strict=True))
    return {
        f"{function:#x}.{index}.{register}": f"{entries[function, index][register]:#010x}"
        for function, index, register in _CPUID_REGISTERS
        if (function, index) in entries
    }
