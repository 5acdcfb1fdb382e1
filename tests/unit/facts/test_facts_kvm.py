# SPDX-License-Identifier: GPL-2.0-or-later
"""``/dev/kvm`` asked by ioctl, against a device made of bytes."""

from __future__ import annotations

import errno
import struct
import threading
from pathlib import Path

import pytest

from harness.errors import DeadlineError
from harness.facts.kvm import CAPABILITIES, ask_kvm, kvm_facts, kvm_tried
from harness.facts.part import within
from harness.qemu.binary import AccelSeen, AccelState
from harness.report.facts import kvm_text, not_known_text

MSRS = (0xC0000082, 0x10, 0x9999)
FEATURE_MSRS = {0x10A: 0xC00E16D, 0x8B: None, 0x345: 0}
#: function, index, flags, eax, ebx, ecx, edx
CPUID = ((0x1, 0, 0, 1, 2, 0x80000201, 0x78BFBFF), (0x7, 0, 1, 0, 0xF, 0, 0), (0x99, 0, 0, 5, 5, 5, 5))


def device(request: int, argument: int | bytearray) -> int:
    if isinstance(argument, int):
        assert request in (0xAE00, 0xAE03)
        return 12 if request == 0xAE00 else {55: 1, 157: 4096}.get(argument, 0)
    if request in (0xC004AE02, 0xC004AE0A):
        indices = MSRS if request == 0xC004AE02 else tuple(FEATURE_MSRS)
        struct.pack_into(f"=I{len(indices)}I", argument, 0, len(indices), *indices)
        return 0
    if request == 0xC008AE88:
        value = FEATURE_MSRS[struct.unpack_from("=I", argument, 8)[0]]
        if value is None:
            return 0
        struct.pack_into("=Q", argument, 16, value)
        return 1
    assert request == 0xC008AE05
    struct.pack_into("=I", argument, 0, len(CPUID))
    for number, entry in enumerate(CPUID):
        struct.pack_into("=7I", argument, 8 + 40 * number, *entry)
    return 0


def test_everything_is_asked_and_named() -> None:
    part = ask_kvm(device)
    assert part.unknown == {}
    assert part.values["api_version"] == 12
    extensions = part.values["extensions"]
    assert (extensions["XSAVE"], extensions["NESTED_STATE"], extensions["XCRS"]) == (1, 4096, 0)
    assert len(extensions) == len(CAPABILITIES)
    assert part.values["msrs"] == [
        {"index": "0x10", "name": "MSR_IA32_TSC"},
        {"index": "0x9999", "name": None},
        {"index": "0xc0000082", "name": "MSR_LSTAR"},
    ]
    assert part.values["feature_msrs"] == {"0x8b": None, "0x10a": "0xc00e16d", "0x345": "0x0"}
    assert part.values["cpuid"] == {"0x1.0.ecx": "0x80000201", "0x1.0.edx": "0x078bfbff", "0x7.0.ebx": "0x0000000f",
                                    "0x7.0.ecx": "0x00000000", "0x7.0.edx": "0x00000000"}  # fmt: skip


def test_a_list_that_is_longer_than_the_room_is_asked_for_again() -> None:
    indices = tuple(range(5000))
    rooms = []

    def long(request: int, argument: int | bytearray) -> int:
        if request != 0xC004AE02 or isinstance(argument, int):
            raise OSError(errno.EINVAL, "Invalid argument")
        (room,) = struct.unpack_from("=I", argument)
        rooms.append(room)
        struct.pack_into("=I", argument, 0, len(indices))
        if room < len(indices):
            raise OSError(errno.E2BIG, "Argument list too long")
        struct.pack_into(f"={len(indices)}I", argument, 4, *indices)
        return 0

    part = ask_kvm(long)
    assert len(part.values["msrs"]) == 5000
    assert rooms == [4096, 5000]
    # and what the kernel refuses is told, each by itself
    assert part.values["api_version"] is None
    assert part.unknown["api_version"] == {"why": "error", "said": "Invalid argument"}
    assert set(part.unknown) == {"api_version", "extensions", "feature_msrs", "cpuid"}


def test_a_host_without_the_device_says_so_everywhere(tmp_path: Path) -> None:
    missing = tmp_path / "kvm"
    part = kvm_facts(device=missing)
    assert (part.values["present"], part.values["openable"], part.values["usable"]) == (False, False, False)
    assert part.unknown["msrs"] == {"why": "no-device", "said": str(missing)}
    assert (part.values["seen"], part.values["said"]) == ("no-device", str(missing))
    assert not_known_text(part.unknown["msrs"]) == f"{missing} is missing"
    assert part.values["msrs"] is None
    assert kvm_text(kvm_tried({"kvm": part.values})) == f"KVM state: could not be tried: {missing} is missing"


def test_a_device_that_is_something_else_says_so(tmp_path: Path) -> None:
    fake = tmp_path / "kvm"
    fake.write_bytes(b"")
    part = kvm_facts(AccelState(name="kvm", usable=False, seen=AccelSeen.ENDED, said="SIGABRT"), device=fake)
    assert part.values["openable"] is True
    assert part.values["msrs"] is None
    assert "ioctl" in part.unknown["msrs"]["said"]


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (AccelState(name="kvm", usable=True, seen=AccelSeen.BOOTED, seconds=0.1), "could be tried: booted in 0.1 s"),
        (
            AccelState(name="kvm", usable=False, seen=AccelSeen.LATE, seconds=10),
            "could not be tried: guest code did not run within 10 s",
        ),
        (
            {"kvm": {"usable": None, "seen": "not-tried"}},
            "could not be tried: nobody tried to run guest code under it",
        ),
        (
            {"kvm": {"usable": True, "seen": "booted", "seconds": 3}},
            "could be tried: booted in 3.0 s, more than 1.5 s: --accel auto takes TCG, which is faster",
        ),
        (
            {
                "kvm": {"usable": True, "seen": "booted", "seconds": 0.12},
                "qemu": [
                    {"version": "7.2.22", "says_refused_state": False},
                    {"version": "10.0.1", "says_refused_state": True},
                    {"version": "9.9.9", "says_refused_state": None},
                ],
            },
            "could be tried: booted in 0.1 s; QEMU 7.2.22 goes on without a word when KVM refuses anything but an MSR",
        ),
        ({}, "could not be tried: nothing is known of this host's KVM"),
        (None, "could not be tried: nothing is known of this host's KVM"),
    ],
)
def test_the_statement(known: AccelState | dict[str, object] | None, sentence: str) -> None:
    assert kvm_text(kvm_tried(known)) == f"KVM state: {sentence}"


def test_a_call_that_does_not_come_back_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(DeadlineError, match=r"ioctl 0x1: no answer within 0\.01 s"):
        within(0.01, "ioctl 0x1", release.wait)
    release.set()
    assert within(5.0, "sum", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        within(5.0, "quotient", lambda: 1 // 0)
