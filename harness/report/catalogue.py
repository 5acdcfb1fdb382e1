# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue of a QEMU's device types: the document ``postload.devices/1``, and a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.markup import escape

from harness.devices.backends import Model
from harness.devices.derive import DerivedDevices, Underived
from harness.devices.rules import Status
from harness.devices.types import DeviceType
from harness.guests.lack import Lacks
from harness.report.lacks import lack_text, program_text
from harness.report.text import columns, plural
from harness.results.document import schema_of
from harness.state.catalogue import DeviceTrial, Offer, TriedDevice
from harness.state.recordings import machine_names, recorded_driver
from harness.text import printable

SCHEMA: Literal["postload.devices/1"] = "postload.devices/1"


_WORDS = {
    Status.JUDGED: "judged",
    Status.UNMIGRATABLE: "blocks migration, so COLO too",
    Status.STATELESS: "no state of their own to load",
    Status.FAILS_TO_START: "do not start",
    Status.FAILS_TO_SAVE: "end QEMU when they are saved",
    Status.NEEDS: "need something that is not here",
    Status.HOST_ONLY: "stand on the host's own hardware or kernel",
    Status.OTHER_MACHINE: "belong to another machine",
    Status.ALIAS: "judged under another name",
    Status.CPU: "CPU models",
}


class TypeRow(Model):
    """A device that a type has.

    :param sections: that it adds to what it stands on
    """

    row: str
    status: Status
    reason: str = ""
    sections: tuple[str, ...] = ()


class TypeEntry(TypeRow):
    """One type of ``-device help``.

    :param row: its device, by which ``--device`` and the cells call it; empty where it has none
    :param driver: that a recorded guest's kernel had for it, None where none of this machine bound it yet
    :param variants: further devices of the same type
    """

    type: str
    bus: str
    category: str
    driver: str | None = None
    variants: tuple[TypeRow, ...] = ()


class QemuModel(Model):
    """The QEMU that was asked."""

    version: str
    build: str
    path: str
    sha256: str


class Catalogue(Model):
    """All types of a QEMU on one machine: ``postload.devices/1``."""

    schema_: Literal["postload.devices/1"] = Field(default=SCHEMA, alias="schema")
    qemu: QemuModel
    machine: str
    types: tuple[TypeEntry, ...]

    @property
    def sums(self) -> dict[Status, int]:
        """How many types have each status; together they are all of ``-device help``."""
        return {status: count for status in Status if (count := sum(1 for e in self.types if e.status is status))}

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return self.model_dump(mode="json", by_alias=True)


#: Columns that a terminal needs for bus and category beside the rest.
_WIDE = 110
_STARTED = re.compile(r"\S+ did not start: it ended with (exit status \d+|\w+): ")
#: What QEMU puts in front of an error: its name, and the option that it is about.
_OPTION = re.compile(r"\S*qemu-system-\w+: (-\S+ \S+: )?")


