# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a guest said to a verdict: lines that real kernels printed, and healthy ones that look like them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from made_cells import symptom
from made_cells import words as in_words

from harness.colo.messages import Step
from harness.engines.evidence import Break
from harness.experiments.guestlife import GuestClock, GuestLife, LifeCheck
from harness.guests.machine import DiskKind
from harness.oracles.guestfault import LOG_RULES, judge_life
from harness.oracles.oracle import Opinion
from harness.qemu.process import Exit
from harness.results.cause import KernelComplaint
from harness.results.verdict import Verdict

NAMES = {
    "ahci": ("ata[0-9]+", "ahci", "sd[a-z]", "scsi", r"0000:00:03\.0"),
    "virtio-blk": ("vd[a-z]", "virtio_blk", r"0000:00:04\.0"),
    "virtio-net": ("eth[0-9]+", "virtio_net", r"0000:00:05\.0"),
}
DEVICES = ("ahci", "virtio-blk", "virtio-net", "platform")
FIRST = GuestClock(asked_s=100.0, answered_s=100.2, beats=36, up_s=4.92, epoch_s=1795392856)
LAST = GuestClock(asked_s=101.5, answered_s=101.6, beats=60, up_s=6.32, epoch_s=1795392857)
ABORTED = Exit(status=-6, signal="SIGABRT")


def check(device: str, status: int | None = 0, said: str = "") -> LifeCheck:
    return LifeCheck(device=device, status=status, said=said, seconds=20.0 if status is None else 0.5)


def life(**changes: Any) -> GuestLife:
    given: dict[str, Any] = {
        "phase": "bound",
        "devices": DEVICES,
        "kernel_names": NAMES,
        "disks": DiskKind.REPLICATION,
        "loads_asked": 30,
        "loads_acked": 30,
        "clocks": (FIRST, LAST),
        "checks": tuple(check(device) for device in NAMES),
        "kernel_log": ("[    5.501043] IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",),
    }
    return GuestLife(**given | changes)


def faulty(judged: dict[str, Opinion]) -> set[str]:
    assert {j.verdict for j in judged.values()} <= {Verdict.OK, Verdict.GUEST_FAULT}
    return {device for device, j in judged.items() if j.verdict is Verdict.GUEST_FAULT}


def test_a_device_that_has_nothing_to_ask_is_judged_by_the_log_of_a_guest_that_is_well() -> None:
    silent, *others = NAMES
    given: dict[str, Any] = {"checks": tuple(check(device) for device in others), "unasked": (silent,)}
    judged = judge_life(life(**given))
    assert {device: j.verdict for device, j in judged.items()} == dict.fromkeys(DEVICES, Verdict.OK)
    # of a guest that did not answer it is not known
    assert silent not in judge_life(life(**given | {"checks": (), "clocks": (FIRST,), "stuck": symptom("no prompt")}))
    assert silent not in judge_life(life(**given, clocks=(FIRST, replace(LAST, beats=FIRST.beats))))


def test_a_guest_that_is_well() -> None:
    judged = judge_life(life())
    assert set(judged) == set(DEVICES)
    assert faulty(judged) == set()
    assert all(j.causes == () for j in judged.values())
    assert judged["platform"].details["clock"] == {"host_s": 1.3, "up_s": 1.4, "epoch_s": 1, "beats": 24}
    assert judged["ahci"].details["disks"] == "replication"
    json.dumps({device: j.details for device, j in judged.items()})


# --- Checks ------------------------------------------------------------------------------------------------


def test_a_check_that_fails_is_its_devices_fault() -> None:
    said = "reading the pattern of sda\n/tmp/want.sda /tmp/got.sda differ: char 1, line 1"
    judged = judge_life(life(checks=(check("ahci", 1, said), check("virtio-blk"), check("virtio-net"))))
    assert faulty(judged) == {"ahci"}
    assert "differ: char 1" in in_words(judged["ahci"])
    assert "status 1" in in_words(judged["ahci"])


