# SPDX-License-Identifier: GPL-2.0-or-later
"""Which workers live, and what waits for which of their abilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.report.text import columns, duration, number, plural
from harness.results.document import plain_json, schema_of
from harness.work.ability import Ability
from harness.work.jobs import Living, Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """Jobs that need the same of a host.

    :param todo: that nobody has yet
    :param doing: that a worker has
    :param able: hosts with a living worker that is able to do them
    :param oldest_s: how long the oldest of those that nobody has waits
    """

    needs: Ability
    machines: tuple[str, ...]
    todo: int
    doing: int
    able: tuple[str, ...]
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDoc:
    """What ``postload work status --json`` prints."""

    schema: Literal["postload.work/1"] = "postload.work/1"
    workers: tuple[Living, ...]
    queues: tuple[QueueRow, ...]

    @classmethod
    def of(cls, waiting: Sequence[Waiting], living: Sequence[Living]) -> WorkDoc:
        """Of each queue, who is able to do its jobs."""
        rows = (
            QueueRow(
                needs=each.needs,
                machines=each.machines,
                todo=each.todo,
                doing=each.doing,
                able=tuple(sorted({one.offer.host for one in living if one.offer.has(each.queue)})),
                oldest_s=each.oldest_s,
            )
            for each in waiting
        )
        return cls(workers=tuple(living), queues=tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)


def work_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``postload work status --json``."""
    return schema_of(WorkDoc)


def work_text(doc: WorkDoc) -> str:
    """Lines for the terminal, without colours."""
    return "\n".join(_lines(doc))


def ability_text(needs: Ability) -> str:
    """What is needed of a host."""
    kernel = f", kernel {needs.kernel}" if needs.kernel else ""
    host = f", on {needs.host} alone" if needs.host else ""
    return f"QEMU {needs.version or '?'} ({needs.qemu[:12]}), {needs.accel.upper()}{kernel}{host}"


def _lines(doc: WorkDoc) -> Iterator[str]:
    yield f"{plural(len(doc.workers), 'living worker')}{':' if doc.workers else ''}"
    rows = [_worker(each) for each in doc.workers]
    yield from (f"  {line}" for line in (columns(rows) if rows else []))
    yield ""
    if not doc.queues:
        yield "no jobs"
        return
    yield "jobs that are not over:"
    for row in doc.queues:
        waits = f", the oldest for {duration(row.oldest_s)}" if row.todo else ""
        yield f"  {number(row.todo)} waiting{waits}; {number(row.doing)} being done"
        yield f"    {', '.join(row.machines)} on {ability_text(row.needs)}"
        yield f"    able: {', '.join(row.able) or 'NO LIVING WORKER'}"


def _worker(each: Living) -> tuple[str, ...]:
    offer = each.offer
    qemus = ", ".join(f"{one.version} ({one.qemu[:12]})" for one in offer.qemus)
    return (
        offer.host,
        f"pid {offer.pid}",
        f"{each.doing} of {offer.jobs} busy",
        f"{offer.arch}, kernel {offer.kernel}, {'KVM' if offer.kvm else 'no KVM'}",
        f"QEMU {qemus}",
    )
