# SPDX-License-Identifier: GPL-2.0-or-later
"""From evidence to verdict, on logs that real QEMUs printed, and on logs that look like them and are not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_cells import symptom, words

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.oracles.load import crash_line, error_line, judge, warnings_of
from harness.qemu.process import Exit
from harness.report.sentences import warning_text
from harness.results.verdict import Verdict

ASSERTION = (
    "qemu-system-x86_64: ../../softmmu/memory.c:2610: memory_region_add_subregion_common: "
    "Assertion `!subregion->container' failed."
)
PIC = """\
qemu-system-x86_64: savevm: unsupported version 99 for 'i8259' v1
qemu-system-x86_64: Failed to load device state: -22
qemu-system-x86_64: COLO: load device state failed"""
NET = """\
qemu-system-x86_64: Invalid value -1 expecting positive value <= 2
qemu-system-x86_64: Failed to load PCIDevice:version_id
qemu-system-x86_64: Failed to load virtio-net:virtio
qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'
qemu-system-x86_64: Failed to load device state: -22
qemu-system-x86_64: COLO: load device state failed"""
VNET = "0000:00:05.0/virtio-net"
UNKNOWN = """\
qemu-system-x86_64: Unknown savevm section or instance 'nosuch' 0. Make sure that your current VM setup matches \
your saved VM setup, including any hotplugged devices
qemu-system-x86_64: Failed to load device state: -22"""
FEATURES = "qemu-system-x86_64: Features 0x179bffffe7 unsupported. Allowed features: 0x79bfffe7"
SANITIZER = """\
=================================================================
==4711==ERROR: AddressSanitizer: heap-use-after-free on address 0x60200000eff0 at pc 0x55d
SUMMARY: AddressSanitizer: heap-use-after-free hw/ide/ahci.c:1"""
UBSAN = "../hw/ide/ahci.c:3:7: runtime error: index 32 out of bounds for type 'AHCIDevice [32]'"
GLIB = "ERROR:../hw/core/qdev.c:123:device_set_realized: assertion failed: (dev->realized)"
WARNING = "qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]"

ABORTED = Exit(status=-6, signal="SIGABRT")
SEGFAULT = Exit(status=-11, signal="SIGSEGV")
#: 7.2 leaves COLO, says so by an event, and keeps its connection.
LEFT = "the secondary left COLO (event COLO_EXIT, reason error)"


def at(kind: str, step: Step = Step.LOAD, load: int = 3, detail: str = "detail") -> Break:
    return Break(step=step, kind=kind, symptom=symptom(detail), load=load, phase="bound")


def evidence(**changes: Any) -> Evidence:
    given: dict[str, Any] = {
        "loads_asked": 100,
        "loads_acked": 2 if changes.get("broken") else 100,
        "checkpoints_acked": 2,
        "broken": None,
        "exit": None,
        "log": "",
    }
    return Evidence(**{**given, **changes})


TABLE = [
    # what was seen, verdict, text, named section
    (evidence(), Verdict.OK, "", None),
    (evidence(log=WARNING), Verdict.OK, "", None),
    (evidence(loads_acked=99), Verdict.HARNESS_ERROR, "99 of 100 loads acknowledged", None),
    # it died
    (
        evidence(broken=at("closed"), exit=ABORTED, log=WARNING + "\n" + ASSERTION),
        Verdict.CRASH,
        "load 3: SIGABRT: " + ASSERTION.removeprefix("qemu-system-x86_64: "),
        None,
    ),
    (evidence(broken=at("closed"), exit=SEGFAULT), Verdict.CRASH, "load 3: SIGSEGV: QEMU printed no reason", None),
    (evidence(exit=SEGFAULT), Verdict.CRASH, "after load 100: SIGSEGV: QEMU printed no reason", None),
    (
        evidence(broken=at("closed"), exit=ABORTED, log=GLIB),
        Verdict.CRASH,
        "load 3: SIGABRT: " + GLIB,
        None,
    ),
    (
        evidence(broken=at("closed"), exit=Exit(status=1), log=SANITIZER),
        Verdict.CRASH,
        "load 3: exit status 1: ==4711==ERROR: AddressSanitizer: heap-use-after-free on address "
        "0x60200000eff0 at pc 0x55d",
        None,
    ),
    (evidence(broken=at("closed"), exit=Exit(status=1), log=UBSAN), Verdict.CRASH,
     "load 3: exit status 1: " + UBSAN, None),
    (
        evidence(broken=at("closed", Step.INCOMING, 0), exit=ABORTED, log=ASSERTION),
        Verdict.CRASH,
        "in the incoming stream, before any checkpoint: SIGABRT: " + ASSERTION.removeprefix("qemu-system-x86_64: "),
        None,
    ),
    # the load crashed and named its device before
    (
        evidence(broken=at("closed"), exit=SEGFAULT, log=NET),
        Verdict.CRASH,
        "load 3: SIGSEGV: QEMU printed no reason",
        "0000:00:05.0/virtio-net",
    ),
    # it did not answer
    (evidence(broken=at("late")), Verdict.HANG, "load 3: detail", None),
    (evidence(broken=at("late"), log=NET), Verdict.HANG, "load 3: detail", "0000:00:05.0/virtio-net"),
    (
        evidence(events=("NO-ANSWER",)),
        Verdict.HANG,
        "every load was acknowledged: then QEMU's main loop did not answer",
        None,
    ),
    # it refused, and lives on
    (
        evidence(broken=at("refused", detail=LEFT), log=PIC),
        Verdict.REJECT,
        "load 3: savevm: unsupported version 99 for 'i8259' v1",
        "i8259",
    ),
    (
        evidence(broken=at("refused", detail=LEFT), log=NET),
        Verdict.REJECT,
        "load 3: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'",
        "0000:00:05.0/virtio-net",
    ),
    (
        evidence(broken=at("refused", detail=LEFT), log=NET.replace("0x0", "0x1a").replace(VNET, "apic")),
        Verdict.REJECT,
        "load 3: error while loading state for instance 0x1a of device 'apic'",
        "apic#26",
    ),
    (
        evidence(broken=at("refused", detail=LEFT), log=UNKNOWN),
        Verdict.REJECT,
        "load 3: " + UNKNOWN.splitlines()[0].removeprefix("qemu-system-x86_64: "),
        "nosuch",
    ),
    (
        evidence(broken=at("refused", detail=LEFT), log=UNKNOWN.replace("'nosuch' 0", "'cpu' 3")),
        Verdict.REJECT,
        "load 3: " + UNKNOWN.splitlines()[0].removeprefix("qemu-system-x86_64: ").replace("'nosuch' 0", "'cpu' 3"),
        "cpu#3",
    ),
    (
        evidence(broken=at("refused", detail=LEFT), log=FEATURES),
        Verdict.REJECT,
        "load 3: Features 0x179bffffe7 unsupported. Allowed features: 0x79bfffe7",
        None,
    ),
    (evidence(broken=at("refused", detail=LEFT)), Verdict.REJECT, "load 3: " + LEFT, None),
    (evidence(broken=at("closed")), Verdict.REJECT, "load 3: detail", None),
    (evidence(broken=at("closed"), exit=Exit(status=1), log=PIC), Verdict.REJECT,
     "load 3: exit status 1: savevm: unsupported version 99 for 'i8259' v1", "i8259"),
    (evidence(broken=at("closed"), exit=Exit(status=1)), Verdict.REJECT,
     "load 3: exit status 1: QEMU printed no reason", None),
    # it spoke out of turn: with a reason it refused, without one the harness does not understand it
    (evidence(broken=at("unexpected"), log=PIC), Verdict.REJECT,
     "load 3: savevm: unsupported version 99 for 'i8259' v1", "i8259"),
    (evidence(broken=at("unexpected", detail="VMSTATE_SEND instead of VMSTATE_LOADED")), Verdict.HARNESS_ERROR,
     "load 3: the secondary answered out of order: VMSTATE_SEND instead of VMSTATE_LOADED", None),
    # its guest ended
    (evidence(broken=at("closed"), exit=Exit(status=0)), Verdict.GUEST_FAULT,
     "load 3: QEMU ended with status 0: the guest shut down or triple-faulted", None),
    (evidence(exit=Exit(status=0)), Verdict.GUEST_FAULT,
     "after load 100: QEMU ended with status 0: the guest shut down or triple-faulted", None),
    (evidence(events=("SHUTDOWN", "RESET")), Verdict.GUEST_FAULT,
     "the guest ended during the loads: SHUTDOWN, RESET", None),
    # somebody else ended it
    (evidence(broken=at("closed"), exit=Exit(status=-9, signal="SIGKILL"), log=NET), Verdict.HOST,
     "QEMU was ended from outside by SIGKILL", "0000:00:05.0/virtio-net"),
    (evidence(broken=at("closed"), exit=Exit(status=-15, signal="SIGTERM")), Verdict.HOST,
     "QEMU was ended from outside by SIGTERM", None),
    # told by SIGINT, it left in an orderly way
    (evidence(exit=Exit(status=0, signal="SIGINT")), Verdict.HOST, "QEMU was ended from outside by SIGINT", None),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "verdict", "text", "named"), TABLE)
def test_a_verdict_with_its_text_and_the_section_that_qemu_names(
    seen: Evidence, verdict: Verdict, text: str, named: str | None
) -> None:
    judgement = judge(seen)
    assert (judgement.verdict, words(judgement), judgement.named) == (verdict, text, named)
    assert judgement.log == seen.log


NEAR_MISSES = [
    "qemu-system-x86_64: warning: Assertion of the reset line is ignored",
    "guest: Assertion violated",
    "qemu-system-x86_64: Assertion failed to convince anybody",
    "AddressSanitizer is not in this build",
    "qemu-system-x86_64: warning: DEBUG: x",
    "a runtime error of the guest",
]


@pytest.mark.parametrize("line", NEAR_MISSES)
def test_a_line_that_only_looks_like_a_crash_is_none(line: str) -> None:
    assert crash_line(line) is None
    ended = evidence(broken=at("closed"), exit=Exit(status=0), log=line)
    assert judge(ended).verdict is Verdict.GUEST_FAULT
    assert judge(evidence(log=line)).verdict is Verdict.OK


@pytest.mark.parametrize("line", [WARNING, "qemu-system-x86_64: warning: loading is slow", "", "vhost: ok"])
def test_a_line_that_is_no_load_error(line: str) -> None:
    assert error_line(line) is None


def test_the_program_may_have_any_name_and_place() -> None:
    assert error_line(PIC.replace("qemu-system-x86_64: ", "/opt/q 7/qemu-7.2/bin/qemu-system-x86_64: ")) is not None
    assert error_line(PIC.replace("qemu-system-x86_64: ", "/opt/qemu/qemu-kvm: ")) == (
        "savevm: unsupported version 99 for 'i8259' v1"
    )


def test_a_long_log_keeps_its_end_and_still_finds_the_line() -> None:
    judgement = judge(evidence(broken=at("closed"), exit=ABORTED, log=ASSERTION + "\n" + "x" * 100_000 + "end"))
    assert "container" in words(judgement)
    assert len(judgement.log) == 4000
    assert judgement.log.endswith("end")


def test_a_warning_is_said_once_with_its_first_load_and_how_often_it_came() -> None:
    printed = ((0, "qemu-system-x86_64: old"), (3, WARNING), (3, "x"), (9, WARNING))
    assert [warning_text(each) for each in warnings_of(evidence(warnings=printed))] == [
        "before the first load: old",
        "load 3, 2 times: " + WARNING.removeprefix("qemu-system-x86_64: "),
        "load 3: x",
    ]


breaks = st.builds(
    Break,
    step=st.sampled_from(Step),
    kind=st.sampled_from(["closed", "late", "refused", "unexpected"]),
    symptom=st.builds(symptom, st.text(max_size=5)),
    load=st.integers(0, 5),
    phase=st.just("bound"),
)
exits = st.sampled_from([Exit(status=n) for n in (0, 1, 139)] + [ABORTED, SEGFAULT, Exit(status=-9, signal="SIGKILL")])


@given(
    st.builds(
        Evidence,
        loads_asked=st.integers(1, 4),
        loads_acked=st.integers(0, 4),
        checkpoints_acked=st.integers(0, 4),
        broken=st.none() | breaks,
        exit=st.none() | exits,
        log=st.sampled_from(["", ASSERTION, PIC, NET, WARNING, SANITIZER]),
        events=st.sampled_from([(), ("SHUTDOWN",), ("NO-ANSWER",)]),
    )
)
def test_ok_means_all_loads_acknowledged_and_nothing_else_seen(seen: Evidence) -> None:
    judgement = judge(seen)
    if judgement.verdict is Verdict.OK:
        assert seen.loads_acked >= seen.loads_asked
        assert (seen.broken, seen.exit, seen.events) == (None, None, ())
    else:
        assert words(judgement)


@pytest.mark.parametrize(
    ("kind", "log", "verdict"),
    [
        ("died", NET, Verdict.REJECT),
        ("closed", NET, Verdict.CRASH),
        # in the order in which it was printed: two threads that clean up trip over each other, a device breaks before
        ("died", f"{NET}\n{ASSERTION}", Verdict.REJECT),
        ("died", f"{ASSERTION}\n{NET}", Verdict.CRASH),
    ],
)
def test_a_postcopy_destination_that_died_of_cleaning_up_a_refused_load_is_a_reject(
    kind: str, log: str, verdict: Verdict
) -> None:
    found = judge(evidence(broken=at(kind, load=1), exit=SEGFAULT, log=log))
    assert (found.verdict, found.named) == (verdict, VNET)
    assert "SIGSEGV" in words(found)


def died(signal: str, log: str = "") -> Evidence:
    return evidence(loads_acked=2, broken=at("closed"), exit=Exit(status=-6, signal=signal), log=log)


def refused(log: str) -> Evidence:
    return evidence(loads_acked=2, broken=at("refused"), log=log)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (died("SIGABRT", ASSERTION), died("SIGABRT", ASSERTION), True),
        (died("SIGABRT", ASSERTION), died("SIGABRT", ASSERTION.replace("!subregion", "subregion")), False),
        # a log may be lost, and memory that is spoilt may end a process in several ways
        (died("SIGABRT", ASSERTION), died("SIGABRT"), True),
        (died("SIGSEGV"), died("SIGABRT"), True),
        (died("SIGSEGV"), died("SIGABRT", ASSERTION), False),
        # a section that is refused now and then is not the one that is refused each time
        (refused(NET), refused(NET), True),
        (refused(NET), refused(NET.replace("virtio-net", "virtio-gpu")), False),
        (refused(NET), refused("load of migration failed"), True),
    ],
)
def test_who_breaks_as_another_did(one: Evidence, other: Evidence, same: bool) -> None:
    assert judge(one).is_break_of(judge(other)) is same
    assert judge(other).is_break_of(judge(one)) is same