def test_a_check_that_does_not_end_says_where_it_was() -> None:
    checks = (check("ahci"), check("virtio-blk", None, "reading the pattern of vda\nwriting to vda"))
    judged = judge_life(life(checks=checks))
    assert faulty(judged) == {"virtio-blk"}
    assert in_words(judged["virtio-blk"]) == "no end within 20 s: writing to vda"
    assert "virtio-net" not in judged


def test_a_check_that_waits_for_a_dead_timer_is_the_platforms_fault() -> None:
    stopped = GuestClock(asked_s=120.0, answered_s=120.1, beats=36, up_s=4.93, epoch_s=1795392856)
    checks = (check("ahci"), check("virtio-blk", 1, "dd failed"), check("virtio-net", None, "small pings"))
    judged = judge_life(life(clocks=(FIRST, stopped), checks=checks))
    assert faulty(judged) == {"platform", "virtio-blk"}
    assert "virtio-net" not in judged
    assert "virtio-net, with such a clock: no end within 20 s" in in_words(judged["platform"])


# --- Clocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beats", "up_s", "epoch_s", "words"),
    [
        (36, 6.32, 1795392857, "heartbeat went on by 0"),
        (60, 4.93, 1795392856, "clock went on by 0.01 s"),
        (60, 5.40, 1795392857, "clock went on by 0.48 s"),
        (60, 9.92, 1795392861, "clock went on by 5.00 s"),
        (60, 3.92, 1795392856, "clock went on by -1.00 s"),
        (60, 6.32, 1795392900, "calendar went on by 44 s"),
        (60, 6.32, 1795392855, "calendar went on by -1 s"),
    ],
)
def test_a_clock_that_is_wrong(beats: int, up_s: float, epoch_s: int, words: str) -> None:
    last = GuestClock(asked_s=101.5, answered_s=101.6, beats=beats, up_s=up_s, epoch_s=epoch_s)
    judged = judge_life(life(clocks=(FIRST, last)))
    assert faulty(judged) == {"platform"}
    assert words in in_words(judged["platform"])


#: With eight busy processes beside it, a reading takes seconds; its QEMU got no CPU for most of the time.
BUSY_FIRST = GuestClock(asked_s=100.0, answered_s=101.8, beats=36, up_s=5.0, epoch_s=1795392856, lost_s=3.0)


@pytest.mark.parametrize(
    ("up_s", "epoch_s"),
    [
        (29.39, 1795392878),  # 22 s against 24.39 s: the second reading of the calendar came earlier than the first
        (17.0, 1795392868),  # it lost half of the time, as one may that gets no CPU
    ],
)
def test_a_guest_that_gets_no_cpu_has_no_broken_clock(up_s: float, epoch_s: int) -> None:
    last = GuestClock(asked_s=124.0, answered_s=126.2, beats=60, up_s=up_s, epoch_s=epoch_s, lost_s=21.0)
    assert faulty(judge_life(life(clocks=(BUSY_FIRST, last)))) == set()


@pytest.mark.parametrize(
    ("beats", "up_s", "epoch_s", "words"),
    [
        (60, 5.0, 1795392856, "clock went on by 0.00 s"),  # 4.2 s could have been used
        (60, 6.5, 1795392857, "clock went on by 1.50 s"),
        (36, 17.0, 1795392868, "heartbeat"),
        (60, 17.0, 1795392856, "the guest's calendar went on by 0 s while its clock went on by 12.00 s"),
        (60, 50.0, 1795392901, "clock went on by 45.00 s"),
    ],
)
def test_a_clock_that_is_broken_is_found_beside_busy_processes(
    beats: int, up_s: float, epoch_s: int, words: str
) -> None:
    last = GuestClock(asked_s=124.0, answered_s=126.2, beats=beats, up_s=up_s, epoch_s=epoch_s, lost_s=21.0)
    judged = judge_life(life(clocks=(BUSY_FIRST, last)))
    assert faulty(judged) == {"platform"}
    assert words in in_words(judged["platform"])


