# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen is data until somebody reads it: from an error to a symptom, and from that to a line."""

from __future__ import annotations

import pytest

from harness.colo.symptom import Doing, Sign, Symptom
from harness.engines.evidence import symptom_of
from harness.errors import HarnessError, QemuError
from harness.guests.console import ConsoleError
from harness.qemu.monitor import CommandRefused, NoAnswer, SessionClosed
from harness.report.symptoms import symptom_text

ERRORS: list[tuple[HarnessError, str]] = [
    (CommandRefused("cont", "not now"), "cont: not now"),
    (NoAnswer("query-status", 20), "no answer to query-status for 20 s"),
    (
        NoAnswer("query-colo-status", 10, {"mode": "secondary"}),
        'query-colo-status still gives {"mode": "secondary"}, not done within 10 s',
    ),
    (SessionClosed("savevm", "EOFError"), "QEMU closed the session in savevm: EOFError"),
    (
        ConsoleError("x", Symptom(sign=Sign.FAILED, command="net_up", exit=2, said="no link")),
        "guest command 'net_up' failed with status 2: no link",
    ),
    (QemuError("QEMU does not listen"), "QEMU does not listen"),
]
TEXTS: list[tuple[Symptom, str]] = [
    (Symptom(sign=Sign.NO_ANSWER, seconds=20), "no answer for 20 s"),
    (
        Symptom(sign=Sign.NO_ANSWER, doing=Doing.BOOT, seconds=60, said="SeaBIOS"),
        "the guest's boot: no answer for 60 s; the last words were: SeaBIOS",
    ),
    (Symptom(sign=Sign.NO_DATA_TAKEN, seconds=20), "no more data was taken for 20 s"),
    (Symptom(sign=Sign.LITTLE_DATA_TAKEN, seconds=20), "too little data was taken for 20 s"),
    (Symptom(sign=Sign.CLOSED), "the connection was closed"),
    (Symptom(sign=Sign.CLOSED, got=2, of=4), "the connection was closed after 2 of 4 bytes"),
    (Symptom(sign=Sign.CLOSED, said="Broken pipe"), "the connection was closed (Broken pipe)"),
    (Symptom(sign=Sign.OTHER_MESSAGE, said="0x09", wanted="VMSTATE_LOADED"), "0x09 instead of VMSTATE_LOADED"),
    (Symptom(sign=Sign.LEFT_COLO, said="error"), "the secondary left COLO (event COLO_EXIT, reason error)"),
    (Symptom(sign=Sign.ENDED), "QEMU ended"),
    (Symptom(sign=Sign.ENDED, command="query-migrate"), "QEMU ended in query-migrate"),
    (
        Symptom(sign=Sign.ENDED, doing=Doing.START, seconds=0.2),
        "QEMU ended within 0.2 s of the guest's start",
    ),
    (
        Symptom(sign=Sign.DIED_CLEANING_UP, doing=Doing.PACKAGE, said="SIGSEGV"),
        "the device state in the postcopy package: QEMU refused it, and died of SIGSEGV while it cleaned up",
    ),
    (
        Symptom(sign=Sign.MIGRATION_ENDED, status="failed", said="Input/output error"),
        "the incoming migration ended: failed: Input/output error",
    ),
    (
        Symptom(sign=Sign.MIGRATION_ENDED, status="failed", source="completed"),
        "the incoming migration ended: failed; the source says completed",
    ),
    (
        Symptom(sign=Sign.NOT_DONE, status="active", source="completed", seconds=30),
        "the source says completed, the destination active, not done within 30 s",
    ),
    (Symptom(sign=Sign.NOT_DONE, status="active", seconds=5), "the incoming migration is active, not done within 5 s"),
    (
        Symptom(sign=Sign.STUCK, status="active", source="gone"),
        "the destination does not come to its end: the source says gone, the destination active",
    ),
    (
        Symptom(sign=Sign.HUNG_UP, doing=Doing.REST, status="active"),
        "the rest of the pages: the destination hung up, and the status of its migration is active",
    ),
    (Symptom(sign=Sign.SHUT, doing=Doing.REST, said="1"), "the rest of the pages: the destination's SHUT says 1"),
    (Symptom(sign=Sign.NO_CHECKPOINT, seconds=30), "no checkpoint was finished for 30 s"),
    (Symptom(sign=Sign.NOT_STARTED, seconds=20), "the guest could not be started for 20 s"),
    (Symptom(sign=Sign.UNREADABLE, command="clock", said="?"), "guest command 'clock' printed '?'"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_an_error_is_a_symptom_and_that_is_told(error: HarnessError, text: str) -> None:
    assert symptom_text(symptom_of(error)) == text


@pytest.mark.parametrize(("symptom", "text"), TEXTS)
def test_a_symptom_in_words(symptom: Symptom, text: str) -> None:
    assert symptom_text(symptom) == text


def test_no_sign_and_no_doing_is_without_words() -> None:
    told = {symptom.sign for symptom, _ in TEXTS} | {symptom_of(error).sign for error, _ in ERRORS}
    assert told == set(Sign)
    assert all(symptom_text(Symptom(sign=Sign.NO_ANSWER, doing=doing)) for doing in Doing)
