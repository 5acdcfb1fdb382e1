# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a state pack that is given away, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.adopt.redact import Redaction
from harness.report.text import number, plural
from harness.text import printable

SCHEMA = "postload.redact/1"
_NOT_JUDGED = (
    "not judged any more: what a guest does after a load, for its CPUs are halted; requests that waited in a ring of "
    "virtio; the sections that were taken out"
)


def redaction_document(redaction: Redaction, out: Path) -> dict[str, Any]:
    """A redacted pack as data."""
    return {"schema": SCHEMA, "path": str(out), **asdict(redaction)}


def redaction_lines(redaction: Redaction) -> Iterator[str]:
    """What was taken out and replaced, what remains, and what cannot be judged any more."""
    yield f"phase {redaction.phase}, now adopted: {number(redaction.pages)} pages of memory taken out"
    for what, names in (
        ("sections taken out", redaction.left_out),
        ("buffers and registers emptied", redaction.emptied),
        ("another value", redaction.replaced),
        ("other bytes in sections", redaction.changed),
    ):
        if names:
            yield f"{what}: {', '.join(names)}"
    yield f"remains: {plural(len(redaction.sections), 'section')}: {', '.join(redaction.sections)}"
    yield f"remains: indices of {plural(redaction.rings, 'virtio ring')}"
    for what, names in (("ids", redaction.ids), ("words", redaction.texts), ("content of", redaction.roms)):
        if names:
            yield f"remains: {what} {', '.join(names)}"
    yield _NOT_JUDGED


def print_redaction(redaction: Redaction, console: Console) -> None:
    """The same for a person."""
    for line in redaction_lines(redaction):
        console.print(printable(line), markup=False, soft_wrap=True)