def test_a_qemu_that_somebody_ended_is_no_fault_of_its_guest() -> None:
    judged = judge_life(life(exit=Exit(status=0, signal="SIGTERM"), clocks=(), checks=()))
    assert judged["platform"].verdict is Verdict.HOST
    assert "ended from outside by SIGTERM" in in_words(judged["platform"])


def test_a_reading_that_took_long_is_no_fault() -> None:
    # read somewhere within the 10 s that the answer took: the guest's 11 s fit, and so do 2 s
    for up_s, epoch_s in ((15.9, 1795392867), (6.5, 1795392858)):
        last = GuestClock(asked_s=101.5, answered_s=111.5, beats=60, up_s=up_s, epoch_s=epoch_s)
        assert faulty(judge_life(life(clocks=(FIRST, last)))) == set()


def test_one_reading_says_nothing() -> None:
    assert faulty(judge_life(life(clocks=(FIRST,)))) == set()


# --- The kernel's log --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("I/O error, dev sda, sector 65536 op 0x0:(READ) flags 0x800 phys_seg 4 prio class 2", "ahci"),
        ("blk_update_request: I/O error, dev vda, sector 0 op 0x1:(WRITE)", "virtio-blk"),
        ("Buffer I/O error on dev vda, logical block 0, async page read", "virtio-blk"),
        ("ata1.00: exception Emask 0x0 SAct 0x1 SErr 0x0 action 0x6 frozen", "ahci"),
        ("ata1.00: failed command: READ FPDMA QUEUED", "ahci"),
        ("ata1: hard resetting link", "ahci"),
        ("ata1.00: qc timeout after 5000 msecs (cmd 0xec)", "ahci"),
        ("sd 0:0:0:0: [sda] tag#0 rejecting I/O to offline device", "ahci"),
        ("virtio_blk virtio0: requests:id 5 is not a head!", "virtio-blk"),
        ("virtio_net virtio1: output.0:id 300 out of range", "virtio-net"),
        ("virtio_net virtio1 eth0: NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out 5104 ms", "virtio-net"),
        ("NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out", "virtio-net"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", "platform"),
        ("INFO: task dd:215 blocked for more than 120 seconds.", "platform"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "platform"),
        ("rcu: rcu_preempt kthread starved for 5250 jiffies!", "platform"),
        ('irq 11: nobody cared (try booting with the "irqpoll" option)', "platform"),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000008", "platform"),
        ("Oops: 0000 [#1] PREEMPT SMP NOPTI", "platform"),
        ("Call Trace:", "platform"),
        ("WARNING: CPU: 0 PID: 0 at net/sched/sch_generic.c:525 dev_watchdog+0x207/0x210", "platform"),
    ],
)
def test_a_line_that_is_an_error(line: str, device: str) -> None:
    judged = judge_life(life(kernel_log=("[    5.1] harmless", f"[  123.456789] {line}")))
    assert faulty(judged) == {device}
    assert in_words(judged[device]) == f"kernel log: {line}"
    (noted,) = judged[device].details["kernel_log"]
    assert noted["line"] == line
    assert KernelComplaint(noted["complaint"]) in KernelComplaint


@pytest.mark.parametrize(
    "line",
    [
        "ata1: SATA link up 1.5 Gbps (SStatus 113 SControl 300)",
        "ata2: SATA link down (SStatus 0 SControl 300)",
        "ata1.00: ATA-7: QEMU HARDDISK, 2.5+, max UDMA/100",
        "ahci 0000:00:03.0: flags: 64bit ncq only ",
        "sd 0:0:0:0: [sda] Write cache: enabled, read cache: enabled, doesn't support DPO or FUA",
        "sd 0:0:0:0: [sda] Synchronizing SCSI cache",
        "virtio_blk virtio0: [vda] 131072 512-byte logical blocks (67.1 MB/64.0 MiB)",
        "NMI watchdog: Perf NMI watchdog permanently disabled",
        "rcu: Hierarchical SRCU implementation.",
        "random: crng init done",
        "x86/fpu: x87 FPU will use FXSAVE",
        "mce: CPU supports 10 MCE banks",
    ],
)
def test_a_line_that_is_none(line: str) -> None:
    judged = judge_life(life(kernel_log=(f"[    1.234567] {line}",)))
    assert faulty(judged) == set()
    assert all(j.details["kernel_log"] == [] for j in judged.values())


