# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen of a QEMU or its guest, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.colo.symptom import Doing, Sign, Symptom

_DOINGS = {
    Doing.BOOT: "the guest's boot",
    Doing.SHELL: "the start of the guest's shell",
    Doing.PROMPT: "the guest's prompt",
    Doing.LOADING: "the load",
    Doing.START: "the guest's start",
    Doing.BEFORE_PACKAGE: "the stream in front of the package",
    Doing.PACKAGE: "the device state in the postcopy package",
    Doing.REST: "the rest of the pages",
    Doing.WITHOUT_PAGES: "the guest's start, with pages missing",
    Doing.WITH_PAGES: "the guest's last page",
    Doing.BETWEEN: "the time between two checkpoints",
    Doing.SAVING: "the saving of its state",
}


def symptom_text(symptom: Symptom) -> str:
    """One symptom in one line, with what was going on."""
    text = _TEXTS[symptom.sign](symptom)
    return text if symptom.doing is None or symptom.sign is Sign.ENDED else f"{_DOINGS[symptom.doing]}: {text}"


def _behind(words: str, before: str = ": ") -> str:
    return f"{before}{words}" if words else ""


def _for(symptom: Symptom) -> str:
    return "" if symptom.seconds is None else f" for {symptom.seconds:g} s"


def _within(symptom: Symptom) -> str:
    return "" if symptom.seconds is None else f" within {symptom.seconds:g} s"


def _no_answer(symptom: Symptom) -> str:
    who = f"no answer to {symptom.command}" if symptom.command else "no answer"
    return f"{who}{_for(symptom)}{_behind(symptom.said, '; the last words were: ')}"


def _closed(symptom: Symptom) -> str:
    came = "" if symptom.got is None else f" after {symptom.got} of {symptom.of} bytes"
    return f"the connection was closed{came}{f' ({symptom.said})' if symptom.said else ''}"


def _ended(symptom: Symptom) -> str:
    what = symptom.command or ("" if symptom.doing is None else _DOINGS[symptom.doing])
    where = "" if not what else f"{_within(symptom)} of {what}" if symptom.seconds is not None else f" in {what}"
    return f"QEMU ended{where}{_behind(symptom.said)}"


def _where(symptom: Symptom) -> str:
    if symptom.source:
        return f"the source says {symptom.source}, the destination {symptom.status}"
    return f"the incoming migration is {symptom.status}" if symptom.status else ""


def _not_done(symptom: Symptom) -> str:
    where = _where(symptom) or f"{symptom.command} still gives {symptom.said}"
    return f"{where}, not done{_within(symptom)}"


def _migration_ended(symptom: Symptom) -> str:
    ended = f"the incoming migration ended: {symptom.status}{_behind(symptom.said)}"
    return f"{ended}; the source says {symptom.source}" if symptom.source else ended


_TEXTS: Mapping[Sign, Callable[[Symptom], str]] = {
    Sign.NO_ANSWER: _no_answer,
    Sign.NO_DATA_TAKEN: lambda symptom: f"no more data was taken{_for(symptom)}",
    Sign.LITTLE_DATA_TAKEN: lambda symptom: f"too little data was taken{_for(symptom)}",
    Sign.CLOSED: _closed,
    Sign.OTHER_MESSAGE: lambda symptom: f"{symptom.said} instead of {symptom.wanted}",
    Sign.LEFT_COLO: lambda symptom: f"the secondary left COLO (event COLO_EXIT, reason {symptom.said})",
    Sign.ENDED: _ended,
    Sign.DIED_CLEANING_UP: lambda symptom: f"QEMU refused it, and died of {symptom.said} while it cleaned up",
    Sign.SESSION_CLOSED: lambda symptom: f"QEMU closed the session in {symptom.command}{_behind(symptom.said)}",
    Sign.REFUSED: lambda symptom: f"{symptom.command}: {symptom.said}",
    Sign.MIGRATION_ENDED: _migration_ended,
    Sign.NOT_DONE: _not_done,
    Sign.STUCK: lambda symptom: f"the destination does not come to its end: {_where(symptom)}",
    Sign.HUNG_UP: lambda symptom: (
        f"the destination hung up{_behind(symptom.said)}, and the status of its migration is {symptom.status}"
    ),
    Sign.SHUT: lambda symptom: f"the destination's SHUT says {symptom.said}",
    Sign.NO_CHECKPOINT: lambda symptom: f"no checkpoint was finished{_for(symptom)}",
    Sign.NOT_STARTED: lambda symptom: f"the guest could not be started{_for(symptom)}",
    Sign.FAILED: lambda symptom: (
        f"guest command {symptom.command!r} failed with status {symptom.exit}: {symptom.said or 'it printed nothing'}"
    ),
    Sign.UNREADABLE: lambda symptom: f"guest command {symptom.command!r} printed {symptom.said!r}",
    Sign.ERROR: lambda symptom: symptom.said,
}