def devices_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``postload devices --json``, made from the models."""
    return schema_of(Catalogue)


def catalogue_of(
    trial: DeviceTrial, offer: Offer, jobs: int, done: Callable[[str], None], names: Iterable[str] | None = None
) -> Catalogue:
    """What becomes of each type on a machine.

    :param names: types to be told of, all by default
    """
    types = [offer.types[name] for name in (offer.types if names is None else names)]
    devices = offer.devices
    rows = [row for kind in types for row in offer.derived.rows.get(kind.name, ())]
    tried = trial.run([devices[row] for row in dict.fromkeys(rows)], jobs, done)
    machine = machine_names(trial.binary, trial.machine)[1]
    drivers = {row: recorded_driver(trial.binary, machine, devices[row]) for row in tried}
    return Catalogue(
        qemu=QemuModel(**trial.binary.identity()),
        machine=machine,
        types=tuple(_entry(kind, offer.derived, tried, drivers) for kind in types),
    )


def _entry(
    kind: DeviceType, derived: DerivedDevices, tried: Mapping[str, TriedDevice], drivers: Mapping[str, str | None]
) -> TypeEntry:
    if kind.name in derived.underived:
        why = derived.underived[kind.name]
        rows = [TypeRow(row=why.row, status=why.status, reason=underived_text(why))]
    else:
        rows = [_row(name, tried[name]) for name in derived.rows[kind.name]]
    return TypeEntry(
        type=kind.name,
        row=rows[0].row,
        bus=kind.bus,
        category=kind.category,
        status=rows[0].status,
        reason=rows[0].reason,
        sections=rows[0].sections,
        driver=next((drivers[row.row] for row in rows if drivers.get(row.row)), None),
        variants=tuple(rows[1:]),
    )


def _row(name: str, found: TriedDevice) -> TypeRow:
    return TypeRow(row=name, status=found.status, reason=tried_text(found), sections=tuple(found.sections))


def underived_text(why: Underived) -> str:
    """Why a type makes no device of its own."""
    if why.needs:
        return f"it stands on {', '.join(why.needs)}, which this QEMU has not"
    return why.reason or f"judged as {why.row}"


def tried_text(found: TriedDevice) -> str:
    """Why a device that was tried is not judged; QEMU's own words where it has some."""
    if found.lack is None:
        return ""
    if found.lack.what is Lacks.PROGRAM:
        return program_text(found.lack)
    here = found.lack.said or lack_text(found.lack)
    if found.bearers:
        here = f"{' with '.join(found.bearers)}, which it stands on, does that without it: {here}"
    return here if found.elsewhere is None else f"{found.elsewhere[1]} on {found.elsewhere[0]}; here {here}"


def print_catalogue(found: Catalogue, console: Console) -> None:
    """Every type but the CPU models, which are counted, and the sums.

    A type is a line. On a terminal it ends where that does, and a narrow one has no bus and no category.
    """
    lines = [("TYPE", "BUS", "CATEGORY", "STATUS", "WHAT")]
    for entry in found.types:
        if entry.status is not Status.CPU:
            lines.append((entry.type, entry.bus, entry.category, entry.status, _brief(what_of(entry))))
            lines += [(f"  {row.row}", "", "", row.status, _brief(what_of(row))) for row in entry.variants]
    width = console.width if console.is_terminal else None
    if width is not None and width < _WIDE:
        lines = [(name, "", "", status, what) for name, _, _, status, what in lines]
    for text in map(printable, columns(lines)):
        cut = text if width is None or len(text) <= width else f"{text[: width - 1]}\N{HORIZONTAL ELLIPSIS}"
        console.print(cut, markup=False, highlight=False, soft_wrap=True)
    for text in sums_text(found):
        console.print(escape(text), soft_wrap=True)
    console.print("postload devices show TYPE has each reason in full", soft_wrap=True, highlight=False)


def _brief(what: str) -> str:
    """Without the path of QEMU and the options that it was started with: its own words are what tells."""
    said = _STARTED.sub("", " ".join(what.split()))
    return _OPTION.sub("", said)


def print_entry(found: Catalogue, recipe: str, console: Console) -> None:
    """One type, its variants, and the recipe of its device."""
    (entry,) = found.types
    driver = f", driver {entry.driver}" if entry.driver else ""
    console.print(escape(f"{entry.type}: {entry.category} device, bus {entry.bus or 'none'}{driver}"), soft_wrap=True)
    for row in (entry, *entry.variants):
        name = f"{row.row}: " if row.row else ""
        console.print(escape(f"  {name}{row.status}: {what_of(row)}"), soft_wrap=True)
    if recipe:
        console.print(f"\n{escape(recipe)}", end="", soft_wrap=True)


def what_of(row: TypeRow) -> str:
    """The sections of one that is judged, else why it is not."""
    if row.status is Status.JUDGED:
        name = f"as {row.row}: " if isinstance(row, TypeEntry) and row.row != row.type else ""
        return name + ", ".join(row.sections)
    return row.reason


def sums_text(found: Catalogue) -> Iterator[str]:
    """How many types have each status."""
    qemu = found.qemu
    yield ""
    yield f"{plural(len(found.types), 'device type')} of QEMU {qemu.version} on {found.machine}"
    for status, count in found.sums.items():
        yield f"{count:6} {status:15} {_WORDS[status]}"
    variants = [row for entry in found.types for row in entry.variants]
    if variants:
        judged = sum(1 for row in variants if row.status is Status.JUDGED)
        yield f"{judged:6} of {plural(len(variants), 'variant')} judged beside them"