@pytest.mark.parametrize(
    "line",
    [
        "timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:",
        "clocksource: Long readout interval, skipping watchdog check: cs_nsec: 1096997019 wd_nsec: 279337600",
    ],
)
def test_a_rewound_clock_is_noted_and_no_fault(line: str) -> None:
    judged = judge_life(life(kernel_log=(f"[    4.872606] {line}",)))
    assert faulty(judged) == set()
    (noted,) = judged["platform"].details["kernel_log"]
    assert (noted["line"], noted["fault"]) == (line, False)


def test_a_name_within_a_word_is_no_name() -> None:
    # veth0 is not eth0
    judged = judge_life(life(kernel_log=("[ 1.0] NETDEV WATCHDOG: veth0 (veth): transmit queue 0 timed out",)))
    assert faulty(judged) == {"platform"}


def test_every_complaint_has_one_rule_and_a_stable_name() -> None:
    assert sorted(rule.complaint for rule in LOG_RULES) == sorted(KernelComplaint)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in KernelComplaint)
    assert len({rule.pattern for rule in LOG_RULES}) == len(LOG_RULES)


# --- Guests that did not answer ----------------------------------------------------------------------------


def not_asked(**changes: Any) -> GuestLife:
    return life(**{"clocks": (), "checks": (), "kernel_log": ()} | changes)


def test_loads_that_broke_keep_their_own_verdict() -> None:
    broken = Break(
        step=Step.LOAD, kind="closed", symptom=symptom("the secondary closed the connection"), load=1, phase="bound"
    )
    log = "qemu-system-x86_64: ../../softmmu/memory.c:2610: f: Assertion `!subregion->container' failed."
    judged = judge_life(not_asked(loads_acked=0, broken=broken, exit=ABORTED, log=log))
    assert {device: j.verdict for device, j in judged.items()} == {"platform": Verdict.CRASH}
    assert "subregion->container" in in_words(judged["platform"])


@pytest.mark.parametrize(("ended", "verdict"), [(ABORTED, Verdict.CRASH), (Exit(status=0), Verdict.GUEST_FAULT)])
def test_a_qemu_that_ends_after_the_failover(ended: Exit, verdict: Verdict) -> None:
    judged = judge_life(not_asked(exit=ended, stuck=symptom("the console is gone")))
    assert {device: j.verdict for device, j in judged.items()} == {"platform": verdict}
    assert in_words(judged["platform"]).startswith(("after the failover: ", "after the loads: QEMU ended"))


def test_a_failover_that_does_not_end_is_a_hang() -> None:
    judged = judge_life(not_asked(failover=symptom("query-colo-status: still {'mode': 'secondary'} after 10 s")))
    assert {device: j.verdict for device, j in judged.items()} == {"platform": Verdict.HANG}


def test_a_console_that_does_not_answer_is_the_guests_fault() -> None:
    judged = judge_life(not_asked(stuck=symptom("guest command 'clock' did not end within 15 s")))
    assert {device: j.verdict for device, j in judged.items()} == {"platform": Verdict.GUEST_FAULT}
    assert "'clock' did not end" in in_words(judged["platform"])


def test_a_guest_that_panicked() -> None:
    judged = judge_life(not_asked(events=("GUEST_PANICKED",), stuck=symptom("the console is gone")))
    assert faulty(judged) == {"platform"}
    assert (
        in_words(judged["platform"])
        == "the guest ended: GUEST_PANICKED; the guest does not answer after the failover: the console is gone"
    )
