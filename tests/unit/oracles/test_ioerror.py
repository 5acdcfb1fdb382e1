# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on a secondary with failing disks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import symptom
from made_cells import words as said

from harness.colo.messages import Step
from harness.engines.evidence import Break
from harness.experiments.ioerror import Interval, IoErrors
from harness.oracles.ioerror import judge_io_errors
from harness.qemu.process import Exit
from harness.results.verdict import Verdict

RUNNING = Interval(status="running", held={})
HALTED = Interval(status="io-error", held={"ahci-disk": 1})
HEALTHY = IoErrors(
    phase="io-error",
    faults={},
    once=False,
    loads_asked=2,
    loads_acked=2,
    intervals=(RUNNING, RUNNING),
    after=RUNNING,
    requests={"ahci": "answered"},
)
FAILING = replace(HEALTHY, faults={"ahci-disk": 9}, intervals=(HALTED, HALTED), after=HALTED, requests={})
ABORT = replace(
    FAILING,
    loads_acked=1,
    intervals=(HALTED,),
    after=None,
    broken=Break(step=Step.REQUEST, kind="closed", symptom=symptom("closed"), load=2, phase="busy"),
    exit=Exit(status=-6, signal="SIGABRT"),
    log="qemu-system-x86_64: invalid runstate transition: 'io-error' -> 'colo'",
)


@pytest.mark.parametrize("seen", [HEALTHY, FAILING, replace(FAILING, once=True, after=RUNNING)])
def test_well(seen: IoErrors) -> None:
    assert judge_io_errors(seen).verdict is Verdict.OK


def test_the_abort_is_named() -> None:
    judged = judge_io_errors(ABORT)
    assert judged.verdict is Verdict.CRASH
    assert (
        said(judged)
        == "secondary with a failing disk: load 2: SIGABRT: invalid runstate transition: 'io-error' -> 'colo'"
    )
    assert judged.details["loads"] == [1, 2]


@pytest.mark.parametrize(
    ("seen", "verdict", "words"),
    [
        (replace(HEALTHY, requests={"ahci": "answered", "nvme": "waiting"}), Verdict.GUEST_FAULT, "nvme: waiting"),
        (replace(HEALTHY, requests={"ahci": "status 1"}), Verdict.GUEST_FAULT, "did not succeed: ahci: status 1"),
        (replace(HEALTHY, stuck=symptom("no prompt")), Verdict.GUEST_FAULT, "no prompt"),
        (replace(HEALTHY, after=HALTED), Verdict.GUEST_FAULT, "is io-error, not running"),
        (replace(FAILING, after=RUNNING), Verdict.GUEST_FAULT, "is running, not io-error"),
        (replace(HEALTHY, failover=symptom("no answer"), after=None), Verdict.HANG, "no answer"),
        (
            replace(FAILING, intervals=(RUNNING, RUNNING), after=RUNNING),
            Verdict.GUEST_FAULT,
            "not sent again: ahci-disk",
        ),
        (replace(FAILING, phase="busy", intervals=(RUNNING,), after=RUNNING), Verdict.HARNESS_ERROR, "no request met"),
        (replace(HEALTHY, loads_acked=1), Verdict.HARNESS_ERROR, "1 of 2"),
        (replace(ABORT, exit=None), Verdict.REJECT, "load 2"),
    ],
)
def test_not_well(seen: IoErrors, verdict: Verdict, words: str) -> None:
    judged = judge_io_errors(seen)
    assert judged.verdict is verdict
    assert words in said(judged)


def test_of_a_session_that_devices_share_each_answers_for_its_own() -> None:
    healthy = replace(HEALTHY, requests={"ahci": "answered", "scsi-hd": "waiting"})
    assert judge_io_errors(healthy, (), "ahci").verdict is Verdict.OK
    assert judge_io_errors(healthy, (), "scsi-hd").verdict is Verdict.GUEST_FAULT
    failing = replace(FAILING, faults={"ahci-disk": 9, "scsi-hd-drive": 9})
    assert judge_io_errors(failing, ["ahci-disk"], "ahci").verdict is Verdict.OK
    judged = judge_io_errors(failing, ["scsi-hd-drive"], "scsi-hd")
    assert judged.verdict is Verdict.GUEST_FAULT
    assert said(judged).endswith("a request that was held back was not sent again: scsi-hd-drive")
